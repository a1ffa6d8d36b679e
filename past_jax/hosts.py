"""One run on several hosts: a process on each runs the whole program, and holds its part of the arrays.

All processes take the same decisions, because they compute them from the same data; what only one of them can know,
such as what a file says, process 0 finds out and tells (`first`). It alone writes, but for the arrays of checkpoints.

A process that fails tells the others, which stop (`joined`). One that is killed tells nobody: JAX's coordination
service misses its heartbeats and aborts the others, which then say so. With one process all of this does nothing.
"""

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from past_jax.stop import Stop
from past_jax.types import UserError

HEARTBEAT_SECONDS = 30  # without one, a process counts as dead: the others stop within a minute
JOIN_SECONDS = 300  # to wait for the others to start
LOOK_SECONDS = 1.0  # between two looks for a failure of another process
FOREVER_MS = 7 * 24 * 3600 * 1000  # whoever waits for a process that has died is stopped, not timed out
FAILED = 'past/failed/'  # of the coordination service's keys: [exit code, text] of a process that failed
CHIPS = ('accel', 'vfio/')  # devices of a TPU VM
WORKERS = 'worker-network-endpoints'  # metadata of a TPU VM: an entry for each host of its slice
METADATA_SECONDS = 3
AGAIN = 'What was saved is intact: start the same command on all hosts to go on.'

_last_words = threading.Lock()  # taken once, by whoever ends the process
_times: dict[str, int] = defaultdict(int)  # how often `first` was asked each question


def several() -> bool:
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this process writes and speaks for all."""
  return jax.process_index() == 0


# --- joining ------------------------------------------------------------------------------------------------------


def join(flag: str) -> None:
  """Makes this process one of the run's, as --hosts says; before anything else is asked of JAX.

  Raises:
    UserError: the flag is malformed, there is no cluster to be found, or process 0 cannot listen at its address. If
      the others do not come JAX aborts the process.
  """
  options = dict(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=JOIN_SECONDS)
  if flag != 'auto':
    match = re.fullmatch(r'(.+:\d+),(\d+)/(\d+)', flag)
    if not match or not int(match[2]) < int(match[3]):
      raise UserError(
        f'--hosts={flag}: write auto (a TPU pod, Slurm, Open MPI or Kubernetes says it), or ADDRESS:PORT,INDEX/COUNT: '
        'where process 0 listens, and the number of this process, from 0, of how many.'
      )
    options |= dict(coordinator_address=match[1], process_id=int(match[2]), num_processes=int(match[3]))
    options['cluster_detection_method'] = 'deactivate'
  try:
    jax.distributed.initialize(**options)
  except ValueError as error:
    raise UserError(
      f'--hosts={flag}: no cluster is found here ({error}). Write --hosts=ADDRESS:PORT,INDEX/COUNT instead.'
    ) from None
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'--hosts={flag}: {str(error).splitlines()[0]}.') from None


def of_slice(environ: Mapping[str, str], devices: str = '/dev') -> int:
  """How many hosts the TPU slice has that this machine belongs to; 1 where there is none, or it is not to be used.

  GKE and JAX's own launchers say it in the environment, a TPU VM asks its metadata server.
  """
  platforms = environ.get('JAX_PLATFORMS', '')
  if (platforms and 'tpu' not in platforms) or {'TPU_PROCESS_BOUNDS', 'TPU_CHIPS_PER_PROCESS_BOUNDS'} & set(environ):
    return 1
  slices = int(environ.get('MEGASCALE_NUM_SLICES') or 1)
  names = environ.get('TPU_WORKER_HOSTNAMES', '')
  if not names and 'TPU_SKIP_MDS_QUERY' not in environ and any(glob.glob(f'{devices}/{n}[0-9]*') for n in CHIPS):
    server = environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    request = urllib.request.Request(f'http://{server}/computeMetadata/v1/instance/attributes/{WORKERS}')
    request.add_header('Metadata-Flavor', 'Google')
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
      names = answer.read().decode()
  return slices * max(1, len(names.split(',')))


def refuse_slice(remedy: str) -> None:
  """Raises UserError, with what to do, on one host of several: libtpu would wait there for the others."""
  if (count := of_slice(os.environ)) > 1 or (count := jax.process_count()) > 1:
    raise UserError(
      f'this machine is one of {count} hosts of a TPU slice{remedy}. '
      'To use its own chips alone, set TPU_PROCESS_BOUNDS=1,1,1 and TPU_CHIPS_PER_PROCESS_BOUNDS to their shape.'
    )


@contextlib.contextmanager
def joined(flag: str):
  """The run within is one process of several, if `flag` (--hosts) is not empty. A failure in one ends all of them.

  Raises:
    UserError: there is no flag, and this machine is one of several.
  """
  if not flag:
    refuse_slice(': start the same command on all with --hosts=auto')
    yield
    return
  aborted = _OnAbort(f'--hosts={flag}: not all processes have come within {JOIN_SECONDS} s.')
  join(flag)
  aborted.text = (
    f'process {jax.process_index()} of {jax.process_count()} stops: another process has died or cannot be reached; the '
    f'lines above, or its own log, tell which. {AGAIN}'
  )
  done = threading.Event()
  threading.Thread(target=_watch, args=(done,), name='hosts', daemon=True).start()
  try:
    yield
  except BaseException as error:
    fail(error)
  finally:
    done.set()
    aborted.end()


def fail(error: BaseException) -> None:
  """Ends this process, saying why; the others hear of it and end, too. Does not return.

  Not by way of Python's exit: JAX would wait there for processes that wait for this one.
  """
  # What fails in a device call may be for want of another process, which the service may not have missed yet.
  wanting = isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error)
  until = time.monotonic() + (HEARTBEAT_SECONDS + 10) * wanting
  _heed()
  while time.monotonic() < until:
    time.sleep(LOOK_SECONDS)
    _heed()
  _last_words.acquire()
  text = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
  if not isinstance(error, UserError | KeyboardInterrupt | SystemExit):
    traceback.print_exception(error)
  _say(f'past study: {text}')
  code = 2 if isinstance(error, UserError) else 1
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().key_value_set(f'{FAILED}{jax.process_index()}', json.dumps([code, text]))
  _leave(code)


def _watch(done: threading.Event) -> None:
  while not done.wait(LOOK_SECONDS):
    _heed()


def _heed() -> None:
  """Ends this process if another one has failed, with its exit code: who starts both again decides for both alike."""
  try:
    failed = {int(key.rpartition('/')[2]): json.loads(said) for key, said in _client().key_value_dir_get(FAILED)}
  except jax.errors.JaxRuntimeError:  # the service has ended: `_OnAbort` says so, if it was not the end of the run
    return
  me = jax.process_index()
  if failed and me not in failed:
    index = min(failed)
    code, text = failed[index]
    count = jax.process_count()
    _last_words.acquire()
    _say(f'past study: process {index} of {count} has failed, and process {me} stops: {text} {AGAIN}')
    _leave(code)


def _leave(code: int) -> None:
  """Process 0 last: what the others can read is in it, and JAX aborts them when it is gone."""
  time.sleep((5 if is_first() else 2) * LOOK_SECONDS)
  _exit(code)


class _OnAbort:
  """Puts `text` after what JAX says when it aborts, as it does when another process is dead, and exits with 1.

  JAX takes no callback for this, and Python's own signal handlers would come too late: abort() does not wait for them.
  """

  def __init__(self, text: str):
    self.text = text
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._speak)
    self._signal = ctypes.CDLL(None).signal
    self._signal(int(signal.SIGABRT), self._handler)

  def _speak(self, number: int) -> None:
    del number
    _say(f'past study: {self.text}')
    _exit(1)

  def end(self) -> None:
    self._signal(int(signal.SIGABRT), None)  # SIG_DFL


def _say(text: str) -> None:
  with contextlib.suppress(OSError):
    os.write(2, f'{text}\n'.encode())


def _exit(code: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  os._exit(code)


def _client():
  """JAX's client of the coordination service. Orbax takes it from the same place: there is no public one."""
  from jax._src import distributed

  return distributed.global_state.client


# --- agreeing -----------------------------------------------------------------------------------------------------


def first(question: str, answer: Callable):
  """answer() of process 0, in all processes; a JSON value. It waits for process 0, and no device is involved.

  Every process asks the same questions in the same order; those of different threads are different questions.

  Raises:
    UserError: as answer() does in process 0, in all processes.
  """
  if not several():
    return answer()
  key = f'past/first/{question}/{_times[question]}'
  _times[question] += 1
  if is_first():
    try:
      value = answer()
    except UserError as error:
      _client().key_value_set(key, json.dumps({'error': str(error)}))
      raise
    _client().key_value_set(key, json.dumps({'value': value}))
    return value
  told = json.loads(_client().blocking_key_value_get(key, FOREVER_MS))
  if 'error' in told:
    raise UserError(f'process 0: {told["error"]}')
  return told['value']


def same(what: str, value) -> None:
  """Refuses a process whose `value` (anything with a repr) is not process 0's."""
  if not several():
    return
  digest = hashlib.sha256(repr(value).encode()).hexdigest()
  if first(what, lambda: digest) != digest:
    raise UserError(f'{what} of process {jax.process_index()} differs from that of process 0: they must be the same.')


def share(total: int, index: int, count: int) -> np.ndarray:
  """Which of `total` rows process `index` of `count` looks after: as many as any other; what is left over repeats."""
  size = -(-total // count)
  return np.minimum(np.arange(size) + size * index, total - 1)


def gathered(tree, total: int):
  """The rows that `share` gave to each process, put together in all of them: numpy arrays with `total` rows."""
  join_ = lambda x: x.reshape(-1, *x.shape[2:])[:total]
  return jax.tree.map(join_, multihost_utils.process_allgather(jax.tree.map(np.asarray, tree)))


class StopTogether(Stop):
  """A signal to any process stops all of them at the same place.

  SIGTERM is left to JAX, whose service finds a place that no process has passed yet; Ctrl-C becomes SIGTERM.
  """

  NAMES = {signal.SIGINT: 'Ctrl-C'}

  def __init__(self):
    super().__init__()
    self._places = 0

  def here(self) -> bool:
    self._places += 1
    if self.reason is None and multihost_utils.reached_preemption_sync_point(self._places):
      self.reason = 'a signal to one of the processes'
    return self.requested

  def _heard(self, name: str) -> None:
    del name
    os.kill(os.getpid(), signal.SIGTERM)
