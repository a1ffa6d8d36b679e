"""Tiny configs, random parameters for them, and how they are compared. No tests."""

import functools
import json

import jax
import numpy as np

from past_jax.models.config import TINY
from past_jax.models.families import model_config
from past_jax.models.transformer import transformer

SIZES = dict(
  vocab_size=280,
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=4,
  intermediate_size=8,
  max_position_embeddings=64,
)


def llama(**changes):
  """The config of a llama in which no two sizes are alike, but for the `changes` to its config.json."""
  return model_config(TINY.source | SIZES | changes)


SMALL = llama()


@functools.lru_cache
def shapes(config):
  return jax.eval_shape(transformer(config).init, jax.random.key(0))


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes(config))


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def edit_config(directory, **changes):
  """Changes config.json; None takes a key out."""
  path = directory / 'config.json'
  config = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
