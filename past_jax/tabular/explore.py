"""Sharpening by exploration: pairs of a response of the current policy and one of the base, round by round."""

from typing import NamedTuple

import numpy as np

from past_jax import losses
from past_jax.tabular import fit, laws
from past_jax.types import Loss


class Arms(NamedTuple):
  """One prompt. A bulk of `bulk` responses that look alike to the policy, and a few single ones, each with a feature of
  its own, that are likelier one by one but rare together: samples of the base hardly ever show their features.
  """

  p_K: np.ndarray  # mass of the bulk, then of each single response
  reward_K: np.ndarray  # log p of one response: of the bulk's, then of the single ones

  @property
  def best(self) -> int:
    return int(self.reward_K.argmax())


def arms(coverage: float, singles: int, ratio: float, bulk_below: float, best: int) -> Arms:
  """C_cov = `coverage`; the other singles are `ratio` less likely than the best, a bulk response `bulk_below` times."""
  p_single = np.full(singles, 1 / (ratio * coverage))
  p_single[best] = 1 / coverage
  bulk = 1 - p_single.sum()
  return Arms(np.r_[bulk, p_single], np.log(np.r_[1 / (bulk_below * coverage), p_single]))


def xpo(alpha: float, beta: float) -> Loss:
  """Squared reward differences plus alpha * mean log p of the base's samples (algorithm 1, printed with a minus)."""
  parts = [(1.0, 'rebel', losses.TABLE['rebel'](beta=beta))]
  return losses.add(parts + ([(alpha, 'optimism', losses.TABLE['optimism']())] if alpha else []))


def samples_until_sharp(arms: Arms, step, alpha: float, beta: float, goal: float, most: int, rng) -> float:
  """Responses drawn until the policy gives the best response `goal`; inf if that takes more than `most`.

  Every round draws one response from the policy and one from the base, and fits all pairs so far from the last policy
  on, within the class's bound: no log-ratio can be larger than the range of rewards, 0 to the least, over beta. A pair
  that shows nothing new is counted at once but fitted only when the data have grown by a fifth.

  The logit of a response that no pair has shown leaves squared differences as they are. With optimism the loss falls in
  it without end, since log p of every other response does: the minimum has it at the bound, which is where the fit
  begins. Left to the optimiser, whichever logit got ahead would starve the others of gradient on the way there.

  Args:
    step: `fit.objective` of `xpo(alpha, beta)` and `fit.tables`, shared by runs so that it compiles once.
  """
  K = len(arms.p_K)
  log_base = np.log(arms.p_K)[None]
  bound = -arms.reward_K.min()
  theta, policy = np.zeros((1, K)), arms.p_K
  pairs, seen, fitted = [], set(), 0
  while 2 * len(pairs) < most:
    pairs.append((rng.choice(K, p=policy), rng.choice(K, p=arms.p_K)))
    if pairs[-1] in seen and len(pairs) < 1.2 * fitted:
      continue
    seen.add(pairs[-1])
    fitted = len(pairs)
    rows = max(64, 1 << (fitted - 1).bit_length())
    index = np.zeros((rows, 2), np.int32)
    index[:fitted] = pairs
    weight = np.arange(rows) < fitted
    batch = fit.batch(log_base[0, index][..., None], arms.reward_K[index], weight)
    if alpha:
      theta[0, np.setdiff1d(np.arange(K), index[:fitted])] = bound / beta
    theta = fit.minimise(step, theta, (log_base, np.zeros_like(index), index), batch, scale=1 / beta, bound=bound)
    policy = laws.tilt(arms.p_K, 1.0, theta[0])
    if policy[arms.best] >= goal:
      return 2.0 * fitted
  return np.inf
