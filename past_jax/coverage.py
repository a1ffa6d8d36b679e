"""What can be had from samples alone: how likely the likeliest one is, and whether a right one is among them.

Figures of one round's groups, for people. Sharpening by sampling costs what coverage does not give (arXiv 2412.01951).
"""

from collections.abc import Sequence

import numpy as np

from past_jax import answers
from past_jax.mesh import host
from past_jax.text import Tokenizer, completion_text
from past_jax.types import Example, Group, Judgement


def coverage(tokenizer: Tokenizer, rule: str = '', sampler_is_base: bool = False):
  """Returns measure(group, judgement, examples) -> metrics of a group's samples, its opponents' left out.

  coverage/length        tokens of a completion, end token included
  coverage/log_c_cov     log of the mean of 1 / max_y p(y | x), y among a prompt's samples, in nats. It falls to the log
                         of the coverage coefficient, which is over all y, as samples become many
  coverage/log_margin    log p of the best sample less that of the second best different one, in nats, over the prompts
                         that have two
  With a `rule`, of `answers.RULES`:
  coverage/unanswered    share of completions without an answer
  And over the prompts whose examples have a target:
  coverage/right         share of completions that are right: what one sample is worth
  coverage/any_right     share of prompts with a right one: the most that any judge could make of the group
  coverage/best_right    share of prompts whose best one, as judged, is right (best-of-N); the first of equals
  coverage/right_likelier  of pairs of a right and a wrong completion of one prompt, share in which p(right) is higher,
                         ties half (the area under the ROC curve)

  p is the frozen base's: what the judge says it is (info `logp`), or the sampler's own log-probs if `sampler_is_base`.
  Without either there are no figures of p. NaN where there is nothing to take the mean of.
  """

  def measure(group: Group, judgement: Judgement, examples: Sequence[Example]) -> dict[str, float]:
    logp_BxG = judgement.info.get('logp')
    if logp_BxG is None and sampler_is_base:
      logp_BxG = group.logps_BxGxT.sum(-1)
    ids, length, source, score_BxG, logp_BxG = host(
      (group.ids_BxGxT, group.length_BxG, group.source_BxG, judgement.score_BxG, logp_BxG)
    )
    drawn_BxG = (length > 0) & (source == 0)
    out = {'length': _mean(length[drawn_BxG])}
    if logp_BxG is not None:
      known_BxG = drawn_BxG & np.isfinite(logp_BxG)
      logps = [
        sorted({tuple(ids[b, g, : length[b, g]]): float(logp_BxG[b, g]) for g in np.flatnonzero(row)}.values())
        for b, row in enumerate(known_BxG)
        if row.any()
      ]
      best = np.array([row[-1] for row in logps])
      out['log_c_cov'] = float(np.logaddexp.reduce(-best) - np.log(len(best))) if len(best) else np.nan
      out['log_margin'] = _mean([row[-1] - row[-2] for row in logps if len(row) > 1])
    if not rule:
      return {f'coverage/{name}': value for name, value in out.items()}

    found = {
      (b, g): answers.extract(completion_text(tokenizer, ids[b, g], int(length[b, g])), rule)
      for b, g in zip(*np.nonzero(drawn_BxG))
    }
    out['unanswered'] = _mean([answer is None for answer in found.values()])
    rights, any_right, best_right, likelier = [], [], [], []
    for b, example in enumerate(examples):
      members = np.flatnonzero(drawn_BxG[b])
      if not example.target or not len(members):
        continue
      target = answers.extract(example.target, rule) or example.target
      right = np.array([answers.same(found[b, g], target) for g in members])
      score = score_BxG[b, members]
      rights.append(right.mean())
      any_right.append(right.any())
      best_right.append(np.isfinite(score).any() and right[np.nanargmax(score)])
      if logp_BxG is not None:
        logp = logp_BxG[b, members]
        apart = logp[right][:, None] - logp[~right][None]
        likelier += list((np.sign(apart[np.isfinite(apart)]) + 1) / 2)
    if rights:
      out |= {'right': _mean(rights), 'any_right': _mean(any_right), 'best_right': _mean(best_right)}
      out |= {} if logp_BxG is None else {'right_likelier': _mean(likelier)}
    return {f'coverage/{name}': value for name, value in out.items()}

  return measure


def _mean(values) -> float:
  return float(np.mean(values)) if len(values) else float('nan')
