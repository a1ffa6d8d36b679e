"""Stopping a run: the first SIGTERM or Ctrl-C asks, the second one ends the process at once.

Python runs its signal handlers in the main thread between two byte codes, so not while XLA compiles or computes. The
interpreter's C handler does write the signal's number to the wake-up file descriptor immediately; a thread reads it.
"""

import contextlib
import os
import signal
import threading
import time

LONGEST_PAUSE = 0.05  # seconds between two looks at an array


class Stop:
  """Context manager, for the main thread. `reason` is None until it is 'SIGTERM' or 'Ctrl-C'."""

  NAMES = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}

  def __init__(self):
    self.reason: str | None = None
    self._asked = False

  @property
  def requested(self) -> bool:
    return self.reason is not None

  def here(self) -> bool:
    """Whether to stop at this place of the loop, between two device calls."""
    return self.requested

  def __enter__(self) -> 'Stop':
    self._handlers = {number: signal.signal(number, lambda *_: None) for number in self.NAMES}
    read, self._write = os.pipe()
    os.set_blocking(self._write, False)  # set_wakeup_fd asks for it
    self._wakeup = signal.set_wakeup_fd(self._write)
    self._watcher = threading.Thread(target=self._watch, args=(read,), name='stop', daemon=True)
    self._watcher.start()
    return self

  def __exit__(self, *_) -> None:
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    os.close(self._write)  # the watcher reads the end of the pipe
    self._watcher.join()

  def _watch(self, read: int) -> None:
    with open(read, 'rb', buffering=0) as pipe:
      while received := pipe.read(1):
        name = self.NAMES.get(received[0])
        if name is None:  # other signals with a Python handler come by here too
          continue
        if self._asked:
          _say(f'{name} again: stopping at once')
          os._exit(128 + received[0])
        self._asked = True
        self._heard(name)
        _say(f'{name}: finishing this step, saving, then stopping; once more to stop at once')

  def _heard(self, name: str) -> None:
    self.reason = name


def wait(tree, stop: Stop | None = None, tick=None) -> bool:
  """True once all jax arrays of `tree` are there; False as soon as `stop` is requested before that.

  Calls `tick()` between looks, 20 times a second or more often, to keep a progress bar alive. Raises what the
  computation of the arrays raised.
  """
  import jax  # here: signals are watched before anything slow is imported

  arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, 'is_ready')]
  pause = 0.001
  while not all(x.is_ready() for x in arrays):
    if stop is not None and stop.requested:
      return False
    if tick is not None:
      tick()
    time.sleep(pause)
    pause = min(2 * pause, LONGEST_PAUSE)
  jax.block_until_ready(arrays)
  return True


def _say(text: str) -> None:
  """Straight to file descriptor 2: the main thread may hold the locks of sys.stderr or of a progress bar."""
  with contextlib.suppress(OSError):  # the terminal is gone: nobody is left to tell
    os.write(2, f'\n{text}\n'.encode() if os.isatty(2) else f'{text}\n'.encode())
