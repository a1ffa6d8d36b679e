"""Where programs run on the CPU: memory that is freed stays with the process."""

import ctypes
import importlib.metadata
import importlib.util
import os

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of mallopt(3)
MOST = 2**31 - 1
ROOM = 16 << 30  # bytes: what is kept comes in pieces, so peaks are higher (LOG.md: 11 GB in the default run)


def cpu_only() -> bool:
  """JAX will run on the CPU, told without starting its backends: said so, or no accelerator's plugin is installed."""
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return os.environ.get('JAX_PLATFORMS') == 'cpu' or not (plugins or importlib.util.find_spec('libtpu'))


def keep() -> bool:
  """Call before JAX's first use. False: too little memory in this machine, or its C library has no such switch.

  glibc returns every large buffer to the kernel, so each run of a program would get its gigabytes of temporary memory
  anew, zeroed page by page: a tenth of an update's time (LOG.md). One arena, because only the first can grow so large.
  """
  if os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') < ROOM:
    return False
  try:
    mallopt = ctypes.CDLL('libc.so.6').mallopt
  except (OSError, AttributeError):
    return False
  return all(mallopt(*pair) for pair in ((MMAP_MAX, 0), (TRIM_THRESHOLD, MOST), (ARENA_MAX, 1)))
