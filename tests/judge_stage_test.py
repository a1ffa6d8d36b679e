"""A run with a stage that trains its judge: who trains what, what drafts are, and that it goes on after a stop."""

import dataclasses

import jax
import numpy as np
import pytest
from small import assert_same

from past_jax import lora, train
from past_jax.checkpoint import Checkpoints
from past_jax.commands import study
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.render import renderer
from past_jax.settings import plain
from past_jax.text import byte_tokenizer
from past_jax.types import Example, Plan

SMALL = (
  *(f'--config.{key}' for key in ('data.world.count=24', 'data.limit=16', 'eval.skip=16', 'eval.limit=8')),
  *(f'--config.{key}' for key in ('eval.chunk=8', 'eval.answer_length=4', 'mesh.data=1', 'optimizer.lr=1e-2')),
  *(f'--config.{stage}.batch=8' for stage in ('imitate', 'fit', 'easy', 'hard')),
  *(f'--config.{stage}.sample_prompts=8' for stage in ('imitate', 'fit', 'easy', 'hard')),
  '--config.imitate.curriculum.epochs=1',
  '--config.fit.curriculum.epochs=2',
  *(f'--config.{stage}.curriculum.prompts=8' for stage in ('easy', 'hard')),
  *(f'--config.{stage}.generator.group=3' for stage in ('easy', 'hard')),
  *(f'--config.{stage}.rounds=1' for stage in ('easy', 'hard')),
)
WITHOUT = {'pit': (), 'policy': ('hard',)}


def run(workdir, *flags, arg='pit'):
  small = [flag for flag in SMALL if not flag.startswith(tuple(f'--config.{name}.' for name in WITHOUT[arg]))]
  return main(['study', f'--config=configs/pit.py:size=tiny,arm={arg}', f'--workdir={workdir}', *small, *flags])


def state(workdir):
  return Checkpoints(workdir / 'checkpoints').restore().tree


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('judge') / 'run'
  assert run(workdir, '--config.eval.every=1') == 0
  return workdir


def test_each_stage_trains_its_own_role(whole):
  found = rows(whole / 'metrics.jsonl')
  assert [row['stage'] for row in found] == ['imitate'] * 2 + ['fit'] * 4 + ['easy', 'hard']
  fit = found[2]
  assert fit['group/gap/loss'] == pytest.approx(5 * np.log(2), abs=1e-5) and fit['group/gap/rows'] == 8
  assert found[5]['group/gap/loss'] < fit['group/gap/loss']
  for row in found[6:]:  # the anchor of each stage is what the policy was when it began
    assert row['group/rloo/kl'] == pytest.approx(0, abs=1e-5) and row['judge/score_mean'] != 0
  tree = state(whole)
  assert set(tree) == {'state', 'ref', 'judge'} and set(tree['judge']) == {*tree['state']['params'], 'score'}
  body = jax.tree.leaves(tree['judge']['layers']), jax.tree.leaves(tree['state']['params']['layers'])
  assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(*body, strict=True))
  timing = (whole / 'timing.json').read_text()
  assert '"compile_count_after_first_round": 0' in timing


def test_evaluations_of_the_judge_begin_when_there_is_one(whole):
  found = {row['when']: row['metrics'] for row in rows(whole / 'evaluations.jsonl')}
  has = {when: 'judge/accuracy' in metrics for when, metrics in found.items()}
  assert has == {'before': False, 'stage fit': True, 'stage easy': True, 'stage hard': True, 'after': True}
  assert found['stage fit']['judge/loss'] == pytest.approx(np.log(2))  # a head of zeros
  assert found['after']['judge/accuracy'] == found['stage easy']['judge/accuracy']  # nobody trains it any more
  assert 0 <= found['after']['judge/calibration'] <= 1


def test_drafts_are_given_in_turn_and_then_sampled(whole):
  found = rows(whole / 'groups.jsonl')
  of = lambda stage: [row for row in found if row['stage'] == stage]
  assert all(row['prompt'].startswith(row['text']) and row['prompt'].endswith('>') for row in of('imitate'))
  (fit, *_), hard = of('fit'), of('hard')
  draft = lambda row: row['prompt'].removeprefix(row['text'])[:-1]
  orders = [c['text'] for c in fit['completions']]
  better, worse = orders[1].split('>')[0], orders[2].split('>')[0]
  shared = draft(fit) + fit['prompt'][-1] if not fit['prompt'].endswith('>') else ''
  assert better != worse and len(orders) == 4 and orders[0] == f'{worse}>{better}' and orders[3] == f'{better}>{worse}'
  assert not shared or (shared + better).startswith(shared)
  assert len({draft(row) for row in hard}) > 1  # the first model's own


@pytest.mark.parametrize('stage', ['fit', 'hard'])
def test_a_run_that_was_stopped_goes_on(whole, tmp_path, monkeypatch, stage):
  """In the middle of the stage that trains the judge, and in one that is judged by it, to the same bits."""
  real = train.Loop.log
  last = {'fit': 4, 'hard': 7}[stage]

  def log(loop, row, *args):
    real(loop, row, *args)
    if row and row['step'] == last - (stage == 'fit'):
      loop.stop.reason = 'the test'

  monkeypatch.setattr(train.Loop, 'log', log)
  assert run(tmp_path / 'run', '--config.eval.every=1') == 0
  monkeypatch.setattr(train.Loop, 'log', real)
  tree = state(tmp_path / 'run')
  assert len(rows(tmp_path / 'run' / 'metrics.jsonl')) == last
  assert ('policy' in tree) == (stage == 'fit') and ('judge' in tree) == (stage == 'hard')
  assert run(tmp_path / 'run', '--config.eval.every=1') == 0
  assert_same(state(tmp_path / 'run'), state(whole))


@pytest.mark.slow
def test_adapters_of_policy_and_judge_share_a_base(tmp_path):
  assert run(tmp_path / 'run', '--config.model.lora.rank=2') == 0
  tree = state(tmp_path / 'run')
  assert lora.is_adapters(tree['judge']) and lora.is_adapters(tree['state']['params'])
  assert set(tree['judge']) == {'layers', 'score'} and set(tree['state']['params']) == {'layers'}
  found = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert found[5]['group/gap/loss'] < found[2]['group/gap/loss']


@pytest.mark.slow
def test_a_policy_by_plain_rewards(tmp_path):
  """Bradley-Terry, without drafts; the same judge tells gaps to drafts."""
  assert run(tmp_path / 'run', arg='policy') == 0
  found = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert [row['stage'] for row in found] == ['imitate'] * 2 + ['fit'] * 4 + ['easy']
  assert found[2]['group/bradley_terry/loss'] == pytest.approx(np.log(2), abs=1e-6)


# --- rendering ----------------------------------------------------------------------------------------------------


def rendered(plan, examples, **view):
  config = study.load_config('configs/pit.py:size=tiny')
  keys = {**plain(config.view), **view}
  make = renderer(tokenizer=byte_tokenizer(), completion_length=12, improve=plain(config.improve), **keys)
  return make(examples, plan).sample


def rows_of(prompts):
  """Ids of every prompt with each of its given completions."""
  out = []
  for ids, n, given, lengths in zip(
    prompts.ids_BxP, prompts.length_B, prompts.given.ids_BxAxT, prompts.given.length_BxA
  ):
    out.append([[*ids[len(ids) - n :].tolist(), *row[:k].tolist()] for row, k in zip(given, lengths)])
  return out


PAIR = Example(prompt='abcd>', anchors=('aacc', 'aadd'))


def test_the_four_orders_are_the_rows_that_an_improver_would_be_given():
  """What two prompts share is computed once; the tokens are those of each prompt with its response behind it."""
  (orders,) = rows_of(rendered(Plan(anchor_source='given', draft='orders'), [PAIR]))
  expected = []
  for draft, response in (('aadd', 'aacc'), ('aacc', 'aacc'), ('aadd', 'aadd'), ('aacc', 'aadd')):
    example = dataclasses.replace(PAIR, anchors=(response, draft))
    expected += rows_of(rendered(Plan(anchor_source='given', draft='rejected'), [example]))[0]
  assert orders == expected


@pytest.mark.parametrize(
  'draft, drafts', [('rejected', ['aadd', 'aadd']), ('chosen', ['aacc', 'aacc']), ('given', ['aacc', 'aadd'])]
)
def test_a_draft_is_in_the_prompt_and_the_better_response_behind_it(draft, drafts):
  found = rows_of(rendered(Plan(anchor_source='given', draft=draft), [PAIR, PAIR]))
  tokenizer = byte_tokenizer()
  assert [tokenizer.decode(row[:-1]) for (row,) in found] == [f'abcd>{d}>aacc' for d in drafts]


def test_a_draft_that_is_too_long_is_cut_and_counted():
  config = study.load_config('configs/pit.py:size=tiny')
  make = renderer(tokenizer=byte_tokenizer(), completion_length=12, improve=plain(config.improve), **plain(config.view))
  long = dataclasses.replace(PAIR, anchors=('a' * 30, 'b'))
  found = make([long, PAIR], Plan(anchor_source='given', draft='orders'))
  assert found.trimmed['drafts'] == 1 and found.trimmed['anchors'] == 2  # and the long response itself, twice
