"""Where a run lives: a folder, or gs://BUCKET/FOLDER on object storage, reached through etils.epath.

An object is written as a whole or not at all, and cannot be appended to, renamed or locked. So a run on object storage
keeps its small files, which grow, in a local folder and copies them to the bucket; checkpoints are written right there.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from past_jax.types import UserError

SCHEME = 'gs://'
SECONDS = 60.0  # between two copies of what has changed in a local folder
CHECKPOINTS = 'checkpoints'
LOCAL_ONLY = ('.tmp', '.probe')  # ends of names of files that are on their way


def is_remote(where: str | os.PathLike) -> bool:
  return '://' in os.fspath(where)


def path(where: str | os.PathLike) -> Any:
  """An absolute pathlib.Path, or for gs:// what etils.epath makes of it, which has the same methods.

  Raises:
    UserError: another kind of storage, no folder in the bucket, or gcsfs is not installed.
  """
  if not is_remote(where):
    return pathlib.Path(where).absolute()
  bucket, _, folder = os.fspath(where).removeprefix(SCHEME).partition('/')
  if not os.fspath(where).startswith(SCHEME) or not bucket or not folder.strip('/'):
    raise UserError(f'{where} is no place for a run: give a local folder, or {SCHEME}BUCKET/FOLDER.')
  if importlib.util.find_spec('gcsfs') is None:
    raise UserError(f"{where} needs gcsfs, which is not installed: pip install 'past-jax[tpu]', or pip install gcsfs.")
  return _epath(where)


def local(where: str, flag: str) -> pathlib.Path:
  """The path of what can only be local. Raises UserError for a URL."""
  if is_remote(where):
    raise UserError(f'{flag}={where}: only local files here; `gcloud storage cp -r` copies between them and a bucket.')
  return pathlib.Path(where)


def _epath(where: str | os.PathLike):
  os.environ.setdefault('EPATH_USE_TF', 'false')  # one backend, whether or not TensorFlow happens to be installed
  import fsspec
  from etils import epath

  # Orbax writes objects that gcsfs does not see being written: a listing that it remembers would be wrong.
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
  return epath.Path(where)


@contextlib.contextmanager
def told(where, what: str) -> Iterator[None]:
  """What object storage answers, in any of its libraries' exceptions, becomes a UserError. Local errors pass."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if not is_remote(where):
      raise
    raise refused(where, what, error) from error


def refused(where, what: str, error: Exception) -> UserError:
  said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
  return UserError(
    f'{where} cannot be {what}: {said}. Look whether the bucket exists and this machine may write to it '
    '(docs/tpu.md), then run the same command again'
  )


def errors(where) -> type[Exception]:
  """What an operation on these files may raise: object storage has several libraries, each with errors of its own."""
  return Exception if is_remote(where) else OSError


# --- files of either kind -------------------------------------------------------------------------------------------


def names(folder) -> list[str]:
  """What is directly in a folder; nothing if it does not exist."""
  return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def sizes(folder) -> dict[str, int]:
  """{name relative to the folder: bytes} of all files below it, sorted."""
  if is_remote(folder):
    import fsspec

    system, root = fsspec.core.url_to_fs(os.fspath(folder))
    found = system.find(root, detail=True)
    return {name.removeprefix(root).lstrip('/'): info['size'] for name, info in sorted(found.items())}
  paths = (pathlib.Path(parent, name) for parent, _, files in os.walk(folder) for name in files)
  return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(paths)}


def sha256(file, sync: bool = False) -> str:
  """Of a file's content; with `sync` a local file is first forced to the disk."""
  with file.open('rb') as content:
    if sync and not is_remote(file):
      os.fsync(content.fileno())
    return hashlib.file_digest(content, 'sha256').hexdigest()


def write(file, text: str) -> None:
  """All of it or nothing, and on the disk or in the bucket when this returns."""
  if is_remote(file):
    file.write_text(text)
    return
  temporary = file.with_name(file.name + '.tmp')
  with temporary.open('w', encoding='utf-8') as content:
    content.write(text)
    content.flush()
    os.fsync(content.fileno())
  os.replace(temporary, file)


def sync_folders(folder) -> None:
  """Forces the entries of a local folder, of all below it and of its parent to the disk."""
  if is_remote(folder):
    return
  for each in (*(parent for parent, _, _ in os.walk(folder)), folder.parent):
    fd = os.open(each, os.O_RDONLY)
    try:
      os.fsync(fd)
    finally:
      os.close(fd)


def remove(folder) -> None:
  folder.rmtree() if is_remote(folder) else shutil.rmtree(folder)


def room(folder) -> float:
  """Bytes that can be written."""
  return float('inf') if is_remote(folder) else shutil.disk_usage(folder).free


# --- a run's small files --------------------------------------------------------------------------------------------


class Workdir:
  """Where a run lives, `path`, and where its small files are read and written, `local`: of a folder the same.

  Of object storage `local` is a temporary folder, which begins with what is directly in `path`. `push` copies what has
  changed since, in whole files; within the context that also happens now and then. Not copied: checkpoints.

  Args:
    writes: False for a process that only reads, such as all but the first of several hosts.

  Raises:
    UserError: see the function `path`; or the bucket cannot be read.
  """

  def __init__(self, where: str | os.PathLike, writes: bool = True):
    self.path = self.local = path(where) if is_remote(where) else pathlib.Path(where)
    self.copies = is_remote(where) and writes
    self._pushed: dict[str, tuple[int, int]] = {}
    self._lock = threading.Lock()
    if not is_remote(where):
      return
    logging.getLogger('gcsfs').setLevel(logging.ERROR)
    scratch = tempfile.mkdtemp(prefix='past-')
    weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
    self.local = pathlib.Path(scratch, self.path.name)
    self.local.mkdir()
    with told(self.path, 'read'):
      for name in names(self.path):
        source = self.path / name
        if name != CHECKPOINTS and not source.is_dir():
          (self.local / name).write_bytes(source.read_bytes())
          self._pushed[name] = _version(self.local / name)

  def __str__(self) -> str:
    return os.fspath(self.path)

  def probe(self) -> None:
    """Raises OSError (a folder) or UserError (a bucket) if nothing can be written."""
    with told(self.path, 'written'):
      self.path.mkdir(parents=True, exist_ok=True)
      file = self.path / '.probe'
      file.write_text('')
      file.unlink()

  def push(self) -> None:
    """When it returns, what was written to `local` is in `path`. Raises UserError if that cannot be."""
    if not self.copies:
      return
    with self._lock:
      for file in sorted(self.local.rglob('*')):
        name = file.relative_to(self.local).as_posix()
        if name.endswith(LOCAL_ONLY) or not file.is_file():
          continue
        version = _version(file)  # before it is read: what is appended meanwhile is pushed the next time
        if name not in self._pushed or self._pushed[name] != version:
          content = file.read_bytes()
          with told(self.path / name, 'written'):
            (self.path / name).write_bytes(content)
          self._pushed[name] = version

  def __enter__(self) -> 'Workdir':
    self._ended = threading.Event()
    self._pusher = threading.Thread(target=self._now_and_then, name='push', daemon=True)
    if self.copies:
      self._pusher.start()
    return self

  def __exit__(self, kind, *_) -> None:
    self._ended.set()
    if self.copies:
      self._pusher.join()
      # What went wrong before is the error to report; a second one would hide it.
      with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
        self.push()

  def _now_and_then(self) -> None:
    failed = False
    while not self._ended.wait(SECONDS):
      try:
        self.push()
        failed = False
      except UserError as error:
        if not failed:
          print(f'\n{error}; the run goes on', file=sys.stderr)
        failed = True


def _version(file: pathlib.Path) -> tuple[int, int]:
  stat = file.stat()
  return stat.st_size, stat.st_mtime_ns
