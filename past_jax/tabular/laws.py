"""Closed forms over responses `Y` of known probability. The self-reward is log p unless said. All in float64."""

import math

import numpy as np


def best_of_n(p_xY, n: int, reward_xY=None):
  """The law of the response of the highest reward among n independent samples: [..., Y].

  P(reward of the best <= r) = F(r)^n, with F(r) the mass of responses of reward at most r. Of equal rewards the first
  drawn wins, so a level's mass is shared out by p.

  Args:
    reward_xY: any increasing function of the reward; by default p.

  Raises:
    ValueError: n below 1.
  """
  if n < 1:
    raise ValueError(f'n={n}: give at least 1.')
  p, reward = np.asarray(p_xY, np.float64), np.asarray(p_xY if reward_xY is None else reward_xY, np.float64)
  order = np.argsort(reward, axis=-1)
  mass, level = np.take_along_axis(p, order, -1), np.take_along_axis(reward, order, -1)
  before = np.concatenate([np.zeros_like(mass[..., :1]), np.cumsum(mass, -1)], -1)
  before /= before[..., -1:]
  first = np.diff(level, axis=-1, prepend=-np.inf) > 0  # of its level, in the order
  index = np.arange(p.shape[-1])
  start = np.maximum.accumulate(np.where(first, index, 0), -1)
  last = np.diff(level, axis=-1, append=np.inf) > 0
  end = np.flip(np.minimum.accumulate(np.flip(np.where(last, index + 1, p.shape[-1]), -1), -1), -1)
  low, high = np.take_along_axis(before, start, -1), np.take_along_axis(before, end, -1)
  share = np.divide(mass, high - low, out=np.zeros_like(mass), where=high > low)
  law = np.empty_like(mass)
  np.put_along_axis(law, order, (high**n - low**n) * share, -1)
  return law


def tilt(p_xY, beta: float, reward_xY=None):
  """argmax_pi E_pi[r] - beta * KL(pi || p): p * exp(r / beta) normalised; for r = log p that is p^(1 + 1/beta)."""
  with np.errstate(divide='ignore'):  # a response of no mass keeps none
    logp = np.log(np.asarray(p_xY, np.float64))
  logits = logp + (logp if reward_xY is None else np.asarray(reward_xY, np.float64)) / beta
  mass = np.exp(logits - logits.max(-1, keepdims=True))
  return mass / mass.sum(-1, keepdims=True)


def best(p_xY):
  """bool [..., Y]: the most likely responses, Y* of the paper."""
  p = np.asarray(p_xY)
  return p == p.max(-1, keepdims=True)


def mass_on_best(policy_xY, p_xY):
  """[...]: what a policy gives to the base's most likely responses; (eps, delta)-sharpened: at least 1 - delta on a
  share of at least 1 - eps of the prompts (definition 3.1)."""
  return np.where(best(p_xY), policy_xY, 0.0).sum(-1)


def coverage(p_BxY) -> float:
  """C_cov = mean over prompts of 1 / p(Y*)."""
  return float((1 / mass_on_best(p_BxY, p_BxY)).mean())


def margin(p_xY):
  """gamma [...]: the most likely response is (1 + gamma) times as likely as any outside Y*; inf if none is outside."""
  p = np.asarray(p_xY, np.float64)
  second = np.where(best(p), 0.0, p).max(-1)
  return np.divide(p.max(-1), second, out=np.full(second.shape, np.inf), where=second > 0) - 1


def samples_needed(mass: float, failure: float) -> int:
  """The least n with which n samples miss a set of this mass with a probability of at most `failure`."""
  return max(1, math.ceil(math.log(failure) / math.log1p(-mass))) if mass < 1 else 1


def adaptive_best(p_Y, mu: float) -> tuple[float, float]:
  """Adaptive best-of-N: stop at the first k with k * max_{j <= k} p(y_j) >= mu, take the best seen (section 4.1).

  Exact. It has not stopped after k samples if and only if all of them have p < mu / k, since k * max never falls. The
  best response is missed if it stops before that is drawn: the runs that have not stopped after k - 1 samples without
  it, and draw another one next, less those that go on.

  Returns:
    (probability that the response taken is in Y*, expected number of samples)
  """
  p = np.sort(np.asarray(p_Y, np.float64))
  below = np.concatenate([[0.0], np.cumsum(p)])
  star = p[p == p[-1]].sum()
  # From mu / max p on, a run that goes on has missed Y* every time: what is left out weighs less than exp(-40).
  k = np.arange(math.ceil(max(mu / p[-1], 40 / star)) + 1)
  unfinished = below[np.searchsorted(p, mu / np.maximum(k, 1), side='left')]
  unfinished[0] = 1.0
  without = np.minimum(unfinished, 1 - star)
  missed = (without**k)[:-1] * (1 - star) - (without**k)[1:]
  return float(1 - missed.sum()), float((unfinished**k).sum())


def greedy(first_BxV, second_BxVxV):
  """Greedy decoding of two-token responses: (mass of the response that it finds, mass of the best one), each [B]."""
  joint = first_BxV[:, :, None] * second_BxVxV
  token = first_BxV.argmax(-1)
  return np.take_along_axis(joint, token[:, None, None], 1)[:, 0].max(-1), joint.max((1, 2))
