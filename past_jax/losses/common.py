"""What the losses share: masks, sums and means that what has weight 0 cannot touch, checks of keys."""

import jax
import jax.numpy as jnp

from past_jax.logps import token_mask
from past_jax.types import Batch, UserError

CAP = 40.0  # exponents are cut off here: exp(2 * CAP), a square, is still a float32


def masked(x_BxGxT, batch: Batch):
  """(x in float32 and 0 where a token has no log-prob, bool_BxGxT: where it has one)"""
  mask = token_mask(batch.prompts, batch.length_BxG, batch.ids_BxGxT.shape[2])
  return jnp.where(mask, x_BxGxT.astype(jnp.float32), 0.0), mask


def log_ratios(logps_BxGxT, other_BxGxT, batch: Batch):
  """log p - log p_other per token; without the other's log-probs it is the policy itself under `stop_gradient`.

  Differences come before sums: sums of hundreds of nats would round small ones away.
  """
  logps, _ = masked(logps_BxGxT, batch)
  other = jax.lax.stop_gradient(logps) if other_BxGxT is None else masked(other_BxGxT, batch)[0]
  return logps - other


def mean(x, weight):
  """Weighted mean; 0 without any weight. What has weight 0 may be anything, even infinite."""
  total = jnp.where(weight > 0, x * jnp.where(weight > 0, weight, 0.0), 0.0).sum()
  scale = weight.sum()
  return total / jnp.where(scale > 0, scale, 1.0)


def reward_bounds(beta: float) -> dict[str, tuple[float, float]]:
  """What rewards beta * h are at the reference, for `Loss.at_reference`."""
  return {f'rewards/{name}': (0.0, k * beta) for name, k in (('chosen', 1), ('rejected', 1), ('margins', 2))}


def choice(key: str, value, options) -> None:
  if value not in options:
    raise UserError(f'{key}={value!r}: choose one of {", ".join(options)}.')


def at_least_0(key: str, value: float) -> None:
  if not value >= 0:
    raise UserError(f'{key}={value}: give a number of at least 0.')


def positive(key: str, value: float) -> None:
  if not value > 0:
    raise UserError(f'{key}={value}: give a number above 0.')
