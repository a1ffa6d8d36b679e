"""Preference data: rows prompt/chosen/rejected, chats, what weighs nothing, one reference for all updates."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from past_jax import collect, lora, models, train
from past_jax.checkpoint import Checkpoints
from past_jax.data import sources
from past_jax.data.worlds.instructions import preferences
from past_jax.generators import given
from past_jax.logps import group_logps
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.render import filled, renderer
from past_jax.text import CHATML, byte_tokenizer, pack_completions, pack_prompts
from past_jax.types import Completions, Example, Plan, Prompts, UserError

COLUMNS = {'prompt': 'prompt', 'chosen': 'chosen', 'rejected': 'rejected'}
IMPLICIT = {'chosen': 'chosen', 'rejected': 'rejected'}
ASK, GOOD, BAD = (
  {'role': role, 'content': text} for role, text in (('user', 'Two?'), ('assistant', '2'), ('assistant', 'no'))
)
STRINGS = {'prompt': 'Two?', 'chosen': ' 2', 'rejected': ' no'}
CHAT = {'prompt': [ASK], 'chosen': [GOOD], 'rejected': [BAD]}


def write(path, table):
  path.write_text(''.join(json.dumps(row) + '\n' for row in table))
  return str(path)


# --- reading ------------------------------------------------------------------------------------------------------


def test_columns_become_a_prompt_and_two_anchors(tmp_path):
  path = write(tmp_path / 'a.jsonl', [STRINGS, STRINGS | {'chosen': None}])
  first, second = sources.load(path, columns=COLUMNS).examples
  assert first == Example(prompt='Two?', anchors=(' 2', ' no'), where=f'{path}:1')
  assert second.anchors == ('', ' no')


def test_chats_and_the_prompt_that_both_begin_with(tmp_path):
  path = write(tmp_path / 'a.jsonl', [CHAT])
  (explicit,) = sources.load(path, columns=COLUMNS).examples
  assert explicit == Example(prompt='Two?', anchors=((GOOD,), (BAD,)), messages=(ASK,), where=f'{path}:1')
  write(tmp_path / 'a.jsonl', [{'chosen': [ASK, GOOD], 'rejected': [ASK, BAD]}])
  assert sources.load(path, columns=IMPLICIT).examples == (explicit,)
  # P6: what both share is the prompt, an answer among it, and two that are the same have nothing left to differ in.
  write(tmp_path / 'a.jsonl', [{'chosen': [ASK, BAD, ASK, GOOD], 'rejected': [ASK, BAD, ASK, GOOD]}])
  (same,) = sources.load(path, columns=IMPLICIT).examples
  assert same.messages == (ASK, BAD, ASK, GOOD) and same.anchors == ((), ())


def test_a_number_may_say_which_is_better(tmp_path):
  numbers = [1, 1.49, 2.0, 1.5000001]
  path = write(tmp_path / 'a.jsonl', [STRINGS | {'p': p} for p in numbers])
  found = sources.load(path, columns=COLUMNS | {'preference': 'p'}).examples
  assert [e.anchors == (' 2', ' no') for e in found] == [True, True, False, False]
  assert {e.anchors for e in found} == {(' 2', ' no'), (' no', ' 2')}


@pytest.mark.parametrize(
  'row, columns, message',
  [
    (STRINGS | {'chosen': 3}, COLUMNS, "chosen (column 'chosen') must be a string, not a number"),
    (STRINGS | {'chosen': [GOOD]}, COLUMNS, 'lists of messages and the prompt is not'),
    (CHAT | {'chosen': '2', 'rejected': 'no'}, COLUMNS, 'must be lists of messages'),
    (STRINGS, IMPLICIT, 'there is no prompt that is a string'),
    (CHAT | {'rejected': ['no']}, COLUMNS, "rejected (column 'rejected') item 0 must be a message"),
    (CHAT | {'rejected': [{'role': 'assistant', 'content': 5}]}, COLUMNS, 'item 0 content must be a string'),
    ({'chosen': [GOOD], 'rejected': [BAD]}, IMPLICIT, 'no prompt that they share'),
    ({'prompt': 'x', 'good': 'a', 'bad': 'b'}, COLUMNS, "no column 'chosen'"),
    (STRINGS, {'prompt': 'prompt', 'chosen': 'chosen'}, 'set both --config.data.chosen and'),
    (STRINGS | {'p': 1.5}, COLUMNS | {'preference': 'p'}, "preference (column 'p') is 1.5: a tie"),
    (STRINGS | {'p': 0}, COLUMNS | {'preference': 'p'}, 'must be a number from 1, the first is better, to 2'),
    (STRINGS, COLUMNS | {'anchors': 'a'}, 'leave one of them out'),
  ],
)
def test_what_a_row_may_not_be(tmp_path, row, columns, message):
  with pytest.raises(UserError) as e:
    sources.load(write(tmp_path / 'a.jsonl', [row]), columns=columns)
  assert message in str(e.value)


def test_the_world_of_preferences():
  """Right answers are computed here again; of two anchors the first has the better marks."""
  world = preferences(200, 3).examples
  do = {
    'sort': lambda s: ''.join(sorted(s)),
    'reverse': lambda s: s[::-1],
    'rotate': lambda s: s[1:] + s[0],
    'unique': lambda s: ''.join(c for i, c in enumerate(s) if c not in s[:i]),
  }
  mark = {'spaces': ' ', 'commas': ',', 'dashes': '-'}

  def score(example, answer):
    task, *symbols, _, form = example.prompt.rstrip(':').split()
    right = do[task](''.join(symbols))
    assert example.target == ' ' + mark[form].join(right)
    letters = ''.join(c for c in answer.split(' ok')[0] if c in 'abcdefgh')
    junk = answer.endswith((' ok', '!', ' ...'))
    return (letters == right) + (answer[2] == mark[form]) + (not junk)

  assert all(score(e, e.anchors[0]) > score(e, e.anchors[1]) for e in world)
  right = np.mean([e.anchors[0] == e.target for e in world])
  assert 0.8 < right < 0.97  # imperfect: else imitation of the chosen would do
  flipped = preferences(200, 3, flips=0.25).examples
  turned = [a.anchors == b.anchors[::-1] for a, b in zip(world, flipped)]
  assert 35 < sum(turned) < 65 and all(t or a == b for t, a, b in zip(turned, world, flipped))
  assert preferences(50, 3).examples == world[:50]


# --- rendering ----------------------------------------------------------------------------------------------------


def rendered(tokenizer, *examples, T=24, **options):
  shape = dict(instruction='{prompt}', prompt_length=64, text_length=8, completion_length=T, anchors=2)
  return renderer(tokenizer=tokenizer, **(shape | options))(examples, Plan(anchor_source='given'))


def given_ids(found, b=0):
  g = found.sample.given
  return [ids[:n].tolist() for ids, n in zip(g.ids_BxAxT[b], g.length_BxA[b])]


def test_p2_completions_end_once(tokenizer):
  eos = tokenizer.eos_id
  example = Example(prompt='p', anchors=('yes', 'yes<|eos|>'))
  assert given_ids(rendered(tokenizer, example)) == [[*b'yes', eos]] * 2
  assert given_ids(rendered(tokenizer, example, T=3)) == [[*b'yes']] * 2  # cut: no end
  assert given_ids(rendered(tokenizer, Example(prompt='p', anchors=('', 'a')))) == [[], [*b'a', eos]]


@pytest.mark.parametrize('adds_bos', [False, True])
def test_a_chat_is_what_the_template_writes(adds_bos):
  tokenizer = byte_tokenizer(adds_bos)
  found = rendered(tokenizer, Example(prompt='Two?', messages=(ASK,), anchors=((GOOD,), ())))
  n = int(found.sample.length_B[0])
  prompt = found.sample.ids_BxP[0, -n:].tolist()
  assert prompt == tokenizer.chat([ASK])
  chosen, rejected = given_ids(found)
  whole = tokenizer.decode(prompt + chosen)
  assert whole == '<|bos|>' * adds_bos + '<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n'
  assert rejected == []  # and its one end token is the template's
  assert sum(i in tokenizer.stop_ids for i in chosen) == 1


def test_templates_without_an_end_and_without_a_prefix():
  plain = byte_tokenizer()
  plain.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
  )
  example = Example(prompt='Two?', messages=(ASK,), anchors=((GOOD,), (BAD,)))
  assert given_ids(rendered(plain, example))[0] == [*b'2\n', plain.eos_id]
  plain.chat_template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>other\n'")
  with pytest.raises(UserError, match='completions cannot be told from the prompt'):
    rendered(plain, example)


def test_rows_that_fill_up_repeat_and_say_nothing(tokenizer):
  examples = [Example(prompt=c, text=c, anchors=(c, 'x')) for c in 'abc']
  whole = filled(rendered(tokenizer, *examples), 8)
  assert whole.sample.ids_BxP[:, -1].tolist() == [*b'abcabcab']
  assert whole.text.length_BxG[:, 0].tolist() == [2, 2, 2, 0, 0, 0, 0, 0]


def test_mismatched_completions_are_the_prompt_befores():
  ids, prompt = np.arange(12, dtype=np.int32).reshape(3, 2, 2), np.array([[1], [2], [2]], np.int32)
  prompts = Prompts(prompt, np.ones(3, np.int32), Completions(ids, np.full((3, 2), 2, np.int32)))
  group = given(mismatched=True)({}, None, prompts, 1.0)
  assert np.asarray(group.length_BxG).tolist() == [[2] * 4, [2] * 4, [2, 2, 0, 0]]  # the prompt before is the same
  assert np.asarray(group.ids_BxGxT)[:, 2:].tolist() == ids[[2, 0, 1]].tolist()
  assert np.asarray(group.source_BxG).tolist() == [[-1, -1, -2, -2]] * 3
  one = jax.tree.map(lambda x: x[:1], prompts)
  with pytest.raises(UserError, match='sample_prompts must be above 1'):
    given(mismatched=True)({}, None, one, 1.0)


# --- the run ------------------------------------------------------------------------------------------------------

TINY = (
  '--config.mesh.data=1',
  '--config.eval.heldout=',
  '--config.data.questions=',
  '--config.view.prompt_length=16',
  '--config.view.text_length=8',
  '--config.dpo.batch=4',
  '--config.dpo.sample_prompts=4',
  '--config.dpo.curriculum.epochs=2',
)
# Six pairs of which four say something: two minibatches, the second with two rows to fill it up.
PAIRS = [{'prompt': 'empty', 'chosen': '', 'rejected': ' x'}, {'prompt': 'same', 'chosen': ' x', 'rejected': ' x'}]
PAIRS += [{'prompt': f'{i} plus one is', 'chosen': f' {i + 1}', 'rejected': ' not' * i} for i in range(1, 5)]


def study(workdir, path, *flags, arg='size=tiny'):
  data = [f'--config.data.source={path}'] if path else []
  return main(['study', f'--config=configs/dpo.py:{arg}', f'--workdir={workdir}', *TINY, *data, *flags])


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  return write(tmp_path_factory.mktemp('data') / 'pairs.jsonl', PAIRS)


def test_a_file_of_pairs_is_scored_once_and_read_in_its_order(pairs, tmp_path, monkeypatch, capsys):
  """One scoring pass, of every pair once; no second model is there while updates run; what says nothing is counted.

  With a learning rate of 0 the log-probs of a minibatch tell which rows it was.
  """
  calls, alive = [], []
  real_score, real_step = collect.score, train.bucketed_step

  def score(*args):
    calls.append(len(args[2].length_BxG))
    return real_score(*args)

  def live() -> int:
    return sum(x.size for x in jax.live_arrays() if x.ndim > 1 and x.dtype == np.float32)

  def bucketed_step(loop, stage):
    step = real_step(loop, stage)

    def counted(*args):
      alive.append(live() - before)
      return step(*args)

    counted.prepare = step.prepare
    return counted

  monkeypatch.setattr(collect, 'score', score)
  monkeypatch.setattr(collect, 'sampler_gap', lambda *args: pytest.fail('nothing was sampled'))
  monkeypatch.setattr(train, 'bucketed_step', bucketed_step)
  before = live()
  assert study(tmp_path / 'run', pairs, '--config.data.shuffle=false', '--config.optimizer.lr=0.0') == 0
  assert calls == [8]
  steps = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert [row['group/dpo/pairs'] for row in steps] == [2, 2, 2, 2]
  assert steps[0]['study/unpaired'] == 2 and steps[0]['check/sampler_gap'] == 0
  assert '2 of 6 prompts have no pair to learn from' in capsys.readouterr().err
  assert [row['rewards/margins'] for row in steps] == pytest.approx([0] * 4, abs=1e-6)
  assert len(rows(tmp_path / 'run' / 'groups.jsonl')) == 6

  params = Checkpoints(tmp_path / 'run' / 'checkpoints').restore().tree['state']['params']
  model = models.load('scratch:tiny')
  score_row = jax.jit(partial(group_logps, model.policy))

  def logps(row, side):
    t = model.tokenizer
    ids, length, _ = pack_completions([[[*t.encode(row[side]), t.eos_id][:8]]], 8)
    prompts = Prompts(*pack_prompts([t.plain(row['prompt'])], 16)[:2])
    return float(score_row(params, prompts, ids, length).sum())

  for side in ('chosen', 'rejected'):  # the mean of the second is not pulled down by what fills it up
    alone = [logps(row, side) for row in PAIRS[2:]]
    expected = [np.mean(alone[:2]), np.mean(alone[2:])] * 2
    assert [row[f'logps/{side}'] for row in steps] == pytest.approx(expected, abs=1e-4)

  trained = sum(x.size for x in jax.tree.leaves(params))
  assert max(alive) < 3.3 * trained  # the parameters, their two moments, and a small batch
  timing = json.loads((tmp_path / 'run' / 'timing.json').read_text())
  assert timing['compile_count_after_first_round'] == 0


def test_pairs_are_compared_with_the_start_of_the_run(pairs, tmp_path):
  tasks = "--config.eval.tasks={'pair_accuracy': {}}"
  assert study(tmp_path / 'run', pairs, tasks, '--config.data.limit=4', '--config.optimizer.lr=0.01') == 0
  before, after = rows(tmp_path / 'run' / 'evaluations.jsonl')
  assert 'pairs/accuracy' not in before['metrics'] and after['metrics']['pairs/accuracy/n'] == 4
  moved = [b['margin'] - a['margin'] for a, b in zip(before['samples'], after['samples'])]
  assert after['metrics']['pairs/accuracy'] == np.mean([(np.sign(m) + 1) / 2 for m in moved])


@pytest.mark.parametrize('role', ['base', 'ref'])
def test_other_roles_wait_on_the_host(pairs, tmp_path, monkeypatch, role):
  real, seen = train.Loop.log, []

  def log(loop, *args):
    seen.append((loop.base, loop.ref))
    return real(loop, *args)

  monkeypatch.setattr(train.Loop, 'log', log)
  flags = (f'--config.dpo.reference.role={role}', '--config.data.limit=4')
  assert study(tmp_path / 'run', pairs, *flags) == 0
  for base, ref in seen:
    held = base if role == 'base' else ref
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(held)) and jax.tree.leaves(held)
    assert (ref if role == 'base' else base) is None


def test_p14_a_changed_reference_is_refused_on_resuming(pairs, mesh, tmp_path, monkeypatch, capsys):
  """Stopped between two updates, the run ends the same; with another base behind its stored log-probs it does not."""
  real_log, real_load = train.Loop.log, models.load

  def request(loop, row, *args):
    real_log(loop, row, *args)
    monkeypatch.setattr(type(loop.stop), 'requested', property(lambda self: True))

  flags = ('--config.dpo.reference.role=base',)
  assert study(tmp_path / 'whole', pairs, *flags) == 0
  monkeypatch.setattr(train.Loop, 'log', request)
  assert study(tmp_path / 'run', pairs, *flags) == 0
  monkeypatch.undo()
  host = json.loads(next((tmp_path / 'run' / 'checkpoints').glob('*/host.json')).read_text())
  base = models.load('scratch:tiny').read(mesh)
  assert host['scored_by'] == {'role': 'base', 'fingerprint': int(lora.fingerprint(base))}
  with monkeypatch.context() as patched:
    patched.setattr(models, 'load', lambda *args, **kwargs: real_load(*args, **{**kwargs, 'seed': 1}))
    assert study(tmp_path / 'run', pairs, *flags) == 2
  error = capsys.readouterr().err
  assert "are of other weights than the role 'base' has now: scratch:tiny has changed" in error
  assert study(tmp_path / 'run', pairs, *flags) == 0
  final = lambda name: jax.tree.leaves(Checkpoints(tmp_path / name / 'checkpoints').restore().tree['state']['params'])
  for a, b in zip(final('whole'), final('run'), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_sft_then_dpo_against_it(tmp_path):
  flags = [flag.replace('dpo.', 'sft.') for flag in TINY if 'dpo.' in flag]
  flags += ['--config.data.world.count=8', '--config.view.prompt_length=40', '--config.view.text_length=16']
  assert study(tmp_path / 'run', '', *flags, arg='size=tiny,arm=sft+dpo') == 0
  steps = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert [row['stage'] for row in steps] == ['sft'] * 4 + ['dpo'] * 4
  assert steps[4]['group/dpo/loss'] == pytest.approx(np.log(2), abs=1e-5)


def test_chats_need_the_instruction_that_adds_nothing(tmp_path, capsys):
  path = write(tmp_path / 'a.jsonl', [CHAT])
  assert study(tmp_path / 'run', path, '--config.view.instruction=Say: {prompt}') == 2
  assert 'Set --config.view.instruction={prompt}' in capsys.readouterr().err
