"""The cache of compiled programs: on by default, bounded, and never the reason why a run stops."""

import os
import subprocess
import sys

import pytest

from past_jax import compile_cache

RUN = """
from past_jax import compile_cache
compile_cache.use()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith('/cache_hits') else None)
assert float(jax.jit(lambda x: jnp.sort(x * x).sum())(jnp.arange(4.0))) == 14
print(len(hits), jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""


def run(place, **more):
  """(programs loaded, folder, bytes at most, stderr) of a process of its own."""
  kept = {k: v for k, v in os.environ.items() if 'CACHE' not in k}
  all_of_them = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  environment = kept | {'PAST_JAX_CACHE': str(place), 'JAX_PLATFORMS': 'cpu'} | all_of_them | more
  done = subprocess.run([sys.executable, '-c', RUN], capture_output=True, text=True, env=environment)
  assert done.returncode == 0, done.stderr
  hits, *rest = done.stdout.strip().split(' ')
  return int(hits), *rest, done.stderr


def entries(folder):
  return sorted(folder.glob('*-cache'))


@pytest.mark.slow
def test_the_second_process_loads_what_the_first_compiled(tmp_path):
  folder = tmp_path / 'compiled'
  assert run(tmp_path) == (0, str(folder), str(8 << 30), '')
  made = entries(folder)
  hits, *_, said = run(tmp_path)
  assert hits == len(made) > 0 and not said


@pytest.mark.slow
def test_neither_broken_nor_half_written_entries_stop_a_run(tmp_path):
  run(tmp_path)
  whole, *others = entries(tmp_path / 'compiled')
  whole.write_bytes(whole.read_bytes()[:100])
  half = tmp_path / 'compiled' / 'killed-cache'
  half.write_bytes(b'abc')
  for other in others:  # as a kill leaves an entry
    other.with_name(other.name.replace('-cache', '-atime')).unlink()
  hits, *_ = run(tmp_path)
  assert hits == 0 and not half.exists() and len(entries(tmp_path / 'compiled')) == len(others) + 1
  assert run(tmp_path)[0] == len(others)  # written anew, but for the broken one


@pytest.mark.slow
def test_a_place_that_cannot_be_written_and_an_empty_one(tmp_path):
  (tmp_path / 'file').write_text('')
  hits, folder, _, said = run(tmp_path / 'file')
  assert (hits, folder) == (0, 'None') and said.startswith('Programs are compiled anew each time: ')
  assert len(said.splitlines()) == 1
  assert run(tmp_path, JAX_COMPILATION_CACHE_DIR='')[0] == 0 and not (tmp_path / 'compiled').exists()


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
  monkeypatch.setenv('PAST_JAX_CACHE', str(tmp_path))
  for name in compile_cache.SETTINGS:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/compiled')
  assert compile_cache.use() is None and os.environ['JAX_COMPILATION_CACHE_DIR'] == 'gs://bucket/compiled'
  assert not compile_cache.SETTINGS.keys() & os.environ.keys() and not list(tmp_path.iterdir())
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_MAX_SIZE', '123')
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '9')
  assert compile_cache.use() == tmp_path / 'compiled'
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / 'compiled')
  assert os.environ['JAX_COMPILATION_CACHE_MAX_SIZE'] == '123'
