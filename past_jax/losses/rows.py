"""Losses of single completions."""

from typing import Literal

import jax.numpy as jnp

from past_jax.losses.common import choice, masked, mean
from past_jax.types import Batch, Loss

MISMATCHED = -2  # source of completions of another prompt


def nll(rows: Literal['selected', 'chosen'] = 'selected', per: Literal['token', 'sequence'] = 'token') -> Loss:
  """Negative log-likelihood of single completions, or of a raw text as the one member of its group.

  Args:
    rows: `selected`: members by their row weight; `chosen`: by the pair weights of the pairs that chose them.
    per: `token`: mean over all tokens, each with its row's weight. `sequence`: weighted mean over rows of each row's
      own mean over tokens (the term of arXiv 2404.19733), so that long ones do not count for more.

  Raises:
    UserError: an unknown `rows` or `per`.
  """
  choice('nll.rows', rows, ('selected', 'chosen'))
  choice('nll.per', per, ('token', 'sequence'))

  def value(outputs, batch: Batch):
    logps, mask = masked(outputs['logps_BxGxT'], batch)
    weight = batch.selection.row_weight_BxG
    if rows == 'chosen':
      picked = batch.selection.chosen_BxJ[:, :, None] == jnp.arange(logps.shape[1])[None, None]
      weight = jnp.where(picked, batch.selection.pair_weight_BxJ[:, :, None], 0.0).sum(1)
    tokens = mask.sum(-1).astype(jnp.float32)
    own = -logps.sum(-1) / jnp.maximum(tokens, 1.0)
    # A row without predicted tokens (a lone first token without BOS) says nothing and must not pull the mean down.
    loss = mean(own, weight * tokens if per == 'token' else weight * (tokens > 0))
    return loss, {'loss': loss, 'tokens': jnp.where(weight > 0, tokens, 0.0).sum()}

  return Loss(value, reference=False, needs='pairs' if rows == 'chosen' else '')
