"""The first signal asks, the second ends: with real signals to real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from past_jax.stop import Stop, wait

# stop.py is loaded by its path: the package is not needed, and a process without JAX starts in no time.
LOAD = """
import ctypes, importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location('stop', sys.argv[1])
stop_py = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stop_py)
assert 'jax' not in sys.modules
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
"""
POLITE = """
with stop_py.Stop() as stop:
  print('ready', flush=True)
  while not stop.requested:
    time.sleep(0.001)
print(stop.reason, signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.set_wakeup_fd(-1))
"""
# A call into C that lets go of the GIL and does not come back, as a computation of XLA's: no Python handler can run.
BLOCKED = """
lock = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(128)
with stop_py.Stop():
  lock.pthread_mutex_lock(mutex)
  print('ready', flush=True)
  lock.pthread_mutex_lock(mutex)
"""
NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}


def start(code: str) -> subprocess.Popen:
  path = pathlib.Path(__file__).parents[1] / 'past_jax' / 'stop.py'
  process = subprocess.Popen([sys.executable, '-c', LOAD + code, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == b'ready\n'
  return process


@pytest.mark.parametrize('number', NAMES)
def test_first_signal_asks_and_handlers_come_back(number):
  with start(POLITE) as process:
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
  assert out == f'{NAMES[number]} True -1\n'.encode()
  assert err == f'{NAMES[number]}: finishing this step, saving, then stopping; once more to stop at once\n'.encode()
  assert process.returncode == 0


@pytest.mark.parametrize(
  'first, second, code', [('SIGINT', 'SIGINT', 130), ('SIGTERM', 'SIGTERM', 143), ('SIGTERM', 'SIGINT', 130)]
)
def test_second_signal_ends_a_process_that_is_blocked_in_c(first, second, code):
  first, second = signal.Signals[first], signal.Signals[second]
  with start(BLOCKED) as process:
    process.send_signal(first)
    line = process.stderr.readline()  # printed at once, although the main thread cannot run Python
    assert line.startswith(f'{NAMES[first]}: finishing this step'.encode())
    process.send_signal(second)
    assert process.wait(timeout=30) == code
    assert process.stderr.read() == f'{NAMES[second]} again: stopping at once\n'.encode()


def test_other_signals_ask_for_nothing():
  handled = threading.Event()
  before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
  try:
    with Stop() as stop:
      os.kill(os.getpid(), signal.SIGUSR1)
      assert handled.wait(30)
    assert stop.reason is None and not stop.requested
  finally:
    signal.signal(signal.SIGUSR1, before)


def test_leaves_nothing_behind():
  def around():
    return [signal.getsignal(number) for number in NAMES], threading.active_count(), len(os.listdir('/dev/fd'))

  before = around()
  for _ in range(3):
    with Stop():
      assert threading.active_count() == before[1] + 1
  assert around() == before


class Pending:
  """As an array that is ready at the n-th look."""

  def __init__(self, looks: int):
    self.looks = looks

  def is_ready(self) -> bool:
    self.looks -= 1
    return self.looks <= 0

  def block_until_ready(self):
    assert self.looks <= 0


def test_wait_ticks_until_the_arrays_are_there():
  ticks = []
  assert wait({'a': Pending(4), 'b': None, 'c': 3, 'd': jnp.ones(2)}, Stop(), lambda: ticks.append(1)) is True
  assert len(ticks) == 3
  assert wait([jnp.ones(2).block_until_ready()], None, lambda: pytest.fail('a tick for nothing')) is True


def test_wait_gives_up_when_stopped():
  stop, array = Stop(), Pending(100)

  def tick():
    stop.reason = 'SIGTERM'

  assert wait([array], stop, tick) is False
  assert array.looks == 98
  assert wait([jnp.ones(2).block_until_ready()], stop) is True  # what is there is there


def test_wait_sees_a_computation_of_jax_end():
  rows = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y @ x), x))(jnp.eye(300))
  assert wait(rows, Stop()) is True
  assert rows.is_ready()
