"""Compiled programs stay on the disk between processes. JAX keeps them; here is said where, and how many.

A run that resumes, or another seed of a sweep, then loads what it would compile. Whoever names a folder in
JAX_COMPILATION_CACHE_DIR is left alone, with all of JAX's own settings; an empty one turns the cache off.
"""

import contextlib
import os
import sys
from pathlib import Path

FOLDER = 'JAX_COMPILATION_CACHE_DIR'
SETTINGS = {
  'JAX_COMPILATION_CACHE_MAX_SIZE': str(8 << 30),  # bytes; beyond, JAX removes what was not used for longest
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',  # what compiles faster is not worth a file
}


def use() -> Path | None:
  """Call before JAX's first import. The folder: compiled/ in $PAST_JAX_CACHE, by default ~/.cache/past_jax.

  None: the user has said otherwise, or the folder cannot be written, which is said.
  """
  if FOLDER in os.environ:
    return None
  folder = Path(os.environ.get('PAST_JAX_CACHE') or '~/.cache/past_jax').expanduser() / 'compiled'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
      raise PermissionError(0, 'no permission to write')
    _mend(folder)
  except OSError as error:
    print(f'Programs are compiled anew each time: {folder}: {error.strerror}.', file=sys.stderr)
    return None
  os.environ[FOLDER] = str(folder)
  for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
  return folder


def _mend(folder: Path) -> None:
  """Removes entries that a kill or a full disk left half-written: JAX writes the file with the time of use last.

  Without that file JAX can neither read such an entry nor write any other.
  """
  found = set(os.listdir(folder))
  halves = [name for name in found if name.endswith('-cache') and f'{name.removesuffix("-cache")}-atime' not in found]
  if not halves:
    return
  import filelock  # here: it is hardly ever needed

  # Held, another process is writing; it may be about to complete them, and the next one looks again.
  with contextlib.suppress(filelock.Timeout), filelock.FileLock(folder / '.lockfile', timeout=0):
    for name in halves:
      if not (folder / f'{name.removesuffix("-cache")}-atime').exists():
        (folder / name).unlink(missing_ok=True)
