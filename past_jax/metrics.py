"""What a run writes down while it goes: JSON Lines and TensorBoard events, and the counters behind its self-tests.

A row is a dict with an int `step`. JSON has no NaN or infinity, so a number that is not finite is written as `null`;
`nonfinite` names such metrics before they are written.
"""

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from tensorboardX import SummaryWriter

from past_jax.types import UserError

FILES = ('metrics.jsonl', 'groups.jsonl', 'evaluations.jsonl')


def read_rows(path: os.PathLike | str) -> Iterator[dict]:
  """Yields the rows of a JSON Lines file, none if there is no file.

  A last line that a kill cut in half is dropped. Raises UserError for a broken line that others follow.
  """
  path = Path(path)
  if not path.exists():
    return
  broken = None
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      if broken:
        raise UserError(f'{path}:{broken} is not a JSON object, and lines follow it: mend or delete that line.')
      try:
        row = json.loads(line)
      except ValueError:
        row = None
      if isinstance(row, dict):
        yield row
      else:
        broken = number


def rows(path: os.PathLike | str) -> list[dict]:
  """All of `read_rows`."""
  return list(read_rows(path))


def nonfinite(row: Mapping[str, Any]) -> list[str]:
  """The names of a row's numbers (or arrays) that are NaN or infinite."""
  return [k for k, v in row.items() if not isinstance(v, str | Mapping | list | None) and not np.all(np.isfinite(v))]


def _plain(value):
  """numpy and jax scalars -> Python's, non-finite floats -> None, containers likewise."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


class MetricsWriter:
  """Appends rows to a run's files, each with one `write` of a whole line that is flushed to the system.

  `resume_step` is the step of the restored checkpoint; None is a run from the start. Rows of later steps, which the
  resumed run writes again, are first removed from all files (with None: all rows), so that every step stands once.
  """

  def __init__(self, workdir: os.PathLike | str, resume_step: int | None = None):
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    keep = -1 if resume_step is None else resume_step
    for name in FILES:
      _truncate(workdir / name, keep)
    self._files = {name: (workdir / name).open('a', encoding='utf-8') for name in FILES}
    # purge_step hides, in TensorBoard, the events of an earlier process from that step on,
    # and the suffix keeps two processes that start within one second from sharing a file.
    self._events = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=keep + 1, flush_secs=10, filename_suffix=f'.from{keep + 1}'
    )

  def metrics(self, row: Mapping[str, Any]) -> None:
    """One optimizer step: {'step', 'stage', 'round', name: number}. Numbers go to TensorBoard too."""
    self._append('metrics.jsonl', row)
    self._scalars(row, row['step'])

  def group(self, row: Mapping[str, Any]) -> None:
    """One group; its `step` is that of the first update that learns from it, which a checkpoint within
    the round then keeps."""
    self._append('groups.jsonl', row)

  def evaluation(self, row: Mapping[str, Any]) -> None:
    """One evaluation: {'when', 'step', 'metrics': {name: number}, 'samples': [...]}."""
    self._append('evaluations.jsonl', row)
    self._scalars({f'evaluation/{k}': v for k, v in row['metrics'].items()}, row['step'])

  def close(self) -> None:
    for file in self._files.values():
      file.close()
    self._events.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _append(self, name, row):
    file = self._files[name]
    file.write(json.dumps(_plain(row), allow_nan=False) + '\n')
    file.flush()

  def _scalars(self, row, step):
    for name, value in _plain(row).items():
      if isinstance(value, int | float) and name not in ('step', 'round'):
        self._events.add_scalar(name, value, step)


class NoWriter(contextlib.nullcontext):
  """What stands for a `MetricsWriter` in all processes of a run but the first."""

  def __enter__(self):
    return self

  def metrics(self, row: Mapping[str, Any]) -> None:
    pass

  group = evaluation = metrics


def _truncate(path: Path, step: int) -> None:
  if not path.exists():
    return
  temporary = path.with_name(path.name + '.tmp')
  with temporary.open('w', encoding='utf-8') as file:
    for row in read_rows(path):
      if row['step'] <= step:
        file.write(json.dumps(row) + '\n')
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


class Late:
  """Holds a step's metrics on the device until the next step is under way, so that the device never waits for the log.

  Flush before a checkpoint is saved: a run that resumes from it does not compute these metrics again.
  """

  def __init__(self):
    self._held = None

  def push(self, step: int, host: Mapping[str, Any], device: Mapping[str, jax.Array]) -> dict | None:
    """Takes step `step`'s host fields and device scalars; returns the row of the step pushed before, if any."""
    row = self.flush()
    self._held = {'step': step, **host}, device
    return row

  def flush(self) -> dict | None:
    """The row that is held, fetched (this waits for its step), or None."""
    if self._held is None:
      return None
    (host, device), self._held = self._held, None
    return {**host, **{name: value.item() for name, value in jax.device_get(dict(device)).items()}}


class CompileCounter:
  """Counts the programs that XLA compiles in this process, from the counter's making on.

  A program loaded from JAX's persistent compilation cache counts too, so that the number does not depend on the cache.
  """

  EVENT = '/jax/core/compile/backend_compile_duration'
  _total: ClassVar[int] = 0
  _lock: ClassVar[threading.Lock] = threading.Lock()
  _registered: ClassVar[bool] = False

  def __init__(self):
    with self._lock:
      if not CompileCounter._registered:
        jax.monitoring.register_event_duration_secs_listener(CompileCounter._listen)
        CompileCounter._registered = True
    self._start = CompileCounter._total

  @property
  def count(self) -> int:
    return CompileCounter._total - self._start

  @classmethod
  def _listen(cls, event: str, seconds: float, **_) -> None:
    if event == cls.EVENT:
      with cls._lock:
        CompileCounter._total += 1
