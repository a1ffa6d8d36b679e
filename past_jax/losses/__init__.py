"""Losses: pure functions of small arrays, (outputs, batch) -> (scalar, metrics). They never see the model.

`outputs['logps_BxGxT']` are the policy's log-probs of the batch's members. Sums are in float32; tokens beyond a
completion, and members of weight 0, change neither value nor gradient. docs/losses.md is the table with formulas.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from past_jax.losses import pairs
from past_jax.losses.groups import grpo, nash_md, rloo
from past_jax.losses.judges import bradley_terry, gap
from past_jax.losses.rows import kto, nll, optimism
from past_jax.types import Batch, Loss, UserError


def add(terms: Sequence[tuple[float, str, Loss]]) -> Loss:
  """sum of weight * loss over (weight, name, loss). Metrics of a term are under its name; `loss` is the sum.

  RPO (2405.16436) and IRPO (2404.19733) are dpo + alpha * nll of rows `chosen`, per sequence; MPO (2411.10442) is
  0.8 * dpo + 0.2 * bco_pair + nll of rows `chosen`.

  Raises:
    UserError: no terms, or two of one name.
  """
  names = [name for _, name, _ in terms]
  if not names or len(set(names)) < len(names):
    raise UserError(f'losses {names}: name one or more, each once.')

  def value(outputs, batch: Batch):
    total, metrics = jnp.float32(0), {}
    for weight, name, term in terms:
      part, named = term(outputs, batch)
      total += weight * part
      metrics |= {f'{name}/{key}': x for key, x in named.items()}
    return total, metrics | {'loss': total}

  parts = [loss for _, _, loss in terms]
  return Loss(
    value,
    statistics=tuple(dict.fromkeys(x for part in parts for x in part.statistics)),
    reference=any(part.reference for part in parts),
    old=any(part.old for part in parts),
    scores=any(part.scores for part in parts),
    at_reference={f'{name}/{key}': x for _, name, part in terms for key, x in part.at_reference.items()},
  )


PAIRS = (
  *(pairs.dpo, pairs.robust, pairs.hinge, pairs.ipo, pairs.sigmoid_norm, pairs.exo_pair, pairs.discopop, pairs.rebel),
  *(pairs.nca_pair, pairs.bco_pair, pairs.sppo_hard, pairs.sppo, pairs.apo_zero, pairs.apo_down),
  *(pairs.aot, pairs.aot_unpaired, pairs.simpo, pairs.cpo, pairs.orpo),
)
TABLE = {make.__name__: make for make in (*PAIRS, nll, kto, optimism, grpo, rloo, nash_md, bradley_terry, gap)}
