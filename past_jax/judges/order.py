"""The judge of data that come judged: completions are given best first."""

import jax.numpy as jnp

from past_jax.types import Judge, Judgement


def order() -> Judge:
  """Score: how many places of the group come after a given completion. It abstains on all that was not given.

  So chosen beats rejected, and a ranked list gives all its pairs.
  """

  def score(weights, key, group, examples) -> Judgement:
    del weights, key, examples
    G = group.length_BxG.shape[1]
    places = jnp.arange(G - 1, -1, -1, dtype=jnp.float32)[None]
    return Judgement(jnp.where((group.source_BxG == -1) & (group.length_BxG > 0), places, jnp.nan))

  return Judge(score)
