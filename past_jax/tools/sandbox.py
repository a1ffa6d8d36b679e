"""Runs a Python program that nobody has read: walled in by the kernel (`jail.py`), within limits, for its output."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from past_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
  seconds: int = 2  # of CPU time
  wall: int = 30  # seconds on the wall, for what waits; a busy machine needs many to start a process
  memory: int = 512 << 20  # bytes of address space
  file: int = 1 << 20  # bytes of each file that it writes, its output among them
  scratch: int = 16 << 20  # bytes of its folder, TMPDIR, which is gone afterwards


class Outcome(NamedTuple):
  code: int  # exit status; 128 + n: ended by signal n, as SIGKILL (9) where a limit was reached
  output: str
  errors: str


def run(source: str, stdin: str = '', limits: Limits = Limits(), readable: Sequence[str] = ()) -> Outcome:
  """The program `source` in a fresh process with Python's standard library: no network, no files but those.

  Args:
    readable: paths of files and folders that it may read besides.

  Raises:
    UserError: this system does not let a process wall itself in; the sentence names the layer.
  """
  with contextlib.ExitStack() as stack:
    code, given, output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
    for file, text in ((code, source), (given, stdin)):
      file.write(text.encode('utf-8', 'replace'))
      file.seek(0)
    status, writes = (stack.enter_context(os.fdopen(fd, mode)) for fd, mode in zip(os.pipe(), ('rb', 'wb')))
    order = json.dumps(_order(code.fileno(), writes.fileno(), limits, readable))
    process = subprocess.Popen(
      [sys.executable, '-I', '-S', str(Path(__file__).with_name('jail.py')), order],
      stdin=given,
      stdout=output,
      stderr=errors,
      cwd='/',
      env={},
      pass_fds=(code.fileno(), writes.fileno()),
      start_new_session=True,
    )
    try:
      ended = process.wait(limits.wall)
    except subprocess.TimeoutExpired:
      ended = 128 + signal.SIGKILL
    finally:
      _kill(process)
    writes.close()
    _refuse(status.read().decode('utf-8', 'replace'))
    return Outcome(ended, _text(output, limits.file), _text(errors, limits.file))


def _order(source: int, status: int, limits: Limits, readable: Sequence[str]) -> dict:
  python = os.path.realpath(sys.executable)
  own = [python, *(f'{prefix}/lib' for prefix in (sys.base_prefix, sys.base_exec_prefix)), os.path.dirname(os.__file__)]
  numbers = dataclasses.asdict(limits)
  scratch, _ = numbers.pop('scratch'), numbers.pop('wall')
  everything = {*map(os.path.realpath, own), *map(os.path.realpath, readable)}
  paths = {'python': python, 'readable': sorted(everything)}
  return {**paths, 'limits': numbers, 'scratch': scratch, 'source': source, 'status': status}


def _kill(process: subprocess.Popen) -> None:
  """The jail and, by its namespace, all within; nothing where it has ended by itself."""
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def _refuse(problem: str) -> None:
  if problem:
    raise UserError(
      f'Programs are not run here: this system does not let a process wall itself in ({problem}). It takes Linux 5.13 '
      'or newer with unprivileged user namespaces, Landlock and seccomp; containers often forbid these.'
    )


def _text(file, most: int) -> str:
  file.seek(0)
  return file.read(most).decode('utf-8', 'replace')
