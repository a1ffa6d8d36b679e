"""Memory that is freed stays with the process: the second large buffer takes no new pages from the kernel."""

import subprocess
import sys

import pytest

from past_jax import heap

FAULTS = """
import resource, sys, threading
from past_jax import heap
if sys.argv[1] == 'keep' and not heap.keep():
  print('no such switch')
  raise SystemExit
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


def faults(mode: str) -> str:
  return subprocess.run([sys.executable, '-c', FAULTS, mode], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc only')
def test_freed_memory_is_used_again():
  kept = faults('keep')
  if kept != 'no such switch':  # another C library
    assert int(kept) < 100 < int(faults('default'))


def test_the_backend_is_told_from_the_environment(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert heap.cpu_only()
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
  assert not heap.cpu_only()
