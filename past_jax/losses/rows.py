"""Losses of single completions."""

from typing import Literal

import jax
import jax.numpy as jnp

from past_jax.losses.common import at_least_0, choice, log_ratios, masked, mean, reward_bounds
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


def kto(beta: float = 0.1, threshold: float = 0.0, desirable: float = 1.0, undesirable: float = 1.0) -> Loss:
  """Kahneman-Tversky optimisation of single completions: 2402.01306 eq. 7.

    desirable * (1 - s(beta * (h - z))) for a good one, undesirable * (1 - s(beta * (z - h))) for a bad one

  averaged by row weights. h is the log-ratio to the reference, z its mean over completions of other prompts (members
  of source -2), at least 0 and without gradient; without such members it is 0.

  Args:
    threshold: a completion is good if its score is above.

  Raises:
    UserError: a negative key.
  """
  for key, x in (('beta', beta), ('desirable', desirable), ('undesirable', undesirable)):
    at_least_0(f'kto.{key}', x)

  def value(outputs, batch: Batch):
    s = batch.selection
    logps, mask = masked(outputs['logps_BxGxT'], batch)
    ratio = log_ratios(logps, batch.ref_logps_BxGxT, batch).sum(-1)
    other = (batch.source_BxG == MISMATCHED) & mask.any(-1)
    weight = jnp.where(other, 0.0, s.row_weight_BxG)
    z = jax.lax.stop_gradient(jnp.maximum(mean(ratio, other.astype(jnp.float32)), 0.0))
    h = jnp.where(weight > 0, ratio, 0.0)
    good = s.score_BxG > threshold
    losses = jnp.where(good, desirable * jax.nn.sigmoid(beta * (z - h)), undesirable * jax.nn.sigmoid(beta * (h - z)))
    loss = mean(losses, weight)
    of = lambda x, which: mean(x, jnp.where(which, weight, 0.0))
    chosen, rejected = of(beta * h, good), of(beta * h, ~good)
    return loss, {
      'loss': loss,
      'rows': weight.sum(),
      'kl': z,
      'rewards/chosen': chosen,
      'rewards/rejected': rejected,
      'rewards/margins': chosen - rejected,
      'logps/chosen': of(logps.sum(-1), good),
      'logps/rejected': of(logps.sum(-1), ~good),
    }

  at = {'loss': (desirable / 2, beta * desirable / 2)} if desirable == undesirable else {}
  return Loss(value, needs='scores', at_reference=at | reward_bounds(beta) | {'kl': (0.0, 1.0)})


def optimism(source: int = 1) -> Loss:
  """Mean log p of the pairs' completions from the generator `source`: XPO, 2405.21046 algorithm 1.

  Minimised with weight alpha beside `dpo` (beside `rebel`: 2412.01951, algorithm 1), where `source` is the reference
  policy, it pushes mass away from what that would say: exploration. `generator.opponents` of `generator.opponent` are
  of source 1.
  """

  def value(outputs, batch: Batch):
    s = batch.selection
    logps, _ = masked(outputs['logps_BxGxT'], batch)
    member = jnp.arange(logps.shape[1])[None, None]
    paired = lambda index: ((index[:, :, None] == member) & (s.pair_weight_BxJ > 0)[:, :, None]).any(1)
    weight = (paired(s.chosen_BxJ) | paired(s.rejected_BxJ)) & (batch.source_BxG == source)
    loss = mean(logps.sum(-1), weight.astype(jnp.float32))
    return loss, {'loss': loss, 'rows': weight.sum()}

  return Loss(value, reference=False, needs='differences', sources=(source,))
