"""Strict by default, eight virtual devices, one tiny model that all tests share so that compilations are reused."""

import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # libtpu, which is here to compile, would look for a TPU

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
# Tests build the same tiny programs again and again: each is compiled once per session.
_cache = tempfile.TemporaryDirectory()
jax.config.update('jax_compilation_cache_dir', _cache.name)
# Processes that tests start share another one: they compile with other flags.
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.path.join(_cache.name, 'processes')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
jax.config.update('jax_numpy_rank_promotion', 'raise')

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from past_jax import mesh as mesh_lib  # noqa: E402
from past_jax.models.config import TINY  # noqa: E402
from past_jax.models.transformer import transformer  # noqa: E402
from past_jax.text import byte_tokenizer  # noqa: E402
from past_jax.types import Prompts  # noqa: E402


def pytest_configure(config):
  """Fast tests compile much and run little: without LLVM's optimizations they take little more than half the time."""
  if 'not slow' not in config.option.markexpr:
    return
  before = os.environ.get('XLA_FLAGS')
  os.environ['XLA_FLAGS'] = f'{before or ""} --xla_backend_optimization_level=0'
  jax.jit(lambda x: x + 1)(0)  # the flags are read here, once
  if before is None:
    del os.environ['XLA_FLAGS']  # processes that tests start compile as users' do
  else:
    os.environ['XLA_FLAGS'] = before


@pytest.fixture(scope='session')
def policy():
  return transformer(TINY)


@pytest.fixture(scope='session')
def params(policy):
  """Random, and scaled up so that distributions are far from uniform."""
  return jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, jax.jit(policy.init)(jax.random.key(0)))


@pytest.fixture(scope='session')
def tokenizer():
  return byte_tokenizer()


@pytest.fixture(scope='session')
def mesh():
  """One device."""
  return mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1})


@pytest.fixture(scope='session')
def ragged():
  """Prompts (B=8, P=8) of lengths 0 to 8 and completions (G=3, T=6) of lengths 0 to 6, random ids."""
  rng = np.random.default_rng(0)
  prompts = Prompts(rng.integers(1, 256, (8, 8)).astype(np.int32), np.array([8, 3, 0, 1, 2, 8, 5, 4], np.int32))
  return prompts, rng.integers(1, 256, (8, 3, 6)).astype(np.int32), rng.integers(0, 7, (8, 3)).astype(np.int32)


def pytest_collection_modifyitems(items):
  """The longest file first: files are shared out in their order, and the last one to begin decides when tests end."""
  items.sort(key=lambda item: item.path.name != 'study_test.py')
