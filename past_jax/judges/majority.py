"""The group as its own judge: completions vote with their answers (self-consistency, arXiv 2203.11171)."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from past_jax import answers
from past_jax.judges.likelihood import likelihood
from past_jax.judges.rows import bodies
from past_jax.mesh import host
from past_jax.types import Judge, Judgement, Policy, UserError

Rule = Literal[tuple(answers.RULES)]
WEIGHTS = ('count', 'likelihood')


def shares(found_G: Sequence[str | None]) -> list[float | None]:
  """Of each answer, the share of all G that gave the same; None has no vote and gets none."""
  count = Counter(found_G)
  return [None if answer is None else count[answer] / len(found_G) for answer in found_G]


def answer_of(text: str, rule: str) -> str | None:
  """The answer in `text` in the one spelling of all that are the same."""
  found = answers.extract(text, rule)
  return None if found is None else answers.canonical(found)


def majority(
  rule: Rule = 'last_number',
  weight: Literal['count', 'likelihood'] = 'count',
  role: str = 'base',
  chunk: int = 16,
  *,
  policy: Policy,
  tokenizer,
) -> Judge:
  """Score: how much of the group gives the same answer. A completion without an answer abstains, and counts as one.

  Args:
    rule: where the answer stands in a completion, of `answers.RULES`.
    weight: `count`: the share of the group's members. `likelihood`: the log in nats of the summed probability, under
      the frozen `role`, of the group's different completions with that answer: arXiv 2412.01951, section 2, of the
      completions that were drawn.
    chunk: of `likelihood`, which scores them.

  info: `logp` of `likelihood`, with that weight only.

  Raises:
    UserError: an unknown rule or weight.
  """
  if rule not in answers.RULES:
    raise UserError(f'judge.rule={rule!r}: choose one of {", ".join(answers.RULES)}.')
  if weight not in WEIGHTS:
    raise UserError(f'judge.weight={weight!r}: choose one of {", ".join(WEIGHTS)}.')
  likely = likelihood(role, chunk, policy=policy)

  def score(weights, key, group, examples) -> Judgement:
    given = bodies(tokenizer, group)
    length_BxG, source_BxG = host((group.length_BxG, group.source_BxG))
    drawn_BxG = (length_BxG > 0) & (source_BxG > -2)
    found = [[answer_of(tokenizer.decode(ids), rule) for ids in row] for row in given]
    out_BxG, info = np.full(drawn_BxG.shape, np.nan, np.float32), {}
    if weight == 'likelihood':
      info = likely.score(weights, key, group, examples).info
      logp_BxG = np.asarray(info['logp'], np.float64)
    for b, row in enumerate(found):
      members = [g for g in range(len(row)) if drawn_BxG[b, g]]
      if weight == 'count':
        out_BxG[b, members] = [np.nan if share is None else share for share in shares([row[g] for g in members])]
        continue
      logps = {}  # answer -> {completion: log p}: copies are one completion
      for g in members:
        if row[g] is not None and np.isfinite(logp_BxG[b, g]):
          logps.setdefault(row[g], {})[tuple(given[b][g])] = logp_BxG[b, g]
      mass = {answer: np.logaddexp.reduce(list(different.values())) for answer, different in logps.items()}
      out_BxG[b, members] = [mass.get(row[g], np.nan) for g in members]
    return Judgement(out_BxG, info=info)

  count = weight == 'count'
  return Judge(score, on_host=count, lower={} if count else likely.lower)
