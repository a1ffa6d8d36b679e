"""Rows of earlier rounds: where they go, and that a run with a buffer learns from them and resumes to the same bits."""

import functools
import json

import jax
import numpy as np
import pytest

from past_jax import mesh as mesh_lib
from past_jax import models, train
from past_jax.buffer import append, fresh, ring
from past_jax.checkpoint import Checkpoints
from past_jax.logps import group_logps
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.settings import rows_of, updates
from past_jax.types import Batch, Plan, Prompts, Selection


def batch_of(rows_):
  """A batch whose every array says which row it is."""
  x = np.asarray(rows_, np.float32)[:, None]
  ids = np.broadcast_to(x[..., None], (len(rows_), 1, 3)).astype(np.int32)
  selection = Selection(*(x.astype(kind) for kind in (int, int, float, float, float, int)))
  return Batch(Prompts(ids[:, 0], x[:, 0].astype(np.int32)), ids, x.astype(np.int32), None, ids / 2, x, selection)


def test_append_keeps_all_and_a_ring_the_last():
  for make, kept in ((append, [1, 2, 3, 4, 5, 6]), (ring, [1, 2, 3, 4, 5, 6])):
    buffer, held = make(6), None
    for before, new in ((0, [1, 2]), (2, [3, 4]), (4, [5, 6])):
      held = buffer.put(held, batch_of(new), before)
      again = buffer.put(held, batch_of(new), before)  # a round that is collected again
      jax.tree.map(np.testing.assert_array_equal, held, again)
      assert held.length_BxG[:, 0].tolist() == kept[: before + 2] + [0] * (4 - before)
      assert buffer.filled(before, 2) == before + 2
    assert held.ref_logps_BxGxT is None and held.old_logps_BxGxT[:, 0, 0].tolist() == [x / 2 for x in kept]
    assert held.selection.pair_weight_BxJ[:, 0].tolist() == kept
  held = ring(6).put(held, batch_of([7, 8, 9, 10]), 6)
  assert held.length_BxG[:, 0].tolist() == [7, 8, 9, 10, 5, 6]
  assert ring(6).places(10, 4).tolist() == [4, 5, 0, 1] and ring(6).filled(10, 4) == 6
  assert fresh().places(10, 4).tolist() == [0, 1, 2, 3] and fresh().filled(10, 4) == 4


def test_a_round_updates_on_all_rows_that_there_are():
  plans = [Plan(prompts=n, epochs=epochs) for n, epochs in ((8, 1), (6, 2), (4, 1))]
  assert [rows_of(plan, 4) for plan in plans] == [8, 8, 4]  # the second one's last minibatch is filled up
  assert updates(plans, 4, fresh()) == [2, 4, 1]
  assert updates(plans, 4, append(20)) == [2, 8, 5]
  assert updates(plans, 4, ring(12)) == [2, 6, 3]


# --- in a run -----------------------------------------------------------------------------------------------------

DATA = [{'prompt': f'{a}+{b}=', 'target': str(a + b)} for a in range(1, 5) for b in range(1, 5)]
FLAGS = (
  *('--config.mesh.data=1', '--config.eval.heldout=', '--config.sharpen.reference.role=policy'),
  *('--config.sharpen.batch=4', '--config.sharpen.sample_prompts=4', '--config.sharpen.generator.length=6'),
  '--config.sharpen.rounds=3',
  "--config.sharpen.curriculum={'name': 'constant', 'temperature': 1.0, 'prompts': 4, 'epochs': 1}",
)


def study(folder, *flags, size=12):
  keep = f"--config.sharpen.buffer={{'name': 'append', 'size': {size}}}"
  data = folder / 'tasks.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in DATA))
  flags = (*FLAGS, f'--config.data.source={data}', keep, *flags)
  return main(['study', '--config=configs/sharpen.py:size=tiny,arm=xpo', f'--workdir={folder}/run', *flags])


def final(folder):
  return Checkpoints(folder / 'run' / 'checkpoints').restore().tree


def steps_of(folder):
  return [{k: v for k, v in row.items() if not k.startswith('perf/')} for row in rows(folder / 'run' / 'metrics.jsonl')]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  assert study(folder) == 0
  return folder


def test_rounds_learn_from_earlier_ones_and_references_stay(whole):
  steps = steps_of(whole)
  assert [row['round'] for row in steps] == [1, 2, 2, 3, 3, 3]
  assert all(row['group/rebel/pairs'] == 4 and row['group/optimism/rows'] == 4 for row in steps)
  assert json.loads((whole / 'run' / 'timing.json').read_text())['compile_count_after_first_round'] == 0
  # Only the first round's reference is the policy; the rows that are kept have that of their own round.
  margins = [abs(row['rewards/margins']) for row in steps]
  assert margins[0] < 1e-5 < 1e-2 < min(max(margins[1:3]), max(margins[3:]))
  assert steps[0]['learning_rate'] > steps[-1]['learning_rate'] > 0  # one schedule over all six
  batch = final(whole)['batch']
  assert batch['length_BxG'].shape == (12, 2) and (batch['length_BxG'] > 0).all()
  assert {'coverage/log_c_cov', 'coverage/right', 'coverage/best_right'} <= set(steps[0])


def test_the_reward_stays_that_of_the_base(whole):
  """In every round: log p under the weights before the first update, not under those that the rounds made."""
  tree, model = final(whole), models.load('scratch:tiny')
  batch = tree['batch']
  prompts = Prompts(batch['prompts.ids_BxP'], batch['prompts.length_B'])
  score = jax.jit(functools.partial(group_logps, model.policy))
  logps = lambda params: score(params, prompts, batch['ids_BxGxT'], batch['length_BxG']).sum(-1)
  base = logps(model.read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1})))
  np.testing.assert_allclose(batch['selection.score_BxG'], base, rtol=1e-5)
  assert np.abs(logps(tree['state']['params']) - base).min() > 1e-3


@pytest.mark.parametrize('where', [pytest.param('sample', marks=pytest.mark.slow), 'update'])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, where):
  """Stops while round 2 is sampled, and between two updates of it."""
  real_tick, real_log = train.Loop.tick, train.Loop.log

  def tick(loop, arrays):
    if where == 'sample' and loop.phase == 'sample' and loop.cursor.round == 1:
      raise train.Stopped
    return real_tick(loop, arrays)

  def log(loop, row, *args):
    real_log(loop, row, *args)
    if where == 'update' and loop.cursor.round == 1:
      monkeypatch.setattr(type(loop.stop), 'requested', property(lambda self: True))

  monkeypatch.setattr(train.Loop, 'tick', tick)
  monkeypatch.setattr(train.Loop, 'log', log)
  assert study(tmp_path) == 0
  monkeypatch.undo()
  assert len(steps_of(tmp_path)) < 6
  n = {'sample': 4, 'update': 8}[where]  # rows that were there, with their references, are there at the end
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x[:n], y[:n]), final(tmp_path)['batch'], final(whole)['batch']
  )
  assert study(tmp_path) == 0
  jax.tree.map(np.testing.assert_array_equal, final(whole), final(tmp_path))
  assert steps_of(tmp_path) == steps_of(whole)


def test_a_buffer_that_is_too_small_is_refused_before_the_model_is_read(tmp_path, capsys):
  assert study(tmp_path, size=8) == 2
  said = capsys.readouterr().err
  assert "buffer.size=8 is less than the 12 prompts that all rounds have, and 'append' keeps them all." in said
