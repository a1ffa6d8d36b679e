"""How the parent and its workers speak: one JSON object per line, over the worker's stdin and stdout."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path


def serve(worker):
  """Answers {"call": method, "with": arguments} by {"value": ...} or {"error": traceback} until stdin is closed."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever a library prints goes to stderr
  for line in sys.stdin:
    request = json.loads(line)
    try:
      answer = {'value': getattr(worker, request['call'])(**request['with'])}
    except Exception:
      answer = {'error': traceback.format_exc()}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


def resident_mib() -> float:
  """Peak resident memory of this process. Not ru_maxrss, which a process inherits from the one that started it."""
  status = Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) / 1024


class WorkerError(Exception):
  """A worker failed; the message is its traceback, or the end of what it wrote to stderr."""


class Worker:
  """The parent's end: `call` blocks until the worker has answered, so that only one of them computes at a time."""

  def __init__(self, name: str, python: str | Path, module: str, log: Path, env: dict[str, str]):
    self.name, self.log = name, log
    with log.open('w') as stderr:
      self.process = subprocess.Popen(
        [str(python), '-m', f'bench_workers.{module}'],
        cwd=Path(__file__).parent.parent,
        env=os.environ | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
      )

  def call(self, method: str, **arguments):
    """What the worker's method returns.

    Raises:
      WorkerError: it raised, or the worker died.
    """
    try:
      self.process.stdin.write(json.dumps({'call': method, 'with': arguments}) + '\n')
      self.process.stdin.flush()
    except BrokenPipeError:
      pass  # it died; why is in its log
    line = self.process.stdout.readline()
    answer = json.loads(line) if line else {'error': '\n'.join(self.log.read_text().splitlines()[-20:])}
    if 'error' in answer:
      raise WorkerError(f'{self.name}, {method}: {answer["error"]}')
    return answer['value']

  def close(self):
    self.process.stdin.close()
    try:
      self.process.wait(10)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self.process.stdout.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
