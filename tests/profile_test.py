"""Traces hold the updates that were asked for; an update's time is the sum of its parts; FLOPs are the model's."""

import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax.buckets import Bucketed
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.profile import Profile, StepClock, peak, span
from past_jax.types import UserError

# JAX's reader of traces, in Python 3.12: as an error it aborts the process.
pytestmark = pytest.mark.filterwarnings('ignore:builtin type event_stats has no __module__:DeprecationWarning')


def traced(folder) -> list[int]:
  """Numbers of the updates in the traces below."""
  found = []
  for file in folder.rglob('*.xplane.pb'):
    data = jax.profiler.ProfileData.from_file(str(file))
    for plane in data.planes:
      for line in plane.lines:
        found += [dict(event.stats)['step_num'] for event in line.events if event.name == 'update']
  return sorted(found)


def updates(profile: Profile, numbers) -> None:
  for n in numbers:
    profile.before(n)
    with jax.profiler.StepTraceAnnotation('update', step_num=n):
      x = jnp.ones(3) * n
    profile.after(n, x)


def test_a_trace_has_the_updates_of_the_flag(tmp_path):
  notes = []
  with Profile(tmp_path, span('2:3'), notes.append) as profile:
    updates(profile, range(1, 6))
  assert traced(tmp_path) == [2, 3]
  assert notes[0] == 'tracing updates 2 to 3' and str(tmp_path) in notes[1]


def test_a_signal_traces_the_next_updates(tmp_path):
  before = signal.getsignal(signal.SIGUSR1)
  with Profile(tmp_path, note=lambda text: None) as profile:
    updates(profile, range(1, 3))
    os.kill(os.getpid(), signal.SIGUSR1)
    updates(profile, range(3, 10))
  assert traced(tmp_path) == [3, 4, 5]
  assert signal.getsignal(signal.SIGUSR1) == before


def test_a_run_that_ends_early_or_resumes_late_is_traced_as_far_as_it_goes(tmp_path):
  with Profile(tmp_path, span('4:9'), lambda text: None) as profile:
    updates(profile, range(5, 7))
  assert traced(tmp_path) == [5, 6]


def test_a_flag_that_no_update_answers_to_is_told(tmp_path):
  notes = []
  with Profile(tmp_path, span('7:9'), notes.append) as profile:
    updates(profile, range(1, 4))
  assert notes == ['nothing was traced: there was no update 7 to 9'] and traced(tmp_path) == []


@pytest.mark.parametrize('flag', ['0:3', '5:3', 'all', '1:', '-1'])
def test_what_is_no_span_is_refused(flag):
  with pytest.raises(UserError, match='FIRST:LAST'):
    span(flag)


def test_spans():
  assert span('') is None and span('3') == (3, 3) and span('3:5') == (3, 5)


def test_the_parts_of_a_lap_are_all_of_it():
  clock = StepClock()
  with clock.spent('input'):
    time.sleep(0.02)
  with clock.spent('device'):
    time.sleep(0.03)
  time.sleep(0.01)
  lap = clock.lap()
  whole = lap.pop('perf/step_seconds')
  assert set(lap) == {'perf/input_seconds', 'perf/device_seconds', 'perf/host_seconds'}
  assert sum(lap.values()) == pytest.approx(whole)
  assert lap['perf/input_seconds'] >= 0.02 and lap['perf/device_seconds'] >= 0.03 and lap['perf/host_seconds'] >= 0.01
  assert clock.lap()['perf/input_seconds'] == 0


def test_flops_are_those_of_the_program_that_ran():
  """A loop of 5 products in the half and the whole length."""

  def program(share, x, kernels):
    x = x[: int(share * len(x))]
    return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

  bucketed, args = Bucketed(program, (0.5, 1.0)), (np.ones((64, 32), np.float32), np.ones((5, 32, 32), np.float32))
  bucketed.prepare(*args, phase=lambda name: None, tick=lambda arrays: None)
  for longest, rows_ in ((20, 32), (60, 64)):
    bucketed([(longest, 64)], *args)
    assert bucketed.flops() == 5 * 2 * rows_ * 32 * 32


def test_peaks_are_of_devices_that_are_known():
  assert peak('TPU v5 lite') == 197e12 and peak('TPU v3') == 61.5e12 and peak('cpu') is None


def test_a_run_is_traced_and_says_where_its_time_goes(tmp_path, capsys):
  flags = ['--config.mesh.data=1', '--config.eval.questions=4', '--config.eval.chunk=4', '--config.eval.heldout=']
  flags += ['--config.study.rounds=1', '--config.eval.answer_length=4', '--profile=2:2']
  run = tmp_path / 'run'
  assert main(['study', '--config=configs/past.py:size=tiny,arm=raw', f'--workdir={run}', *flags]) == 0
  assert traced(run / 'profile') == [2]
  assert 'tracing updates 2 to 2' in capsys.readouterr().err
  first, second = rows(run / 'metrics.jsonl')
  for row in (first, second):
    parts = [row[f'perf/{part}_seconds'] for part in ('input', 'device', 'host')]
    assert min(parts) >= 0 and sum(parts) == pytest.approx(row['perf/step_seconds'])
    assert row['perf/tokens_per_second'] == pytest.approx(row['num_tokens'] / row['perf/step_seconds'])
  assert first['perf/collect_seconds'] > 0 and 'perf/collect_seconds' not in second
  assert 'perf/mfu' not in first  # of a CPU no peak is known
  assert json.loads((run / 'timing.json').read_text())['compile_count_after_first_round'] == 0
