"""Judges that know nothing: what a judge is worth is measured against them."""

import jax
import jax.numpy as jnp

from past_jax.types import Judge, Judgement


def random() -> Judge:
  """Score: uniform in [0, 1), a function of the key and the place in the batch only."""

  def score(weights, key, group, examples) -> Judgement:
    del weights, examples
    B, G = group.length_BxG.shape
    draw = lambda b, g: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, b), g))
    return Judgement(jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(jnp.arange(B), jnp.arange(G)))

  return Judge(score)


def constant(value: float = 0.0) -> Judge:
  """Score: `value` for everything, so every pair ties and `everything` keeps all."""

  def score(weights, key, group, examples) -> Judgement:
    del weights, key, examples
    return Judgement(jnp.full(group.length_BxG.shape, value, jnp.float32))

  return Judge(score)
