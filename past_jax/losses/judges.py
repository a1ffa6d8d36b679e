"""Losses of judges that are trained: of scores of whole completions, by a scalar head (scores.py)."""

from typing import Literal

import jax
import jax.numpy as jnp

from past_jax.losses.common import at_least_0, choice, mean
from past_jax.types import Batch, Loss

# Members of a group that is given in all four orders (`Plan.draft` 'orders'), each after its draft: the better after
# the worse, the better after itself, the worse after itself, the worse after the better.
WL, WW, LL, LW = range(4)
TERMS = {
  'five': ((WL, WW), (WL, LL), (WL, LW), (WW, LW), (LL, LW)),
  'one': ((WL, LW),),
}


def bradley_terry(margin: float = 0.0, centre: float = 0.0) -> Loss:
  """-log s(r_chosen - r_rejected - margin) + centre * (r_chosen + r_rejected)^2: 2203.02155 eq. 1; 2312.09244 eq. 6.

  Args:
    centre: above 0 it ties the mean of a pair's rewards to 0, which preferences leave open.

  Raises:
    UserError: a negative key.
  """
  at_least_0('bradley_terry.margin', margin)
  at_least_0('bradley_terry.centre', centre)

  def value(outputs, batch: Batch):
    s = batch.selection
    keep = s.pair_weight_BxJ > 0
    of = lambda index: jnp.where(keep, jnp.take_along_axis(outputs['score_BxG'], index, axis=1), 0.0)
    chosen, rejected = of(s.chosen_BxJ), of(s.rejected_BxJ)
    losses = -jax.nn.log_sigmoid(chosen - rejected - margin) + centre * (chosen + rejected) ** 2
    loss = mean(losses, s.pair_weight_BxJ)
    right = 0.5 * (1 + jnp.sign(chosen - rejected))
    return loss, {
      'loss': loss,
      'pairs': s.pair_weight_BxJ.sum(),
      'accuracy': mean(right, s.pair_weight_BxJ),
      'margin': mean(chosen - rejected, s.pair_weight_BxJ),
      'mean': mean((chosen + rejected) / 2, s.pair_weight_BxJ),
    }

  return Loss(value, reference=False, needs='pairs', scores=True)


def gap(terms: Literal['five', 'one'] = 'five') -> Loss:
  """How much better a is than b, g(a, b), from pairs in which w is better than l: 2310.00898, section 3.3.

    five: -log s of g(w,l)-g(w,w), g(w,l)-g(l,l), g(w,l)-g(l,w), g(w,w)-g(l,w) and g(l,l)-g(l,w), summed
    one:  -log s(g(w,l) - g(l,w)) alone, which says nothing of equals

  Only differences are told, so no gain is g(b, b), which need not be 0.

  A group is given in the order of `WL`, `WW`, `LL`, `LW`; one that lacks a member teaches nothing.

  Raises:
    UserError: unknown `terms`.
  """
  choice('gap.terms', terms, TERMS)

  def value(outputs, batch: Batch):
    weight = (batch.selection.row_weight_BxG > 0).all(1).astype(jnp.float32)
    g = jnp.where(weight[:, None] > 0, outputs['score_BxG'], 0.0)
    losses = sum(-jax.nn.log_sigmoid(g[:, more] - g[:, less]) for more, less in TERMS[terms])
    loss = mean(losses, weight)
    right = lambda difference: mean(0.5 * (1 + jnp.sign(difference)), weight)
    return loss, {
      'loss': loss,
      'rows': weight.sum(),
      'accuracy': right(g[:, WL] - g[:, LW]),
      'margin': mean(g[:, WL] - g[:, LW], weight),
      'better': mean(g[:, WL], weight),
      'equal': mean((g[:, WW] + g[:, LL]) / 2, weight),
      'worse': mean(g[:, LW], weight),
    }

  return Loss(value, reference=False, needs='orders', scores=True)
