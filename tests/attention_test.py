"""Attention over a tree against softmax over each row's own keys, in blocks and chunks smaller than the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax.models import attention
from past_jax.models.transformer import matmul, scaled

B, P, G, T, H, K, D = 2, 11, 3, 5, 4, 2, 8
LENGTHS = np.array([11, 4])


def alone(q, k, v, window, scale, cap):
  """Each row by itself, one query at a time, softmax over the keys it may see; differentiated by JAX."""
  out = []
  for b in range(B):
    pads, rows = P - LENGTHS[b], []
    for s in range(P + G * T):
      g, t = divmod(s - P, T)
      own = [] if s < P else list(range(P + g * T, P + g * T + t + 1))
      seen = (list(range(pads, min(s + 1, P))) + own)[-(window or 999) :]
      if not seen:  # a pad
        rows.append(jnp.zeros((H, D)))
        continue
      heads = []
      for h in range(H):
        keys, values = k[b, jnp.array(seen), h // (H // K)], v[b, jnp.array(seen), h // (H // K)]
        scores = scale * (keys * q[b, s, h][None]).sum(-1)
        scores = cap * jnp.tanh(scores / cap) if cap else scores
        heads.append((jax.nn.softmax(scores)[:, None] * values).sum(0))
      rows.append(jnp.stack(heads))
    out.append(jnp.stack(rows))
  return jnp.stack(out)


@pytest.mark.parametrize('window,cap', [(None, 0.0), (4, 0.0), (None, 1.5), (6, 0.8)])
def test_blocks_and_chunks_change_no_value_and_no_gradient(monkeypatch, window, cap):
  monkeypatch.setattr(attention, 'BLOCK', 4)  # three blocks of the prompt, the last one short
  monkeypatch.setattr(attention, 'BLOCKS', 3)
  monkeypatch.setattr(attention, 'SCORES', B * H * T * (P + T) * 2)  # two completions at once, then one
  keys = jax.random.split(jax.random.key(0), 4)
  q, d_out = (jax.random.normal(key, (B, P + G * T, H, D)) for key in keys[:2])
  k, v = (jax.random.normal(key, (B, P + G * T, K, D)) for key in keys[2:])
  valid = jnp.arange(P)[None] >= P - jnp.array(LENGTHS)[:, None]
  real = jnp.concatenate([valid, jnp.ones((B, G * T), bool)], axis=1)[:, :, None, None]
  slots, limit = P + jnp.arange(T), None if window is None else jnp.int32(window)

  def tree(q, k, v):
    return attention.tree_attention(q, k, v, valid, slots, limit, scale=0.4, cap=cap)

  value, pull = jax.vjp(jax.jit(tree), q, k, v)
  expected, pull_expected = jax.vjp(lambda q, k, v: alone(q, k, v, window, 0.4, cap), q, k, v)
  np.testing.assert_allclose(jnp.where(real, value, 0), expected, atol=2e-6)
  d_out = jnp.where(real, d_out, 0)
  for got, want in zip(pull(d_out), pull_expected(d_out)):
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want).max() > 0.1


def test_products_and_scales_have_the_gradients_that_jax_derives():
  keys = jax.random.split(jax.random.key(1), 4)
  x, w = jax.random.normal(keys[0], (2, 5, 3, 4)), jax.random.normal(keys[1], (3, 4, 2, 6))
  plain = lambda x, w: jnp.einsum('abij,ijkl->abkl', x, w, precision='highest')
  dy = jax.random.normal(keys[2], (2, 5, 2, 6))
  for got, want in zip(jax.vjp(lambda x, w: matmul(2, jnp.float32, x, w), x, w)[1](dy), jax.vjp(plain, x, w)[1](dy)):
    np.testing.assert_allclose(got, want, atol=1e-5)
  scale, dx = jax.random.normal(keys[3], (4,)), jax.random.normal(keys[2], x.shape)
  for got, want in zip(
    jax.vjp(scaled, x, scale)[1](dx), jax.vjp(lambda x, s: x * s[None, None, None], x, scale)[1](dx)
  ):
    np.testing.assert_allclose(got, want, atol=1e-5)
