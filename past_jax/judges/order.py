"""The judge of data that come judged: completions are given best first."""

import jax.numpy as jnp

from past_jax.types import Judge, Judgement


def order() -> Judge:
  """Score: how many places of the given list come after one: 1 and 0 for a chosen and a rejected one.

  Empty places count, so that a chosen one without a rejected one is still one. It abstains on what is empty, not given,
  or not given with this prompt. A ranked list gives all its pairs.
  """

  def score(weights, key, group, examples) -> Judgement:
    del weights, key, examples
    given = group.source_BxG == -1
    after = jnp.cumsum(given[:, ::-1], axis=1)[:, ::-1] - given
    return Judgement(jnp.where(given & (group.length_BxG > 0), after.astype(jnp.float32), jnp.nan))

  return Judge(score)
