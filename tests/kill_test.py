"""A real process, killed at chosen moments and started again with the same command, ends with the same bits."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from past_jax.checkpoint import Checkpoints
from past_jax.metrics import rows

pytestmark = pytest.mark.slow

FLAGS = (
  '--config=configs/past.py:size=tiny',
  '--config.eval.questions=4',
  '--config.eval.chunk=4',
  '--config.eval.answer_length=4',
)

# Each makes the process SIGKILL itself at a moment; the run itself is the real command.
DIE = 'import os, signal\nfrom past_jax import checkpoint, train\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n'
MOMENTS = {
  'while sampling in round 2': """
real = train.Loop.tick
def tick(loop, arrays):
  if loop.phase == 'sample' and loop.cursor.round == 1: die()
  return real(loop, arrays)
train.Loop.tick = tick
""",
  'between two updates': """
real = train.Loop.log
def log(loop, row, *args):
  real(loop, row, *args)
  if row and row['step'] == 3: die()
train.Loop.log = log
""",
  'before the first checkpoint has its manifest': """
checkpoint._seal = lambda *args: die()
""",
  'before the second checkpoint has its manifest': """
real, calls = checkpoint._seal, []
def seal(*args):
  calls.append(1)
  return die() if len(calls) == 2 else real(*args)
checkpoint._seal = seal
""",
  'in the middle of a row of metrics': """
from past_jax import metrics
def append(writer, name, row):
  file = writer._files[name]
  if name == 'metrics.jsonl' and row['step'] == 3:
    file.write('{"step": 3, "lo'); file.flush(); die()
  real(writer, name, row)
real = metrics.MetricsWriter._append
metrics.MetricsWriter._append = append
""",
}


def start(workdir, patch=''):
  code = f'{DIE}{patch}\nimport sys\nfrom past_jax.main import main\nsys.exit(main(sys.argv[1:]))'
  command = [sys.executable, '-c', code, 'study', f'--workdir={workdir}', *FLAGS]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process, code=0):
  out, error = process.communicate(timeout=600)
  assert process.returncode == code, error
  return error


def outcome(workdir, checkpoints=None):
  restored = (checkpoints or Checkpoints(workdir / 'checkpoints')).restore()
  strip = lambda row: {k: v for k, v in row.items() if not k.startswith('perf/')}
  metrics = [strip(row) for row in rows(workdir / 'metrics.jsonl')]
  return restored.step, jax.tree.leaves(restored.tree['state']), metrics, rows(workdir / 'groups.jsonl')


def assert_same(a, b):
  assert a[0] == b[0]
  assert all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
  assert a[2:] == b[2:]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  finish(start(workdir))
  return outcome(workdir)


@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_and_started_again(whole, tmp_path, moment):
  finish(start(tmp_path / 'run', MOMENTS[moment]), -signal.SIGKILL)
  finish(start(tmp_path / 'run'))
  assert_same(outcome(tmp_path / 'run'), whole)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(whole, tmp_path, number):
  process = start(tmp_path / 'run')
  file = tmp_path / 'run' / 'metrics.jsonl'
  while process.poll() is None and not (file.exists() and file.stat().st_size):
    time.sleep(0.05)
  process.send_signal(number)
  error = finish(process)
  assert 'saved at step' in error and 'The same command resumes' in error
  finish(start(tmp_path / 'run'))
  assert_same(outcome(tmp_path / 'run'), whole)
