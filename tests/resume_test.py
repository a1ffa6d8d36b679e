"""A run that was stopped within a round goes on on any mesh: the same losses and updates on the same given pairs."""

import shutil

import jax
import numpy as np
import pytest
from processes import mesh, study

from past_jax.checkpoint import Checkpoints
from past_jax.metrics import rows

pytestmark = pytest.mark.slow

# 16 given pairs in minibatches of 8: two updates an epoch. The stop is within the epoch, so that the pairs, their
# reference log-probs and their selection come from the checkpoint.
CONFIG = 'configs/dpo.py:size=tiny'
FLAGS = ('--config.data.world.count=16', '--config.dpo.curriculum.epochs=2')
FLAGS += ("--config.optimizer={'name':'sgd','lr':0.05,'momentum':0.9,'schedule':'constant','warmup':0.0,'end':1.0}",)
EIGHT = (2, 2, 2)
STOP = """
from past_jax import train
real = train.Loop.log
def log(loop, row, *args):
  real(loop, row, *args)
  if row and row['step'] == 1: loop.stop.reason = 'the test'
train.Loop.log = log
"""


def state(workdir):
  restored = Checkpoints(workdir / 'checkpoints').restore()
  return restored.step, jax.tree.leaves(restored.tree['state'])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run on eight devices."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  study(workdir, CONFIG, *FLAGS, *mesh(*EIGHT))
  assert [row['step'] for row in rows(workdir / 'metrics.jsonl')] == [1, 2, 3, 4]
  return workdir


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """The same, stopped after its second update."""
  workdir = tmp_path_factory.mktemp('stopped') / 'run'
  (said,) = study(workdir, CONFIG, *FLAGS, *mesh(*EIGHT), patches={0: STOP})
  assert 'saved at step 2' in said
  return workdir


@pytest.mark.parametrize(
  'axes, count', [(EIGHT, 1), ((1, 1, 1), 1), ((1, 2, 1), 1), ((2, 1, 2), 1), (EIGHT, 2), ((2, 4, 1), 2)]
)
def test_a_checkpoint_of_eight_devices_goes_on(whole, stopped, tmp_path, axes, count):
  run = tmp_path / 'run'
  shutil.copytree(stopped, run)
  said = study(run, CONFIG, *FLAGS, *mesh(*axes), devices=int(np.prod(axes)), count=count)
  assert 'resuming from checkpoint 2' in said[0]
  a, b = rows(whole / 'metrics.jsonl'), rows(run / 'metrics.jsonl')
  assert [row['step'] for row in b] == [1, 2, 3, 4]
  for x, y in zip(a, b):
    x, y = ({k: v for k, v in row.items() if isinstance(v, float) and not k.startswith('perf/')} for row in (x, y))
    assert x == y if (axes, count) == (EIGHT, 1) else y == pytest.approx(x, abs=1e-5)
  one, other = state(whole), state(run)
  assert one[0] == other[0] == 4
  for x, y in zip(one[1], other[1], strict=True):
    if (axes, count) == (EIGHT, 1):
      np.testing.assert_array_equal(x, y)
    else:
      np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)
  assert max(float(np.abs(x - y).max()) for x, y in zip(state(stopped)[1], one[1])) > 1e-3  # there was something to do
