import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from past_jax import metrics, progress
from past_jax.types import UserError


def write_lines(path, *lines):
  path.write_text(''.join(lines))
  return path


def events(workdir):
  """(session starts' steps, {tag: [(step, value)]}) over the event files in the order of writing."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  starts, scalars = [], {}
  for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda p: p.stat().st_mtime_ns):
    data = path.read_bytes()
    while data:  # a record is its length (8 bytes), a checksum (4), the event, a checksum (4)
      length = int.from_bytes(data[:8], 'little')
      event = Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.HasField('session_log') and event.session_log.status == SessionLog.START:
        starts.append(event.step)
      for value in event.summary.value:
        scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
  return starts, scalars


def test_rows_of_no_file():
  assert metrics.rows('/nonexistent/metrics.jsonl') == []


@pytest.mark.parametrize('end', ['{"step": 3, "lo', '{"step": 3, "loss": 1}x', '3', '\x00\x00'])
def test_rows_drop_a_last_line_cut_in_half(tmp_path, end):
  path = write_lines(tmp_path / 'a.jsonl', '{"step": 1}\n', '{"step": 2}\n', end)
  assert metrics.rows(path) == [{'step': 1}, {'step': 2}]


def test_rows_cut_inside_a_character(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes('{"step": 1}\n{"text": "é'.encode()[:-1])
  assert metrics.rows(path) == [{'step': 1}]


def test_rows_name_a_broken_middle_line(tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', '{"step": 1}\n', '{"step": 2\n', '{"step": 3}\n')
  with pytest.raises(UserError, match=r'a\.jsonl:2'):
    metrics.rows(path)


def test_nonfinite_names():
  row = {'step': 1, 'loss': math.nan, 'margin': np.float32('-inf'), 'ok': 0.5, 'stage': 'a', 'x': jnp.inf, 'y': None}
  assert metrics.nonfinite(row) == ['loss', 'margin', 'x']


def test_writer_writes_strict_json(tmp_path):
  row = {'step': 1, 'stage': 's', 'round': 1, 'loss': math.nan, 'a': np.float32(0.5), 'b': jnp.int32(3), 'c': math.inf}
  group = {'step': 1, 'text': 'é\u2028"', 'completions': [{'score': math.nan, 'info': {'overlap': np.float32(0.25)}}]}
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.metrics(row)
    writer.group(group)
    text = (tmp_path / 'metrics.jsonl').read_text()  # before closing: every line is flushed
  assert text.count('\n') == 1
  expected = {'step': 1, 'stage': 's', 'round': 1, 'loss': None, 'a': 0.5, 'b': 3, 'c': None}
  assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == expected
  (read,) = metrics.rows(tmp_path / 'groups.jsonl')
  assert read == {'step': 1, 'text': 'é\u2028"', 'completions': [{'score': None, 'info': {'overlap': 0.25}}]}


def test_every_step_stands_once_after_a_resume(tmp_path):
  def run(first, last, resume_step):
    with metrics.MetricsWriter(tmp_path, resume_step) as writer:
      for step in range(first, last + 1):
        writer.metrics({'step': step, 'stage': 's', 'round': step, 'loss': float(step)})
        writer.group({'step': step})
        writer.evaluation({'when': f'round {step}', 'step': step, 'metrics': {'n': step}, 'samples': []})

  run(1, 5, None)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 6, "lo')  # killed here; the newest checkpoint is of step 3
  run(4, 7, 3)
  for name in metrics.FILES:
    assert [row['step'] for row in metrics.rows(tmp_path / name)] == list(range(1, 8))
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*metrics.FILES, 'tensorboard'])
  starts, scalars = events(tmp_path)
  assert starts == [0, 4]
  assert scalars['loss'] == [(s, float(s)) for s in (1, 2, 3, 4, 5, 4, 5, 6, 7)]
  assert (7, 7.0) in scalars['evaluation/n']


def test_a_run_from_the_start_keeps_nothing(tmp_path):
  write_lines(tmp_path / 'metrics.jsonl', '{"step": 0}\n', '{"step": 1}\n')
  metrics.MetricsWriter(tmp_path).close()
  assert metrics.rows(tmp_path / 'metrics.jsonl') == []


def test_late_returns_the_row_before():
  late = metrics.Late()
  assert late.flush() is None
  assert late.push(1, {'stage': 's', 'round': 1}, {'loss': jnp.float32(0.5)}) is None
  assert late.push(2, {'stage': 's', 'round': 2}, {'loss': jnp.float32(0.25)}) == {
    'step': 1, 'stage': 's', 'round': 1, 'loss': 0.5,
  }  # fmt: skip
  assert late.flush() == {'step': 2, 'stage': 's', 'round': 2, 'loss': 0.25}
  assert late.flush() is None


def test_compile_counter_counts_programs():
  first = metrics.CompileCounter()
  double = jax.jit(lambda x: x * 2)
  double(np.ones(3))
  second = metrics.CompileCounter()  # does not register a second listener
  double(np.ones(3))
  assert (first.count, second.count) == (1, 0)
  double(np.ones(4))
  assert (first.count, second.count) == (2, 1)


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


def make(terminal=False, **kwargs):
  clock, out = Clock(), io.StringIO()
  console = Console(file=out, force_terminal=terminal, width=100, _environ={})
  return clock, out, dict(console=console, clock=clock, **kwargs)


def test_time_left_is_unknown_until_a_round_is_measured_and_skips_the_one_that_compiles():
  clock, _, kwargs = make(rounds_ahead=2)
  bar = progress.Progress(**kwargs)
  bar.phase('evaluate', 4)
  bar.advance(2)
  assert bar.seconds_left() is None
  clock.now = 5.0  # the opening evaluation took 5 s; it returns after the last round
  bar.phase('sample', 8, 1, 4, 'study')
  clock.now = 100.0
  bar.phase('checkpoint', 1)  # outside the rounds: counted with the round before it
  assert bar.seconds_left() is None
  clock.now = 105.0
  bar.phase('sample', 8, 2, 4, 'study')
  assert bar.seconds_left() == 100 * (3 + 2) + 5
  clock.now = 112.0
  bar.phase('evaluate', 4)  # in the middle: not the opening one
  clock.now = 115.0
  bar.phase('sample', 8, 3, 4, 'study')
  clock.now = 119.0
  # Round 2 took 10 s, 4 s of this one are gone: 6 here, one more round, two of a later stage, one evaluation.
  assert bar.seconds_left() == 6 + 10 + 20 + 5
  clock.now = 125.0
  bar.phase('sample', 8, 4, 4, 'study')
  clock.now = 135.0
  bar.phase('sample', 8, 1, 2, 'second')
  assert bar.seconds_left() == 20 + 5
  clock.now = 145.0
  bar.phase('sample', 8, 2, 2, 'second')
  clock.now = 155.0
  bar.phase('evaluate', 4)
  clock.now = 157.0
  assert bar.seconds_left() == 3


def test_log_file_gets_a_line_every_ten_seconds():
  clock, out, kwargs = make()
  with progress.track(100, 'scoring', done=20, **kwargs) as bar:
    for _ in range(40):
      clock.now += 1
      bar.advance(1, tokens=50)
    bar.note('[brackets] stay')
  lines = out.getvalue().splitlines()
  assert lines[0] == 'scoring  20/100  0:00  left --:--'
  assert lines[1] == 'scoring  30/100  50 tok/s  0:10  left 1:10'
  assert lines[5:] == ['[brackets] stay', 'scoring  60/100  50 tok/s  0:40  left 0:40']
  assert len(lines) == 7


def test_terminal_line_tells_stage_round_phase_and_rate():
  clock, out, kwargs = make(terminal=True)
  with progress.Progress(**kwargs) as bar:
    bar.phase('sample', 8, 2, 16, stage='study')
    clock.now = 2.0
    bar.advance(3, tokens=600)
    bar.table([('closed_book/forward', '0 %', '83 %')])
  shown = out.getvalue()
  for text in ('study 2/16 sample', '3/8', '300 tok/s', '0:02', 'left --:--', 'closed_book/forward', '83 %'):
    assert text in shown


@pytest.mark.parametrize('seconds, text', [(None, '--:--'), (75.2, '1:15'), (3675, '1:01:15'), (0, '0:00')])
def test_clock_text(seconds, text):
  assert progress.clock_text(seconds) == text
