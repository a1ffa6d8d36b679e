"""Runs of `past study` in several local processes with virtual devices. No tests."""

import os
import socket
import subprocess
import sys

import jax

TINY = (
  '--config.eval.questions=8',
  '--config.eval.chunk=8',
  '--config.eval.answer_length=4',
  '--config.eval.heldout=',
  # Not Adam: where a gradient is nearly 0 it makes a whole step of a rounding.
  "--config.optimizer={'name':'sgd','lr':0.05,'schedule':'constant','warmup':0.0,'end':1.0}",
)
MAIN = '\nimport sys\nfrom past_jax.main import main\nsys.exit(main(sys.argv[1:]))'


def mesh(data: int, fsdp: int, tensor: int) -> list[str]:
  return [f'--config.mesh.data={data}', f'--config.mesh.fsdp={fsdp}', f'--config.mesh.tensor={tensor}']


def start(workdir, config: str, *flags: str, count: int = 1, devices: int = 8, patches=None) -> list[subprocess.Popen]:
  """`count` processes with `devices` between them; `patches`: code that a process runs first, by its number."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices // count),
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': '--xla_backend_optimization_level=0',  # much is compiled and little is run
  }
  processes = []
  for index in range(count):
    code = (patches or {}).get(index, '') + MAIN
    command = [sys.executable, '-c', code, 'study', f'--config={config}', f'--workdir={workdir}', *TINY, *flags]
    if count > 1:
      command.append(f'--hosts={address},{index}/{count}')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    processes.append(subprocess.Popen(command, **pipes))
  return processes


def finish(processes, seconds: float = 1800) -> list[tuple[int, str]]:
  """(exit code, stderr) of each."""
  try:
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, error) for process, error in zip(processes, errors)]


def study(workdir, config: str, *flags: str, **options) -> list[str]:
  """The stderr of each process of a run that ends well."""
  ended = finish(start(workdir, config, *flags, **options))
  assert all(code == 0 for code, _ in ended), '\n'.join(error for _, error in ended)
  return [error for _, error in ended]
