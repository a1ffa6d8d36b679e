"""Memory that is freed stays with the process: the second large buffer takes no new pages from the kernel."""

import platform
import subprocess
import sys

import pytest

from past_jax import heap

FAULTS = """
import resource, sys, threading
from past_jax import heap
if sys.argv[1] == 'keep':
  assert heap.keep()
counts = []
def work():  # in a thread, as JAX does
  for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b'x' * (64 << 20)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(counts[-1])
"""


def faults(mode: str) -> int:
  return int(subprocess.run([sys.executable, '-c', FAULTS, mode], capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='its switches')
def test_freed_memory_is_used_again():
  assert faults('keep') < 100 < faults('default')


def test_little_memory_is_not_kept(monkeypatch):
  monkeypatch.setattr(heap, 'ROOM', 1 << 60)
  assert not heap.keep()


def test_the_backend_is_told_from_the_environment(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert heap.cpu_only()
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
  assert not heap.cpu_only()
