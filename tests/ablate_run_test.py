"""A sweep of real runs: prepared, stopped, resumed, with an arm that fails; processes, logs and locks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from past_jax.ablate import plan, run
from past_jax.main import main
from past_jax.types import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SWEEP = """
from past_jax.ablate.sweep import Arm, Claim, Sweep, difference

CONFIG = 'configs/past.py:size=tiny,arm=raw'
SHORT = {'mesh.data': 1, 'data.world.count': 8, 'study.rounds': 1, 'study.curriculum.epochs': 1, 'eval.heldout': ''}


def get_sweep():
  return Sweep(
    about='As small as it gets.',
    prepare={'base': Arm(CONFIG, SHORT)},
    arms={
      'slow': Arm(CONFIG, SHORT | {'optimizer.lr': 1e-4}, start='base'),
      'fast': Arm(CONFIG, SHORT | {'optimizer.lr': 1e-2}, start='base'),
      'broken': Arm(CONFIG, SHORT | {'data.source': 'nowhere.jsonl'}),
    },
    claims=(
      Claim('X1', (difference('fast', 'slow', 'after:closed_book/forward/logp', '+'),), 'speed pays'),
      Claim('X2', (difference('broken', 'slow', 'tail:loss', '-'),), 'nothing pays'),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'eval.questions': 4},
    budget='tokens',
    tolerance=0.2,
    fewest=3,
  )
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  path = tmp_path / 'sweeps' / 'tiny.py'
  path.parent.mkdir()
  path.write_text(SWEEP)
  return path


def test_a_sweep_from_nothing_to_its_figure(sweep, tmp_path, capsys):
  argv = ['ablate', str(sweep), f'--workdir={tmp_path / "runs"}', '--seeds=2', '--jobs=2']
  results = sweep.parent / 'results' / 'tiny.json'
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  process = subprocess.Popen([sys.executable, '-m', 'past_jax.main', *argv], env=environment, stderr=subprocess.PIPE)
  while not (results.exists() and json.loads(results.read_text())['runs']):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, error = process.communicate(timeout=120)
  assert process.returncode == 0 and b'The same command goes on.' in error
  runs = json.loads(results.read_text())['runs']
  assert 0 < len(runs) < 6

  assert main(argv) == 1
  out, error = capsys.readouterr()
  assert 'FAILED' in error and '2 runs failed' in error
  content = json.loads(results.read_text())
  ended = {(r['arm'], r['seed']): r for r in content['runs']}
  assert set(ended) == {(arm, seed) for arm in ('slow', 'fast', 'broken') for seed in (0, 1)}
  assert all(('nowhere.jsonl' in r['error']) == (arm == 'broken') for (arm, _), r in ended.items())
  for r in runs:
    assert r['error'] or ended[r['arm'], r['seed']] == r  # what was on file was not run again
  (contrast,) = content['claims']['X1']['contrasts']
  values = [
    ended['fast', s]['figures'][contrast['metric']] - ended['slow', s]['figures'][contrast['metric']] for s in (0, 1)
  ]
  assert list(contrast['values'].values()) == values and contrast['mean'] > 0
  assert (content['claims']['X1']['verdict'], content['claims']['X1']['seeds']) == ('not run', 2)
  assert ended['slow', 0]['figures']['before:closed_book/forward/questions'] == 2  # of 4: both kinds
  assert ended['slow', 0]['config'] != ended['slow', 1]['config'] and ended['slow', 0]['tokens'] > 0
  assert '<svg' in results.with_suffix('.svg').read_text()
  assert '![Arms of tiny](tiny.svg)' in results.with_suffix('.md').read_text()
  assert 'X1' in out

  sweep.write_text(SWEEP.replace("'data.source': 'nowhere.jsonl'", "'optimizer.lr': 1e-3"))
  assert main([*argv, '--only=X1']) == 0  # what failed was of another config, and is not of this claim
  again = json.loads(results.read_text())
  assert again['claims']['X1']['contrasts'] == content['claims']['X1']['contrasts']
  assert {r['arm'] for r in again['runs']} == {'slow', 'fast'}


def job(tmp_path, monkeypatch, *codes, prepares=False):
  """A job whose commands are these Python programs, run in its folder."""
  made = plan.Job('a', 0, (), 'c', tmp_path / 'a', prepares=prepares)
  start = f'import os; os.chdir({str(made.folder)!r}); '
  commands = tuple((sys.executable, '-c', start + code) for code in codes)
  monkeypatch.setattr(plan.Job, 'commands', property(lambda self: commands))
  return made


def outcome(process):
  while (ended := process.poll()) is None:
    time.sleep(0.02)
  return ended


TIMING = "open('timing.json', 'w').write('{}')"
MODEL = "os.mkdir('model'); open('model/config.json', 'w').write('{}')"


def test_a_preparing_run_is_exported_when_it_is_finished(tmp_path, monkeypatch):
  made = job(tmp_path, monkeypatch, TIMING, MODEL, prepares=True)
  assert outcome(run.Process(made, dict(os.environ))).error == '' and made.finished
  stopped = job(tmp_path / 'b', monkeypatch, "print('saved at step 3')", MODEL, prepares=True)
  assert 'stopped before its end: saved at step 3' in outcome(run.Process(stopped, dict(os.environ))).error
  assert not stopped.finished


def test_a_failure_says_the_last_line_of_its_log(tmp_path, monkeypatch):
  made = job(tmp_path, monkeypatch, "print('first'); raise SystemExit('no such file')")
  error = outcome(run.Process(made, dict(os.environ))).error
  assert error == 'exit code 1: no such file' and (made.folder / 'log.txt').exists()


def test_two_processes_never_work_at_one_run_and_a_stopped_one_ends(tmp_path, monkeypatch):
  made = job(tmp_path, monkeypatch, 'import time; time.sleep(600)')
  process = run.Process(made, dict(os.environ))
  with pytest.raises(UserError, match='another process is at this run'):
    run.Process(made, dict(os.environ))
  run.halt([process])
  assert process.child.returncode == -signal.SIGTERM and 'ended by signal 15' in process.poll().error
  again = run.Process(made, dict(os.environ))
  again.lock.close()
  with pytest.raises(UserError, match='another process is at this run'):  # the child holds the lock, too
    run.Process(made, dict(os.environ))
  run.halt([again])
