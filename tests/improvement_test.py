"""Improvement over drafts against slow loops: greedy chains of a table model, and figures row by row."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata
from table_model import POLICY, TOKENIZER, V, logp

from past_jax import build, checks, models, train
from past_jax.commands import study
from past_jax.data.worlds.instructions import preferences
from past_jax.evals import chains
from past_jax.evals.elo import elo
from past_jax.evals.improvement import best, improvement
from past_jax.evals.setting import Setting
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.types import Example, UserError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
LENGTH = 6
WORDS = ['sun', 'moon', 'tea', 'rain', 'fog', 'ice', 'oak', 'elm', 'ash', 'yew', 'fir', 'bay', 'hut']
EXAMPLES = [
  Example(prompt=f'{word}{i}', anchors=(f'better {word}', word[: 1 + i % 3]), where=f'rows.jsonl:{i}')
  for i, word in enumerate(WORDS)
]
VIEW = dict(instruction='{prompt}', chat=False, prompt_length=12, text_length=10)
IMPROVE = dict(instruction='{prompt}|{draft}', prompt_length=30, temperature=0.0)
FEEDBACK, REFINE = '?{draft}', '{prompt}|{draft}|{feedback}'


def table(seed):
  """Random, of printable characters only, so that text and ids tell the same."""
  logits = np.full((V, V), -60, np.float32)
  allowed = [*range(97, 123), TOKENIZER.eos_id]
  logits[:, allowed] = 3 * np.random.default_rng(seed).normal(size=(V, len(allowed)))
  return logits


POLICY_VxV, BASE_VxV = table(1), table(2)


def early(completion, example):
  """Coarse, so that there are ties; it abstains on one row."""
  return None if example.prompt == 'oak6' else sum(c < 'n' for c in completion) / 6


JUDGES = {'early': f'{__name__}:early', 'model': 'likelihood'}


def setting(mesh, examples=EXAMPLES, **changes):
  shape = dict(prompt_length=40, answer_length=LENGTH, chunk=4, view=VIEW, improve=IMPROVE)
  return Setting(POLICY, TOKENIZER, mesh, examples, (), **shape | changes)


def greedy(logits, prompt):
  last, out = ord(prompt[-1]), []
  while len(out) < LENGTH:
    last = int(logits[last].argmax())
    if last == TOKENIZER.eos_id:
      break
    out.append(last)
  return bytes(out).decode()


def slow(example, drafts, baseline):
  """The chain of one row: draft and two improvements."""
  out = [greedy(BASE_VxV, example.prompt) if drafts == 'base' else example.anchors[-1]]
  for _ in range(2):
    if baseline:
      feedback = greedy(BASE_VxV, f'?{out[-1]}')
      out.append(greedy(BASE_VxV, f'{example.prompt}|{out[-1]}|{feedback}'))
    else:
      out.append(greedy(POLICY_VxV, f'{example.prompt}|{out[-1]}'))
  return out


def slow_score(judge, text, example):
  if judge == 'early':
    return early(text, example)
  return float(logp(example.prompt, text, BASE_VxV, end=True)) / (len(text) + 1)


def slow_figures(judge, rows, good):
  """Figures of iteration 2 from chains, row by row."""
  scored = [[slow_score(judge, text, e) for text in rows[n]] for n, e in enumerate(EXAMPLES)]
  scored = [s for s in scored if None not in s]
  n = len(scored)
  rank = rankdata([s[0] for s in scored])
  thirds = {'low': [], 'mid': [], 'high': []}
  win = lose = 0
  spoilt, won = [], np.zeros((3, 3))
  for s, r in zip(scored, rank):
    moved = (s[2] > s[0]) - (s[2] < s[0])
    win, lose = win + (moved > 0), lose + (moved < 0)
    name = 'low' if r - 0.5 < n / 3 else 'mid' if r - 0.5 < 2 * n / 3 else 'high'
    thirds[name].append(moved)
    if s[0] >= good:
      spoilt.append(moved < 0)
    for i in range(3):
      for j in range(3):
        won[i, j] += 0 if i == j else 1 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0
  out = {'win': win / n, 'win/n': n, 'lose': lose / n, 'delta': (win - lose) / n}
  out |= {f'delta_{name}': sum(x) / len(x) for name, x in thirds.items() if x}
  out |= {'score': sum(s[2] for s in scored) / n, 'elo': elo(won)[2]}
  return out | ({'spoilt': sum(spoilt) / len(spoilt)} if spoilt else {}), scored


@pytest.mark.parametrize('drafts', ['base', 'given'])
def test_all_figures_are_those_of_a_loop(mesh, drafts):
  good = 0.4
  keys = dict(judges=JUDGES, iterations=2, temperatures=(0.0,), drafts=drafts, good=good)
  keys |= dict(baseline='self_refine', feedback=FEEDBACK, refine=REFINE)
  metrics, samples = improvement(setting(mesh), **keys).run(POLICY_VxV, BASE_VxV)
  delta = {}
  for baseline, prefix in ((False, 'improvement'), (True, 'improvement/baseline')):
    rows = [slow(e, drafts, baseline) for e in EXAMPLES]
    kept = [s['chain'] for s in samples if s['kind'] == f'{prefix}/t0']
    assert [[step['text'] for step in chain] for chain in kept] == rows
    for judge in JUDGES:
      expected, scored = slow_figures(judge, rows, good)
      found = {k: v for k, v in metrics.items() if k.startswith(f'{prefix}/{judge}/t0/i2/') and 'over' not in k}
      assert found == {f'{prefix}/{judge}/t0/i2/{k}': pytest.approx(v, abs=1e-4) for k, v in expected.items()}
      delta[baseline, judge] = expected['delta']
      if not baseline:
        assert metrics[f'{prefix}/{judge}/draft'] == pytest.approx(np.mean([s[0] for s in scored]), abs=1e-5)
        assert metrics[f'{prefix}/{judge}/good'] == np.mean([s[0] >= good for s in scored])
    copied = np.mean([row[2] == row[1] for row in rows])
    length = sum(len(row[2]) for row in rows) / sum(len(row[0]) for row in rows)
    assert metrics[f'{prefix}/text/t0/i2/copied'] == copied
    assert metrics[f'{prefix}/text/t0/i2/length'] == pytest.approx(length)
  for judge in JUDGES:
    over = delta[False, judge] - delta[True, judge]
    assert metrics[f'improvement/{judge}/t0/i2/over_baseline'] == pytest.approx(over)
  assert metrics['improvement/trimmed'] == 0
  assert len({d for _, d in delta.items()}) > 1  # the loop is not of one number


def test_an_untrained_policy_is_its_own_baseline_and_temperatures_share_their_noise(mesh):
  keys = dict(judges={'model': 'likelihood'}, baseline='self_refine')
  both, _ = improvement(setting(mesh), temperatures=(0.5, 1.0), **keys).run(BASE_VxV, BASE_VxV)
  assert both['improvement/model/t0.5/i1/over_baseline'] == both['improvement/model/t1/i1/over_baseline'] == 0
  assert both['improvement/model/t0.5/i1/score'] != both['improvement/model/t1/i1/score']
  one, _ = improvement(setting(mesh), temperatures=(1.0,), **keys).run(BASE_VxV, BASE_VxV)
  assert {name: both[name] for name in one} == one
  other, _ = improvement(setting(mesh), seed=1, **keys).run(BASE_VxV, BASE_VxV)
  assert other['improvement/model/t1/i1/score'] != one['improvement/model/t1/i1/score']


def test_a_copy_ties_and_counts_as_a_copy(mesh):
  """A policy that ends at once after '|': its responses, all empty, are copies of the empty ones before."""
  silent = np.full((V, V), -60, np.float32)
  silent[:, TOKENIZER.eos_id] = 60
  keys = dict(judges={'model': 'likelihood'}, iterations=2)
  metrics, _ = improvement(setting(mesh), **keys).run(silent, silent)
  at = 'improvement/model/t1/i2'
  assert [metrics[f'{at}/{name}'] for name in ('win', 'lose', 'delta', 'elo')] == [0, 0, 0, 0]
  assert metrics['improvement/text/t1/i1/copied'] == 1
  assert 'improvement/text/t1/i1/length' not in metrics  # of nothing


def test_prompts_that_are_cut_are_counted(mesh):
  short = IMPROVE | {'prompt_length': 5}
  metrics, _ = improvement(setting(mesh, improve=short), judges={'model': 'likelihood'}).run(POLICY_VxV, BASE_VxV)
  drafts = [greedy(BASE_VxV, e.prompt) for e in EXAMPLES]
  long = sum(len(f'{e.prompt}|{draft}') > 5 for e, draft in zip(EXAMPLES, drafts))
  assert metrics['improvement/trimmed'] == long / (2 * len(EXAMPLES))


# --- figures ------------------------------------------------------------------------------------------------------


def test_equal_drafts_share_a_third():
  nan = math.nan
  assert chains.thirds(np.array([3.0, 1, 2])).tolist() == [2, 0, 1]
  assert chains.thirds(np.array([0.0, 0, 0, 1, 1, 1])).tolist() == [0, 0, 0, 2, 2, 2]
  assert chains.thirds(np.array([0.0, 0, 0, 0, 0, 1])).tolist() == [1, 1, 1, 1, 1, 2]
  assert chains.thirds(np.array([5.0, 5, nan, 5])).tolist() == [1, 1, -1, 1]


def test_what_no_row_tells_is_left_out():
  nan = math.nan
  found = chains.of_scores(np.array([[0.1, 0.2, 0.3], [0.2, nan, 0.3]]), good=0.5)
  assert found['i1/win'] == found['i1/delta'] == 0.5 and found['i1/win/n'] == 2
  assert not {'i1/spoilt', 'i1/delta_mid'} & set(found) and {'i1/delta_low', 'i1/delta_high'} <= set(found)
  assert chains.of_scores(np.array([[nan], [1.0]]), good=0.5) == {}
  assert chains.of_drafts(np.array([nan]), 0.5) == {}


def test_only_the_first_rows_are_improved(mesh):
  keys = dict(judges={'model': 'likelihood'})
  few, samples = improvement(setting(mesh), limit=2, **keys).run(POLICY_VxV, BASE_VxV)
  alone, _ = improvement(setting(mesh, examples=EXAMPLES[:2]), limit=0, **keys).run(POLICY_VxV, BASE_VxV)
  assert few == alone and [s['question'] for s in samples] == [e.prompt for e in EXAMPLES[:2]]


def test_iterations_that_rise():
  scores = np.array([[0.0, 1], [1, 1], [1, 0.5], [2, 2], [2, 2]])  # means 0.5, 1, 0.75, 2, 2
  assert chains.of_scores(scores, good=0.5)['rises'] == 0.5
  assert 'rises' not in chains.of_scores(scores[:2], good=0.5)


def test_the_best_temperature_is_the_lowest_of_equals():
  of = lambda prefix, deltas: {f'{prefix}/a/t{t}/i1/delta': d for t, d in deltas.items()}
  metrics = of('improvement', {'0.2': 0.1, '0.5': 0.3, '1': 0.3}) | of(
    'improvement/baseline', {'0.2': 0, '0.5': 0, '1': 0.1}
  )
  found = best(metrics, ['a', 'b'], (1.0, 0.2, 0.5))
  expected = {'a/best_temperature': 0.5, 'baseline/a/best_temperature': 1.0, 'a/baseline_hotter': 0.5}
  assert found == {f'improvement/{name}': x for name, x in expected.items()}


def test_copies_are_the_same_or_nearly():
  assert chains.is_copy('abcd', 'abcd', 1) and not chains.is_copy('abcd', 'abce', 1)
  assert chains.is_copy('abcd', 'abce', 0.75) and not chains.is_copy('abcd', 'abce', 0.76)  # 2 * 3 / 8
  assert chains.of_texts([['a '], [' a']], 1.0) == {'i1/copied': 1.0, 'i1/length': 1.0}


def test_a_text_that_comes_again_keeps_its_first_score():
  assert chains.settled([9.0, 9, 9], [['a', 'b', 'c'], ['b', 'b', 'x'], ['a', 'b', 'y']], [[1, 2, 3], [4, 5, 6]]) == [
    1,
    2,
    9,
  ]


# --- what users get wrong -----------------------------------------------------------------------------------------

ONE = dict(judges={'model': 'likelihood'})
WRONG = {
  'names': (dict(judges={'text': 'likelihood'}), 'judges.text: a judge has a name without /'),
  'module': (dict(judges={'a': 'os:nothing'}), 'judges.a=.os:nothing'),
  'iterations': (dict(iterations=0, **ONE), 'iterations=0'),
  'temperatures': (dict(temperatures=(1.0, 1.0), **ONE), 'each once'),
  'refine': (dict(refine='x', **ONE), "set baseline='self_refine'"),
  'copies': (dict(copies=0.0, **ONE), 'copies=0.0'),
}


@pytest.mark.parametrize('case', WRONG)
def test_user_errors_say_what_is_wrong(mesh, case):
  keys, message = WRONG[case]
  with pytest.raises(UserError, match=message):
    improvement(setting(mesh), **keys)


def test_given_drafts_must_be_there_and_fit(mesh):
  bare = [*EXAMPLES[:2], Example(prompt='p', where='rows.jsonl:9')]
  with pytest.raises(UserError, match='rows.jsonl:9'):
    improvement(setting(mesh, bare), drafts='given', **ONE)
  long = [Example(prompt='p', anchors=('a', 'much too long'))]
  with pytest.raises(UserError, match='answer_length=6 is too short for 1 of 1 drafts'):
    improvement(setting(mesh, long), drafts='given', **ONE)


# --- in a run -----------------------------------------------------------------------------------------------------

CONFIG = """
from configs import dpo

def get_config(arg=''):
  c = dpo.get_config('size=tiny,arm=sft')
  c.unlock()
  c.improve = dict(instruction='{prompt}|{draft}|', prompt_length=48, temperature=1.0)
  c.mesh.data = 1
  c.data.world.count = 8
  c.sft.curriculum.epochs = 1
  c.eval.update(chunk=4, answer_length=6, heldout='')
  c.eval.tasks = dict(pair_accuracy=dict(), improvement=dict(
    judges=dict(marks='past_jax.data.worlds.instructions:marks', model='likelihood'), baseline='self_refine'))
  return c.lock()
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(CONFIG)
  return path


def test_a_config_may_say_what_an_improver_reads(file):
  config = study.load_config(str(file))
  assert checks.check(config, 1) == []
  config.unlock()
  config.improve = {'instruction': '', 'prompt_lenth': 3, 'temperature': -1.0}
  told = ' '.join(checks.check(config, 1))
  assert 'config.improve.prompt_lenth: there is no such key' in told and 'prompt_length is missing' in told
  assert 'config.improve.temperature=-1.0 must be a number of at least 0' in told
  config.improve = {'instruction': '', 'prompt_length': 10_000, 'temperature': 1.0}
  assert any(
    'config.improve.prompt_length + eval.answer_length' in p
    for p in checks.check_model(config, models.load('scratch:tiny'))
  )
  del config['improve']
  assert checks.check(config, 1) == []
  with pytest.raises(UserError, match='config.eval.tasks.improvement: .*config.improve'):
    build.build_evaluation(config, models.load('scratch:tiny'), None, preferences(count=4, seed=0).examples)


def test_an_evaluation_waits_for_the_weights_of_its_roles(file, mesh):
  config, model = study.load_config(str(file)), models.load('scratch:tiny')
  evaluate, _, roles = build.build_evaluation(config, model, mesh, preferences(count=4, seed=0).examples)
  assert roles == {'policy', 'base'}
  metrics, samples = evaluate({'policy': model.read(mesh)})
  assert {name.split('/')[0] for name in metrics} == {'pairs'} == {sample['kind'] for sample in samples}


@pytest.mark.slow
def test_a_run_compares_with_its_first_model_also_after_a_stop(file, tmp_path, monkeypatch):
  command = ['study', f'--config={file}', f'--workdir={tmp_path}/run']
  real = train.Loop.tick

  def stop(loop, arrays):
    if loop.phase == 'evaluate' and loop.cursor.step:
      raise train.Stopped
    return real(loop, arrays)

  monkeypatch.setattr(train.Loop, 'tick', stop)
  assert main(command) == 0
  monkeypatch.undo()
  assert main(command) == 0
  before, after = (row['metrics'] for row in rows(tmp_path / 'run' / 'evaluations.jsonl'))
  untrained = {k: v for k, v in before.items() if '/baseline/' in k or k.endswith(('/draft', '/good'))}
  assert untrained and untrained == {k: after[k] for k in untrained}
  assert before['improvement/model/t1/i1/over_baseline'] == 0
  assert before['improvement/model/t1/i1/score'] != after['improvement/model/t1/i1/score']
