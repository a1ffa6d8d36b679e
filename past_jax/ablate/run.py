"""Runs jobs as processes: several at a time, each with its log, time limit and lock. A signal leaves all resumable."""

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from past_jax.ablate.plan import PACKAGE, Job
from past_jax.types import UserError

PAUSE = 0.1  # seconds between two looks at the processes
GRACE = 60.0  # seconds that a process has to save its state before it is killed


class Outcome(NamedTuple):
  """Of a job: `error` is '' where it ended well; `seconds` of wall clock, in this invocation."""

  job: Job
  error: str
  seconds: float


class Process:
  """A job's commands, one after the other, in a session of their own: Ctrl-C reaches them through us only."""

  def __init__(self, job: Job, environment: dict[str, str]):
    self.job, self.environment, self.started = job, environment, time.monotonic()
    self.left = list(job.commands)
    job.folder.mkdir(parents=True, exist_ok=True)
    # The child inherits the lock, so that it lasts as long as any process works in this folder, whatever becomes of us.
    self.lock = (job.folder / 'lock').open('w')
    try:
      fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      self.lock.close()
      raise UserError(f'{job.folder}: another process is at this run. Wait for it, or end it.') from None
    self.log = (job.folder / 'log.txt').open('a')
    self.next()

  def next(self) -> None:
    self.child = subprocess.Popen(
      self.left.pop(0),
      stdin=subprocess.DEVNULL,
      stdout=self.log,
      stderr=subprocess.STDOUT,
      env=self.environment,
      start_new_session=True,
      pass_fds=(self.lock.fileno(),),
    )

  def poll(self) -> Outcome | None:
    """None while it runs."""
    code = self.child.poll()
    if code is None:
      return None
    if code == 0 and self.left and (self.job.folder / 'timing.json').exists():
      self.next()
      return None
    self.log.close()
    self.lock.close()
    return Outcome(self.job, why(self.job, code), time.monotonic() - self.started)

  def stop(self) -> None:
    self.child.terminate()

  def kill(self) -> None:
    self.child.kill()


def why(job: Job, code: int) -> str:
  """Why a job whose last process ended with `code` has failed; '': it has not."""
  if code == 0 and job.finished:
    return ''
  lines = (job.folder / 'log.txt').read_text(errors='replace').strip().splitlines()
  last = lines[-1].strip() if lines else 'it said nothing'
  what = 'stopped before its end' if code == 0 else f'ended by signal {-code}' if code < 0 else f'exit code {code}'
  return f'{what}: {last[:300]}'


def environment(slots: int) -> dict[str, str]:
  """For processes that share this machine. What the user has set stays."""
  out = {}
  if slots > 1:
    threads = str(max(len(os.sched_getaffinity(0)) // slots, 1))
    out |= dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'NPROC'), threads)
    out['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # of an accelerator's memory
  out |= os.environ
  out['PYTHONPATH'] = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get('PYTHONPATH'))))
  return out


def run(
  jobs: Sequence[Job],
  launch: Callable[[Job], Process],
  slots: int,
  seconds: float,
  done: Callable[[Outcome], None],
  stop: Callable[[], bool] = lambda: False,
) -> bool:
  """Runs all jobs, at most `slots` at a time, each after the one it starts from. False: `stop()` became true.

  Calls done(outcome) in this thread as jobs end. What starts from a job that failed fails, too. A job that takes longer
  than `seconds` is stopped. Whatever `done` raises, no process is left behind: they save and end first.
  """
  waiting, running, ended = list(jobs), [], {}

  def end(outcome: Outcome) -> None:
    ended[outcome.job] = outcome.error
    done(outcome)

  try:
    while waiting or running:
      if stop():
        return False
      for job in list(waiting):
        before = job.after if job.after in jobs else None
        if before and ended.get(before):
          waiting.remove(job)
          end(Outcome(job, f'{before.title} failed, from which it starts', 0.0))
        elif len(running) < slots and (before is None or before in ended):
          waiting.remove(job)
          running.append(launch(job))
      for process in list(running):
        outcome = process.poll()
        if outcome is None and time.monotonic() - process.started > seconds:
          halt([process])
          late = f'took longer than {seconds / 60:g} minutes; what it saved is kept'
          outcome = process.poll()
          outcome = outcome._replace(error=outcome.error and late)
        if outcome:
          running.remove(process)
          end(outcome)
      time.sleep(PAUSE)
    return True
  finally:
    halt(running)


def halt(processes: Sequence[Process]) -> None:
  """Asks processes to save and end; kills what has not within GRACE."""
  for process in processes:
    process.left.clear()
    process.stop()
  deadline = time.monotonic() + GRACE
  while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
    time.sleep(PAUSE)
  for process in processes:
    if process.poll() is None:
      process.kill()
      process.child.wait()
      process.poll()
