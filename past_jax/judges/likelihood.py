"""How likely a frozen model finds a completion: self-reward for sharpening (arXiv 2412.01951, section 2)."""

import jax.numpy as jnp
import numpy as np

from past_jax.logps import scorer, token_mask
from past_jax.mesh import host
from past_jax.types import Judge, Judgement, Policy


def likelihood(role: str = 'base', chunk: int = 16, *, policy: Policy) -> Judge:
  """Score: log p(completion | the group's own prompt) in nats under the frozen `role`, end token included.

  A completion without a predicted token (empty) abstains. `chunk`: completions per device call, in whole groups.
  info: `logp`, the same.
  """
  return _judge(role, chunk, policy, per_token=False)


def length_normalised(role: str = 'base', chunk: int = 16, *, policy: Policy) -> Judge:
  """As `likelihood`, divided by the number of predicted tokens: nats per token. info: `logp`, not divided."""
  return _judge(role, chunk, policy, per_token=True)


def _judge(role, chunk, policy, per_token):
  scorers = {}  # by G: groups are scored whole, so that a prompt is computed once

  def of(G):
    if G not in scorers:
      scorers[G] = scorer(policy, max(1, chunk // G))
    return scorers[G]

  def lower(weights, group):
    G, T = group.ids_BxGxT.shape[1:]
    return of(G).lower(weights[role], group.prompts.ids_BxP.shape[1], G, T)

  def score(weights, key, group, examples) -> Judgement:
    del key, examples
    G, T = group.ids_BxGxT.shape[1:]
    logps = of(G)(weights[role], group.prompts, group.ids_BxGxT, group.length_BxG)
    tokens = host(token_mask(group.prompts, group.length_BxG, T)).sum(-1)
    total = np.where(tokens > 0, logps.sum(-1, dtype=np.float64), np.nan)
    found = total / np.maximum(tokens, 1) if per_token else total
    return Judgement(jnp.asarray(found, jnp.float32), info={'logp': jnp.asarray(total, jnp.float32)})

  return Judge(score, lower={'judge': lower})
