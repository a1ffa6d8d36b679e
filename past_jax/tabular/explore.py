"""Sharpening by exploration: pairs of a response of the current policy and one of the base, round by round."""

from typing import NamedTuple

import numpy as np

from past_jax.tabular import fit, laws


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
  """C_cov = `coverage`: the single response `best`, from 1, is the most likely one. The other single ones are `ratio`
  times less likely, responses of the bulk `bulk_below` times.
  """
  p = np.full(1 + singles, 1 / (ratio * coverage))
  p[best] = 1 / coverage
  reward = np.log(p)
  p[0], reward[0] = 1 - p[1:].sum(), -np.log(bulk_below * coverage)
  return Arms(p, reward)


def samples_until_sharp(arms: Arms, alpha: float, beta: float, goal: float, most: int, rng) -> float:
  """Responses drawn until the policy gives the best response `goal`; inf if that takes more than `most`.

  Every round draws one response from the policy and one from the base, and fits all pairs so far from the last policy
  on, within the class's bound: no log-ratio can be larger than the range of rewards, 0 to the least, over beta. A pair
  that shows nothing new is counted at once but fitted only when the data have grown by a fifth.

  The logit of a response that no pair has shown leaves squared differences as they are. With optimism the loss falls in
  it without end, since log p of every other response does: the minimum has it at the bound, which is where the fit
  begins. Left to the optimiser, whichever logit got ahead would starve the others of gradient on the way there.
  """
  step = fit.regression(fit.tables, beta, alpha)
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
