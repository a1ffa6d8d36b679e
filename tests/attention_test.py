"""Attention over a tree against one softmax under a mask, in blocks and chunks smaller than the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax.models import attention
from past_jax.models.transformer import matmul, scaled

B, P, G, T, H, K, D = 2, 11, 3, 5, 4, 2, 8
LENGTHS = np.array([11, 4])


def seen(window) -> np.ndarray:
  """bool [B, S, S]: which keys each query sees, told one query at a time."""
  out = np.zeros((B, P + G * T, P + G * T), bool)
  for b in range(B):
    for s in range(P + G * T):
      g, t = divmod(s - P, T)
      own = [] if s < P else list(range(P + g * T, P + g * T + t + 1))
      out[b, s, (list(range(P - LENGTHS[b], min(s + 1, P))) + own)[-(window or 999) :]] = True
  return out


def plain(q, k, v, window, scale, cap):
  """softmax over the keys that are seen, all at once, differentiated by JAX."""
  k, v = (jnp.repeat(x, H // K, axis=2) for x in (k, v))
  scores = scale * jnp.einsum('bqhd,bshd->bhqs', q, k, precision='highest')
  scores = cap * jnp.tanh(scores / cap) if cap else scores
  scores = jnp.where(seen(window)[:, None], scores, -1e9)
  return jnp.einsum('bhqs,bshd->bqhd', jax.nn.softmax(scores), v, precision='highest')


@pytest.mark.parametrize('window,cap', [(None, 0.0), (4, 0.0), (None, 1.5), (6, 0.8)])
def test_blocks_and_chunks_change_no_value_and_no_gradient(monkeypatch, window, cap):
  monkeypatch.setattr(attention, 'BLOCK', 4)  # three blocks of the prompt and two of a completion, the last ones short
  monkeypatch.setattr(attention, 'BLOCKS', 3)
  monkeypatch.setattr(attention, 'SCORES', B * H * 4 * (P + 4) * 2)  # two completions at once, then one
  keys = jax.random.split(jax.random.key(0), 4)
  q, d_out = (jax.random.normal(key, (B, P + G * T, H, D)) for key in keys[:2])
  k, v = (jax.random.normal(key, (B, P + G * T, K, D)) for key in keys[2:])
  valid = jnp.arange(P)[None] >= P - jnp.array(LENGTHS)[:, None]
  real = jnp.concatenate([valid, jnp.ones((B, G * T), bool)], axis=1)[:, :, None, None]
  slots, limit = P + jnp.arange(T), None if window is None else jnp.int32(window)

  def tree(q, k, v):
    return attention.tree_attention(q, k, v, valid, slots, limit, scale=0.4, cap=cap)

  value, pull = jax.vjp(jax.jit(tree), q, k, v)
  expected, pull_expected = jax.vjp(jax.jit(lambda q, k, v: plain(q, k, v, window, 0.4, cap)), q, k, v)
  np.testing.assert_allclose(jnp.where(real, value, 0), jnp.where(real, expected, 0), atol=2e-6)
  d_out = jnp.where(real, d_out, 0)
  for got, want in zip(pull(d_out), pull_expected(d_out)):
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want).max() > 0.1


def test_products_and_scales_have_the_gradients_that_jax_derives():
  keys = jax.random.split(jax.random.key(1), 4)
  x, w = jax.random.normal(keys[0], (2, 5, 3, 4)), jax.random.normal(keys[1], (3, 4, 2, 6))
  einsum = lambda x, w: jnp.einsum('abij,ijkl->abkl', x, w, precision='highest')
  dy = jax.random.normal(keys[2], (2, 5, 2, 6))
  for got, want in zip(
    jax.vjp(lambda x, w: matmul(2, jnp.float32, (), x, w), x, w)[1](dy), jax.vjp(einsum, x, w)[1](dy)
  ):
    np.testing.assert_allclose(got, want, atol=1e-5)
  scale, dx = jax.random.normal(keys[3], (4,)), jax.random.normal(keys[2], x.shape)
  for got, want in zip(
    jax.vjp(scaled, x, scale)[1](dx), jax.vjp(lambda x, s: x * s[None, None, None], x, scale)[1](dx)
  ):
    np.testing.assert_allclose(got, want, atol=1e-5)
