"""A model with a scalar head, trained on preferences, as the judge (arXiv 2203.02155; of gaps, 2310.00898)."""

from typing import Literal

import jax.numpy as jnp

from past_jax.logps import scorer
from past_jax.scores import HEAD, group_scores
from past_jax.types import Judge, Judgement, Policy, UserError


def reward(
  role: str = 'judge', view: Literal['same', 'plain'] = 'same', chunk: int = 16, *, policy: Policy, plain
) -> Judge:
  """Score: what the head says after the completion's last token; an empty completion abstains.

  With a draft in the prompt and the judge trained by the loss `gap` that is g(completion, draft): no gain
  is g(draft, draft), which is the same for a whole group.

  Args:
    view: `same`: it reads the group's own prompts, drafts included. `plain`: config.view.instruction, as a judge that
      was trained without drafts has it. Scores of a group then differ by as much as their gaps to any draft.
    chunk: completions per device call, in whole groups.

  Raises:
    UserError: the role's model has no such head.
  """
  scorers = {}  # by G: groups are scored whole, so that a prompt is computed once

  def of(G):
    if G not in scorers:
      scorers[G] = scorer(policy, max(1, chunk // G), group_scores)
    return scorers[G]

  def lower(weights, group):
    G, T = group.ids_BxGxT.shape[1:]
    return of(G).lower(weights[role], group.prompts.ids_BxP.shape[1], G, T)

  def score(weights, key, group, examples) -> Judgement:
    del key
    if HEAD not in weights[role]:
      raise UserError(f"the judge 'reward' needs a scalar head, and the model of the role {role!r} has none.")
    prompts = group.prompts if view == 'same' else plain(examples)
    found = jnp.asarray(of(group.ids_BxGxT.shape[1])(weights[role], prompts, group.ids_BxGxT, group.length_BxG))
    return Judgement(jnp.where(group.length_BxG > 0, found, jnp.nan))

  return Judge(score, lower={'judge': lower})
