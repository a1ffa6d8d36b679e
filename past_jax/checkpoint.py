"""Checkpoints that survive a kill, a full disk and a flipped bit (design, section 12).

    <directory>/<step>/state/         the arrays, written by Orbax
    <directory>/<step>/host.json      what is not an array: round, data position, config
    <directory>/<step>/arrays.json    dtype and shape of every array, by name
    <directory>/<step>/manifest.json  bytes and SHA-256 of every other file

The manifest is written last, so a folder without one is an interrupted write: it is never read, and the next save
removes it. In a local folder or on object storage (`storage`), whose files appear whole. Of several processes, which
must all see it, each writes and reads its own arrays, and the first does everything else.
"""

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from past_jax import hosts, storage
from past_jax.mesh import put
from past_jax.types import UserError

STATE, HOST, ARRAYS, MANIFEST = 'state', 'host.json', 'arrays.json', 'manifest.json'
MOST_DIFFERENCES = 5  # named in one error message
REMOVALS = 20  # attempts
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _not_orbax_error(record: logging.LogRecord) -> bool:
  return record.levelno < logging.ERROR or f'{os.sep}orbax{os.sep}' not in record.pathname


# Orbax also logs, with pages of traceback, every error that it raises; here the error is reported once.
logging.getLogger('absl').addFilter(_not_orbax_error)


class Restored(NamedTuple):
  step: int
  tree: Any
  host: dict
  skipped: tuple[str, ...]  # one sentence for each damaged checkpoint that is newer


class Checkpoints:
  """The checkpoints of one run. `save` returns early: call `wait` before the process ends, or an error is lost."""

  def __init__(self, directory: str | os.PathLike, keep: int = 2):
    if keep < 1:
      raise UserError(f'cannot keep {keep} checkpoints: keep at least 1')
    self.directory, self.keep = storage.path(directory), keep
    self._damaged: set[int] = set()  # seen by `restore`; they do not count among those to keep
    self._writer = futures.ThreadPoolExecutor(1, 'checkpoint')
    self._pending: futures.Future | None = None

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending. Damage is not looked for."""
    return [step for step in self._folders() if (self._folder(step) / MANIFEST).exists()]

  def save(self, step: int, tree, host: dict) -> None:
    """Starts writing `tree` (a pytree of arrays; no typed PRNG keys) and `host` (a JSON object) as checkpoint `step`.

    When it returns the caller may donate or delete the arrays. Waits for the save before. An intact checkpoint of the
    same step is left alone. Raises UserError if this save or the one before cannot be written.
    """
    self.wait()
    host_text, arrays = json.dumps(host, indent=2), _named(tree)
    folder = self._folder(step)

    def prepare() -> bool:
      """Makes the folder and the small files; False: there is an intact checkpoint."""
      with self._cleaning_up(step):
        for found in set(self._folders()) - set(self.steps()):
          _remove(self._folder(found))
        if folder.exists():
          if _damage(folder) is None:
            return False
          _remove(folder)
        folder.mkdir(parents=True)
        if storage.room(folder) < sum(x.nbytes for x in arrays.values()):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # rather than fill the disk first
        (folder / HOST).write_text(host_text)
        (folder / ARRAYS).write_text(json.dumps({name: _spec(x) for name, x in arrays.items()}, indent=1))
        return True

    if not hosts.first('checkpoint begun', prepare):
      return
    if not folder.exists():
      raise UserError(
        f'process {jax.process_index()} does not see the folder {folder}, which process 0 has made: several hosts need '
        'a --workdir that all of them share, such as gs://BUCKET/NAME or a network file system'
      )
    with self._cleaning_up(step):
      # Uncompressed: float mantissas shrink by 8 % and cost several times the writing time. Directories are made here
      # and not in Orbax's threads, which would wait for them in vain if that failed.
      checkpointer = ocp.AsyncCheckpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False),
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
      )
      stored = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses arrays without elements
      checkpointer.save(folder / STATE, args=ocp.args.PyTreeSave(_nested(stored)))
    self._pending = self._writer.submit(self._finish, step, checkpointer)

  def wait(self) -> None:
    """Blocks until the last save is on disk. Raises UserError if it could not be written."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def restore(self, abstract_tree=None, only: Callable[[Iterable[str]], str] | str = '') -> Restored | None:
    """The newest intact checkpoint, every file of it checked; None if there is no complete one.

    `abstract_tree` is a pytree of `jax.ShapeDtypeStruct` (or arrays); each array is placed by its `sharding`, whatever
    mesh it was written on, or on the first device; or a function from the {name: [dtype, shape]} that are stored to
    such a tree. Without it: nested dicts of numpy arrays, named as in the tree, of all whose name begins with `only`,
    which may be a function from the names that are stored.
    Raises UserError if all are damaged, or if names, shapes or dtypes differ from those of `abstract_tree`.
    """
    self.wait()
    found = hosts.first('newest checkpoint', lambda: self._newest(_damage))
    if found is None:
      return None
    step, skipped = found[0], tuple(found[1])
    folder = self._folder(step)
    specs = json.loads((folder / ARRAYS).read_text())
    if callable(abstract_tree):
      abstract_tree = abstract_tree(specs)
    if abstract_tree is None:
      prefix = only(specs) if callable(only) else only
      specs = {name: spec for name, spec in specs.items() if name.startswith(prefix)}
      tree = _nested(_read(folder, specs, dict.fromkeys(specs)))
    else:
      wanted = _named(abstract_tree)
      _check_same(folder, specs, {name: _spec(x) for name, x in wanted.items()})
      arrays = _read(folder, specs, {name: _sharding(x) for name, x in wanted.items()})
      tree = jax.tree.unflatten(jax.tree.structure(abstract_tree), [arrays[name] for name in wanted])
    return Restored(step, tree, self.host(step), skipped)

  def host(self, step: int) -> dict:
    """The host part of checkpoint `step`; touches no device."""
    return json.loads((self._folder(step) / HOST).read_text())

  def latest_host(self) -> dict | None:
    """The host part of the newest checkpoint that looks intact: of the files with arrays only the size is checked."""
    found = hosts.first('latest host', lambda: self._newest(lambda folder: _damage(folder, hashed=(HOST,))))
    return None if found is None else self.host(found[0])

  def _folder(self, step: int):
    return self.directory / str(step)

  def _folders(self) -> list[int]:
    return sorted(int(name) for name in storage.names(self.directory) if name.isdecimal() and name == str(int(name)))

  def _newest(self, damage) -> tuple[int, tuple[str, ...]] | None:
    """(step, a sentence for each damaged one passed over) of the newest for which `damage(folder)` is None."""
    damaged = {}
    with storage.told(self.directory, 'read'):
      steps = self.steps()
    for step in reversed(steps):
      with storage.told(self._folder(step), 'read'):
        what = damage(self._folder(step))
      if what is None:
        self._damaged |= set(damaged)
        return step, tuple(f'checkpoint {s} is damaged: {what}; using checkpoint {step}' for s, what in damaged.items())
      damaged[step] = what
    if damaged:
      raise UserError(
        f'no intact checkpoint in {self.directory}: '
        + '; '.join(f'checkpoint {s} is damaged: {what}' for s, what in damaged.items())
        + '. Put the files back from a copy, or delete these folders to start over'
      )
    return None

  def _finish(self, step: int, checkpointer: ocp.AsyncCheckpointer) -> None:
    with self._cleaning_up(step), contextlib.closing(checkpointer):
      checkpointer.wait_until_finished()
    hosts.first('checkpoint sealed', lambda: self._complete(step))

  def _complete(self, step: int) -> None:
    """Declares what all have written a checkpoint, and removes old ones."""
    with self._cleaning_up(step):
      _seal(self._folder(step))
    # Only now is there a newer one to fall back on. What is newer than the oldest kept one stays, damaged or not.
    self._damaged.discard(step)
    oldest_kept = sorted(set(self.steps()) - self._damaged)[-self.keep :][0]
    try:
      for old in self.steps():
        if old < min(oldest_kept, step):
          _remove(self._folder(old))
    except storage.errors(self.directory) as error:
      raise UserError(
        f'checkpoint {step} is written, but old ones in {self.directory} cannot be removed: {error}; '
        'make the folder writable and run the same command again'
      ) from error

  @contextlib.contextmanager
  def _cleaning_up(self, step: int):
    """If the block fails no incomplete checkpoint `step` is left; what the system refused becomes a UserError."""
    try:
      yield
    except Exception as error:
      folder, remains = self._folder(step), ''
      try:
        if hosts.is_first() and not (folder / MANIFEST).exists():
          _remove(folder)
      except storage.errors(folder) as second:
        why = second.strerror if isinstance(second, OSError) else second
        remains = f'; its unfinished {folder} could not be removed ({why}), and is ignored'
      if isinstance(error, UserError):
        raise
      if storage.is_remote(folder):
        raise storage.refused(f'checkpoint at step {step} in {self.directory}', 'written', error) from error
      code = error.errno if isinstance(error, OSError) else _code_in(str(error))
      if code is None:
        raise
      before = [s for s in self.steps() if s not in self._damaged]
      raise UserError(
        f'checkpoint at step {step} could not be written: {os.strerror(code)}{remains}; '
        + (f'the previous checkpoint (step {before[-1]}) is intact; ' if before else 'there is no earlier one; ')
        + ('free some space' if code in NO_SPACE else f'make {self.directory} a folder that can be written')
        + ' and run the same command again'
      ) from error


def _named(tree) -> dict[str, Any]:
  """{'params/layer/kernel': array, ...} in the order of the leaves. What is no array of jax's is copied."""
  leaves = jax.tree.leaves_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='/'): x
    if isinstance(x, jax.Array | jax.ShapeDtypeStruct)
    else np.array(x)
    for path, x in leaves
  }
  if len(named) < len(leaves):
    raise ValueError(f'two arrays share one name among {sorted(named)}')
  return named


def _nested(named: dict[str, Any]) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}. Orbax is given plain dicts only, so None, {} and types are not its business."""
  tree = {}
  for name, x in named.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  return tree


def _spec(x) -> list:
  return [np.dtype(x.dtype).name, list(x.shape)]


def _sharding(x) -> jax.sharding.Sharding | None:
  """Where to put an array like `x`; None: numpy, because jax would halve its 64-bit numbers."""
  if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
    return None
  return getattr(x, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _check_same(folder, found: dict, wanted: dict) -> None:
  def shown(spec):
    return 'absent' if spec is None else f'{spec[0]}{spec[1]}'

  differences = [
    f'{name} is {shown(found.get(name))} there and {shown(wanted.get(name))} here'
    for name in sorted({*found, *wanted})
    if found.get(name) != wanted.get(name)
  ]
  if differences:
    more = len(differences) - MOST_DIFFERENCES
    raise UserError(
      f'{folder} was written by another model or optimizer: '
      + '; '.join(differences[:MOST_DIFFERENCES])
      + (f'; and {more} more' if more > 0 else '')
      + '. Use the config that wrote it, or another workdir'
    )


def _read(folder, specs: dict, shardings: dict) -> dict[str, Any]:
  """The arrays of `specs`, by name: placed by their sharding, or numpy where that is None. Others stay on the disk."""
  how = {
    name: ocp.RestoreArgs(restore_type=np.ndarray) if sharding is None else ocp.ArrayRestoreArgs(sharding=sharding)
    for name, sharding in shardings.items()
    if 0 not in specs[name][1]
  }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
    item = _nested({name: jax.ShapeDtypeStruct(tuple(specs[name][1]), specs[name][0]) for name in how})
    args = ocp.args.PyTreeRestore(item=item, restore_args=_nested(how), partial_restore=True)
    with storage.told(folder, 'read'):
      tree = checkpointer.restore(folder / STATE, args=args)
  arrays = _named(tree)
  for name, (dtype, shape) in specs.items():
    if 0 in shape:
      empty = np.zeros(shape, dtype)
      arrays[name] = empty if shardings[name] is None else put(empty, shardings[name])
  return arrays


def _seal(folder) -> None:
  """Forces every file to the disk, then writes the manifest that declares the checkpoint complete."""
  found = _files(folder)
  with futures.ThreadPoolExecutor(_readers(folder)) as pool:
    sums = list(pool.map(lambda name: storage.sha256(folder / name, sync=True), found))
  manifest = {name: {'bytes': size, 'sha256': sha} for (name, size), sha in zip(found.items(), sums)}
  storage.sync_folders(folder)
  storage.write(folder / MANIFEST, json.dumps(manifest, indent=1))
  storage.sync_folders(folder)


def _damage(folder, hashed: tuple[str, ...] | None = None) -> str | None:
  """What is wrong with a complete checkpoint, or None. `hashed`: the files to hash, by default all."""
  try:
    manifest = json.loads((folder / MANIFEST).read_text())
    wanted = {name: (entry['bytes'], entry['sha256']) for name, entry in manifest.items()}
  except FileNotFoundError:
    return f'file {MANIFEST} is missing'
  except (ValueError, KeyError, TypeError, AttributeError):
    return f'file {MANIFEST} cannot be parsed'
  found = _files(folder)
  if missing := sorted(wanted.keys() - found.keys()):
    return f'file {missing[0]} is missing'
  if extra := sorted(found.keys() - wanted.keys()):
    return f'file {extra[0]} is not in its {MANIFEST}'
  try:
    for name, (size, _) in wanted.items():
      if (there := found[name]) != size:
        return f'file {name} ' + (f'was truncated to {there} bytes' if there < size else 'has grown') + f', was {size}'
    names = list(wanted) if hashed is None else hashed
    with futures.ThreadPoolExecutor(_readers(folder)) as pool:
      sums = list(pool.map(lambda name: storage.sha256(folder / name), names))
    wrong = [name for name, sha in zip(names, sums) if sha != wanted[name][1]]
    return f'file {wrong[0]} has a wrong SHA-256' if wrong else None
  except OSError as error:
    if storage.is_remote(folder):  # what the network did not bring may well be intact
      raise
    return f'file {error.filename} cannot be read: {error.strerror}'


def _files(folder) -> dict[str, int]:
  """{name relative to the folder: bytes} of every file but the manifest."""
  return {name: size for name, size in storage.sizes(folder).items() if name != MANIFEST}


def _readers(folder) -> int:
  """Files that are read at a time: on object storage most of the time is spent waiting."""
  return 16 if storage.is_remote(folder) else 2


def _remove(folder) -> None:
  """Without its manifest first, so that a kill half-way leaves an incomplete checkpoint and not a damaged one."""
  if not folder.exists():
    return
  (folder / MANIFEST).unlink(missing_ok=True)
  for attempt in range(REMOVALS):
    try:
      return storage.remove(folder)
    except OSError:  # after a failed write Orbax's other threads may still be creating files
      if attempt == REMOVALS - 1:
        raise
      time.sleep(0.05)


def _code_in(text: str) -> int | None:
  """The errno that a message quotes: TensorStore raises ValueError for whatever the system refused."""
  return next((code for code in errno.errorcode if os.strerror(code) in text), None)
