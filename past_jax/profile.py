"""Where the time goes: traces on demand, the parts of an update's time, and the share of the chip's peak.

Traces are `jax.profiler`'s, for xprof or TensorBoard: of given updates (--profile=FIRST:LAST), or of the next few, when
a process gets SIGUSR1. A process traces itself.
"""

import contextlib
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import jax

from past_jax.chips import CHIPS
from past_jax.types import UserError

ON_SIGNAL = 3  # updates
KINDS = {  # jax.Device.device_kind -> generation
  'TPU v2': 'v2',
  'TPU v3': 'v3',
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7x': 'tpu7x',
}


def peak(device_kind: str) -> float | None:
  """bfloat16 FLOPs per second of a device of this kind; None: not known."""
  return CHIPS[KINDS[device_kind]].device_flops if device_kind in KINDS else None


def span(flag: str) -> tuple[int, int] | None:
  """(first, last) update of --profile=FIRST:LAST, from 1, both included; None: no flag.

  Raises:
    UserError: it is something else.
  """
  if not flag:
    return None
  match = re.fullmatch(r'(\d+)(?::(\d+))?', flag)
  first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
  if not 1 <= first <= last:
    raise UserError(f'--profile={flag}: write FIRST:LAST, numbers of updates from 1, such as --profile=3:5.')
  return first, last


class Profile:
  """Context manager, for the main thread: traces updates into `folder`.

  A trace of updates FIRST to LAST begins where update FIRST - 1 has ended, so that of a round's first update the
  sampling and judging before it are seen, too. `note` gets a line for people.
  """

  def __init__(self, folder: Path, wanted: tuple[int, int] | None = None, note: Callable[[str], None] = print):
    self.folder, self.note = folder, note
    self._wanted, self._asked, self._last = wanted, False, None

  def __enter__(self) -> 'Profile':
    self._handler = signal.signal(signal.SIGUSR1, lambda *_: setattr(self, '_asked', True))
    return self

  def __exit__(self, *_) -> None:
    self.stop()
    if self._wanted:
      self.note('nothing was traced: there was no update {} to {}'.format(*self._wanted))
    signal.signal(signal.SIGUSR1, self._handler)

  def before(self, step: int) -> None:
    """The next update is number `step`; call it before anything that is done for it, and as often as you like."""
    if self._last is None and self._asked:
      self._asked, self._wanted = False, (step, step + ON_SIGNAL - 1)
    if self._last is None and self._wanted and self._wanted[0] <= step <= self._wanted[1]:
      self._last, self._wanted = self._wanted[1], None
      jax.profiler.start_trace(self.folder)
      self.note(f'tracing updates {step} to {self._last}')

  def after(self, step: int, arrays) -> None:
    """Update `step` has been given to the devices; `arrays` are what it returns."""
    if self._last is not None and step >= self._last:
      jax.block_until_ready(arrays)
      self.stop()

  def stop(self) -> None:
    if self._last is not None:
      self._last = None
      jax.profiler.stop_trace()
      self.note(f'the trace is in {self.folder}: tensorboard --logdir={self.folder}, or xprof')


class StepClock:
  """The parts of an update's time: `with clock.spent(part)`, then `lap` once for each update.

  What is in no part is `host`: the update is given to the devices, an earlier one's metrics are checked and written.
  Updates run while the host does that, so as long as `device`, the wait for an update to end, is not 0, the devices are
  never idle. `input` is what an update waits for: the rows that it learns from are chosen and placed.
  """

  PARTS = ('input', 'device')

  def __init__(self):
    self._start, self._parts = time.monotonic(), defaultdict(float)

  @contextlib.contextmanager
  def spent(self, part: str):
    start = time.monotonic()
    yield
    self._parts[part] += time.monotonic() - start

  def lap(self) -> dict[str, float]:
    """Seconds since the last lap: perf/step_seconds, and its parts perf/{input,device,host}_seconds."""
    now = time.monotonic()
    whole, parts = now - self._start, {part: self._parts[part] for part in self.PARTS}
    self._start, self._parts = now, defaultdict(float)
    parts |= {'step': whole, 'host': whole - sum(parts.values())}
    return {f'perf/{part}_seconds': seconds for part, seconds in parts.items()}
