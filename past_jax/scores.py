"""What a model with a scalar head says of whole completions: reward models, and judges of the gap between two.

The head is one more leaf of a model's parameters, `score/kernel` [D, 1]; its body is that of any `Policy`. Its input is
the state of a completion's last token, the end token if it has one, as Hugging Face's sequence classifiers have it.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from past_jax.logps import Rows
from past_jax.types import Array, Params, Policy

HEAD = 'score'


def with_head(params: Params, width: int) -> Params:
  """`params`, or adapters, of a model of this width and a head of zeros: every completion has the score 0 at first."""
  return params | {HEAD: {'kernel': jnp.zeros((width, 1), jnp.float32)}}


def body(params: Params) -> Params:
  """`params` without the head."""
  return {name: leaves for name, leaves in params.items() if name != HEAD}


def outputs(
  policy: Policy, params: Params, batches: Mapping[str, Rows], statistics: Any = None, *, chunk: int = 0
) -> dict[str, dict[str, Array]]:
  """Of each batch `score_BxG`, float32; 0 for an empty completion. All batches in one pass, as `logps.outputs` has it.

  There is one state per completion, so nothing is cut into chunks, and there are no statistics of tokens.
  """
  del statistics, chunk

  def longer(prompts, ids_BxGxT, length_BxG):
    """By a token that nothing reads: states are those before a token, and what is wanted is the one after the last."""
    return prompts, jnp.pad(ids_BxGxT, ((0, 0), (0, 0), (0, 1))), length_BxG

  def scored(hidden_BxGxTxD, length_BxG):
    last_BxGxD = jnp.take_along_axis(hidden_BxGxTxD, length_BxG[:, :, None, None], axis=2)[:, :, 0]
    score = jnp.einsum('bgd,do->bgo', last_BxGxD.astype(jnp.float32), params[HEAD]['kernel'], precision='highest')
    return jnp.where(length_BxG > 0, score[:, :, 0], 0.0)

  hidden = policy.groups(body(params), [longer(*rows) for rows in batches.values()])
  return {name: {'score_BxG': scored(x, rows[2])} for (name, rows), x in zip(batches.items(), hidden)}


def group_scores(policy: Policy, params: Params, *rows) -> Array:
  """score_BxG of one batch: rows are prompts, ids_BxGxT, length_BxG."""
  return outputs(policy, params, {'': rows})['']['score_BxG']
