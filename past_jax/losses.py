"""Losses: pure functions of small arrays, (outputs, batch) -> (scalar, metrics). They never see the model.

`outputs['logps_BxGxT']` are the policy's log-probs of the batch's members. Sums are in float32; tokens beyond a
completion, and members of weight 0, change neither value nor gradient.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from past_jax.logps import token_mask
from past_jax.types import Batch, Loss, UserError


def _masked(x_BxGxT, batch: Batch):
  mask = token_mask(batch.prompts, batch.length_BxG, batch.ids_BxGxT.shape[2])
  return jnp.where(mask, x_BxGxT.astype(jnp.float32), 0.0), mask


def _mean(x, weight):
  """Weighted mean; 0 without any weight. What has weight 0 may be anything, even infinite."""
  total = jnp.where(weight > 0, x * jnp.where(weight > 0, weight, 0.0), 0.0).sum()
  scale = weight.sum()
  return total / jnp.where(scale > 0, scale, 1.0)


def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> Loss:
  """Direct preference optimisation with conservative smoothing: arXiv 2305.18290 equation 7, cDPO.

    -(1 - eps) * log s(beta * D) - eps * log s(-beta * D),  D = (log p - log ref)(chosen) - (log p - log ref)(rejected)

  with log-probs summed over a completion, averaged over pairs by their weights. Without reference log-probs the
  reference is the policy itself under `stop_gradient`, so the value is ln 2. Metric `pairs` is the sum of pair weights.

  Raises:
    UserError: label_smoothing outside [0, 0.5], or a negative beta.
  """
  if not 0 <= label_smoothing <= 0.5:
    raise UserError(f'dpo.label_smoothing={label_smoothing}: the share of wrong labels is between 0 and 0.5.')
  if not beta >= 0:
    raise UserError(f'dpo.beta={beta}: give a number of at least 0.')

  def loss(outputs, batch: Batch):
    logps, _ = _masked(outputs['logps_BxGxT'], batch)
    if batch.ref_logps_BxGxT is None:
      ref = jax.lax.stop_gradient(logps)
    else:
      ref, _ = _masked(batch.ref_logps_BxGxT, batch)
    selection = batch.selection
    pick = lambda x, index: jnp.take_along_axis(x, index, axis=1)
    ratio_BxG = (logps - ref).sum(-1)  # differences first: sums of hundreds of nats would round small ones away
    chosen, rejected = (pick(ratio_BxG, i) for i in (selection.chosen_BxJ, selection.rejected_BxJ))
    logits = beta * (chosen - rejected)
    value = -(1 - label_smoothing) * jax.nn.log_sigmoid(logits) - label_smoothing * jax.nn.log_sigmoid(-logits)
    mean = lambda x: _mean(x, selection.pair_weight_BxJ)
    total = mean(value)
    return total, {
      'loss': total,
      'pairs': selection.pair_weight_BxJ.sum(),
      'rewards/chosen': mean(beta * chosen),
      'rewards/rejected': mean(beta * rejected),
      'rewards/margins': mean(logits),
      'rewards/accuracies': mean((logits > 0).astype(jnp.float32)),
      'logps/chosen': mean(pick(logps.sum(-1), selection.chosen_BxJ)),
      'logps/rejected': mean(pick(logps.sum(-1), selection.rejected_BxJ)),
    }

  return loss


def nll(rows: Literal['selected', 'chosen'] = 'selected', per: Literal['token', 'sequence'] = 'token') -> Loss:
  """Negative log-likelihood of single completions, or of a raw text as the one member of its group.

  Args:
    rows: `selected`: members by their row weight; `chosen`: by the pair weights of the pairs that chose them.
    per: `token`: mean over all tokens, each with its row's weight. `sequence`: weighted mean over rows of each row's
      own mean over tokens (the term of arXiv 2404.19733), so that long ones do not count for more.

  Raises:
    UserError: an unknown `rows` or `per`.
  """
  for name, value, options in (('rows', rows, ('selected', 'chosen')), ('per', per, ('token', 'sequence'))):
    if value not in options:
      raise UserError(f'nll.{name}={value!r}: choose one of {", ".join(options)}.')

  def loss(outputs, batch: Batch):
    logps, mask = _masked(outputs['logps_BxGxT'], batch)
    weight = batch.selection.row_weight_BxG
    if rows == 'chosen':
      picked = batch.selection.chosen_BxJ[:, :, None] == jnp.arange(logps.shape[1])[None, None]
      weight = jnp.where(picked, batch.selection.pair_weight_BxJ[:, :, None], 0.0).sum(1)
    tokens = mask.sum(-1).astype(jnp.float32)
    own = -logps.sum(-1) / jnp.maximum(tokens, 1.0)
    # A row without predicted tokens (a lone first token without BOS) says nothing and must not pull the mean down.
    total = _mean(own, weight * tokens if per == 'token' else weight * (tokens > 0))
    return total, {'loss': total, 'tokens': jnp.where(weight > 0, tokens, 0.0).sum()}

  return loss


def add(terms: Sequence[tuple[float, str, Loss]]) -> Loss:
  """sum of weight * loss over (weight, name, loss). Metrics of a term are under its name; `loss` is the sum.

  Raises:
    UserError: no terms, or two of one name.
  """
  names = [name for _, name, _ in terms]
  if not names or len(set(names)) < len(names):
    raise UserError(f'losses {names}: name one or more, each once.')

  def loss(outputs, batch: Batch):
    total, metrics = jnp.float32(0), {}
    for weight, name, term in terms:
      value, named = term(outputs, batch)
      total += weight * value
      metrics |= {f'{name}/{key}': x for key, x in named.items()}
    return total, metrics | {'loss': total}

  return loss


TABLE = {'dpo': dpo, 'nll': nll}
