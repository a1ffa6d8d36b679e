"""The instances of docs/theory.md. What is random comes from `rng`; sizes have the defaults of the published runs."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from past_jax.tabular import explore, fit, laws

Figures = dict[str, np.ndarray]  # one array per curve, all over the instance's own axis


def draw(rng: np.random.Generator, p_BxY, n: int):
  """int [B, n]: independent responses."""
  cdf = np.cumsum(p_BxY, -1)
  return np.stack([np.searchsorted(c / c[-1], rng.random(n), side='right') for c in cdf])


def around(rng: np.random.Generator, top_BxK, responses: int):
  """[B, responses]: given masses, then random ones that are all below the first of them.

  Raises:
    ValueError: so few responses share the rest that one of them is not below.
  """
  rest = rng.uniform(0.5, 1.5, (len(top_BxK), responses - top_BxK.shape[1]))
  rest *= (1 - top_BxK.sum(1, keepdims=True)) / rest.sum(1, keepdims=True)
  if (rest.max(1) >= top_BxK[:, 0]).any():
    raise ValueError(f'a mass of {top_BxK[:, 0].min():.2g} is the largest only of more than {responses} responses.')
  return np.concatenate([top_BxK, rest], 1)


# --- tables -------------------------------------------------------------------------------------------------------


def curves(rng, ns: Sequence[int] = (1, 2, 4, 8, 16, 32, 64), prompts: int = 400, responses: int = 64) -> Figures:
  """Random tables: mean mass on the best response under best-of-n, its closed form and one run, and under the tilt.

  `share` is that of prompts with at least 0.9; the tilts have beta = 1 / n.
  """
  p = rng.dirichlet(np.full(responses, 0.35), prompts)
  found = draw(rng, p, max(ns))
  likelihood = np.maximum.accumulate(np.take_along_axis(p, found, 1), 1)
  exact = [laws.mass_on_best(laws.best_of_n(p, n), p) for n in ns]
  tilted = [laws.mass_on_best(laws.tilt(p, 1 / n), p) for n in ns]
  return {
    'n': np.array(ns),
    'best_of_n': np.array([x.mean() for x in exact]),
    'sampled': np.array([(likelihood[:, n - 1] == p.max(1)).mean() for n in ns]),
    'share': np.array([(x >= 0.9).mean() for x in exact]),
    'tilt': np.array([x.mean() for x in tilted]),
    'tilt_share': np.array([(x >= 0.9).mean() for x in tilted]),
  }


def decoding(rng, tables: int = 20_000, tokens: int = 4, bins: int = 10) -> Figures:
  """Random two-token policies: how often greedy decoding finds the best response, by that response's mass."""
  alpha = np.exp(rng.uniform(np.log(0.1), np.log(30), (tables, 1, 1)))  # of the Dirichlet: so that all masses occur
  first = rng.gamma(np.broadcast_to(alpha[:, 0], (tables, tokens)))
  second = rng.gamma(np.broadcast_to(alpha, (tables, tokens, tokens)))
  first, second = (np.maximum(x, 1e-12) for x in (first, second))
  found, best = laws.greedy(first / first.sum(-1, keepdims=True), second / second.sum(-1, keepdims=True))
  edges = np.linspace(0, 1, bins + 1)
  index = np.clip(np.digitize(best, edges) - 1, 0, bins - 1)
  count = np.bincount(index, minlength=bins)
  right = np.bincount(index, found == best, minlength=bins)
  share = np.divide(right, count, out=np.full(bins, np.nan), where=count > 0)
  return {'mass': (edges[1:] + edges[:-1]) / 2, 'share': share, 'count': count}


def nearly_half(gap: float):
  """(first_1x2, second_1x2x2): a policy whose best response has 1/2 - gap, which greedy decoding misses."""
  first = np.array([[0.5 + gap, 0.5 - gap]])
  return first, np.array([[[0.5, 0.5], [1.0, 0.0]]])


def cost_of_coverage(
  rng, coverages=(4, 8, 16, 32, 64, 128), eps: float = 0.1, prompts: int = 400, responses: int = 512
) -> Figures:
  """Fixed N: samples per prompt until the best of them is the most likely response for a share 1 - eps of the prompts.

  The most likely responses have 1 / p spread by a factor of 2 about C_cov; the others are random, all below.
  """
  cost = []
  for c in coverages:
    spread = rng.uniform(1, 2, prompts)
    p = around(rng, (spread.mean() / (c * spread))[:, None], responses)
    found = draw(rng, p, 40 * c) == 0
    hits = np.where(found.any(1), found.argmax(1) + 1, np.inf)
    cost.append(np.quantile(hits, 1 - eps, method='higher'))
  return {'coverage': np.array(coverages), 'samples': np.array(cost)}


def hard_prompts(rng, eps: float, coverage: float, prompts: int, responses: int):
  """(p_BxY, bool_B): twice the share eps has its best response at eps / coverage, so that it cannot be given up; the
  other prompts have it at 1/2. C_cov is 2 * coverage + 2 - 4 * eps.
  """
  hard = np.arange(prompts) < round(2 * eps * prompts)
  return around(rng, np.where(hard, eps / coverage, 0.5)[:, None], responses), hard


def adaptive_run(rng, p_BxY, mu: float, most: int):
  """Adaptive best-of-N, run: (bool_B: took the best response, int_B: samples)."""
  likelihood = np.maximum.accumulate(np.take_along_axis(p_BxY, draw(rng, p_BxY, most), 1), 1)
  stop = np.arange(1, most + 1)[None] * likelihood >= mu
  if not stop[:, -1].all():
    raise ValueError(f'{(~stop[:, -1]).sum()} prompts had not stopped after {most} samples.')
  at = stop.argmax(1)
  return likelihood[np.arange(len(at)), at] == p_BxY.max(1), at + 1


def adaptive_against_fixed(
  rng, eps=(0.2, 0.1, 0.05, 0.02, 0.01), coverage: float = 4, delta: float = 0.1, prompts: int = 400, responses=1024
) -> Figures:
  """Samples per prompt of the least fixed N that finds hard prompts' best response with 1 - delta, and of the stopping
  rule with mu = ln(2 / delta), which finds it with `success`.

  `adaptive`, `success`: of one run on the hard prompts; `exact`: the closed form of the cost, one prompt of each kind.
  """
  mu, out = math.log(2 / delta), {name: [] for name in ('fixed', 'adaptive', 'exact', 'success')}
  for e in eps:
    p, hard = hard_prompts(rng, e, coverage, prompts, responses)
    expected = [laws.adaptive_best(p[i], mu)[1] for i in (0, -1)]
    out['exact'].append(hard.mean() * expected[0] + (1 - hard.mean()) * expected[1])
    took, samples = adaptive_run(rng, p, mu, most=int(8 * mu * coverage / e))
    out['success'].append(took[hard].mean())
    out['adaptive'].append(samples.mean())
    out['fixed'].append(laws.samples_needed(e / coverage, delta))
  return {'eps': np.array(eps)} | {name: np.array(x) for name, x in out.items()}


def margins(
  rng, gammas=(0.01, 0.03, 0.1, 0.3, 1.0), beta: float = 0.05, samples: int = 64, n: int = 16, prompts=50, responses=32
) -> Figures:
  """Mass on the best response, of mass 0.2, against its margin over the second, with `samples` samples a prompt.

  rlhf: pairs and the squared loss of reward differences, in the class of all tables; sft: the maximum likelihood of
  samples / n best-of-n winners, which in that class is their frequency; tilt, best_of_n: what both tend to.
  """
  step = fit.regression(fit.tables, beta)
  out = {name: [] for name in ('rlhf', 'sft', 'tilt', 'best_of_n')}
  for gamma in gammas:
    p = around(rng, np.tile([0.2, 0.2 / (1 + gamma)], (prompts, 1)), responses)
    index = draw(rng, p, samples)
    winners = np.take_along_axis(p, index, 1).reshape(prompts, -1, n).max(-1)
    pairs = index.reshape(-1, 2)
    prompt = np.repeat(np.arange(prompts), samples // 2)[:, None].repeat(2, 1)
    logp = np.log(p[prompt, pairs])
    batch = fit.batch(logp[..., None], logp)
    theta = fit.minimise(step, np.zeros_like(p), (np.log(p), prompt, pairs), batch, scale=1 / beta)
    out['rlhf'].append(laws.mass_on_best(laws.tilt(p, 1.0, theta), p).mean())
    out['sft'].append((winners == 0.2).mean())
    out['tilt'].append(laws.mass_on_best(laws.tilt(p, beta), p).mean())
    out['best_of_n'].append(laws.mass_on_best(laws.best_of_n(p, n), p).mean())
  return {'gamma': np.array(gammas)} | {name: np.array(x) for name, x in out.items()}


# --- classes with structure ---------------------------------------------------------------------------------------


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def flips(F: int, size: float):
  """[F + 1]: the mass of responses k of whose F signs are not the best one's, under `fit.product`, |theta_i| = size."""
  q = sigmoid(2 * size)
  return np.array([math.comb(F, k) * q ** (F - k) * (1 - q) ** k for k in range(F + 1)])


def sft_in_product(rng, F: int, size: float, N: int, n: int, runs: int) -> float:
  """Mean over runs of the mass on the best response after maximum likelihood on n best-of-N winners.

  The fit has the winners' share of every sign; winners come from the closed-form law of best-of-N.
  """
  law = laws.best_of_n(flips(F, size), N, -np.arange(F + 1))
  wrong = rng.choice(F + 1, (runs, n), p=law)
  signs = rng.random((runs, n, F)).argsort(-1) < wrong[..., None]
  return float((1 - signs.mean(1)).prod(-1).mean())


def sft_limit(F: int, size: float, N: int) -> float:
  """`sft_in_product` with n without end."""
  law = laws.best_of_n(flips(F, size), N, -np.arange(F + 1))
  return float((1 - law @ np.arange(F + 1) / F) ** F)


def regression_in_product(rng, F: int, size: float, beta: float, pairs: Sequence[int], runs: int) -> np.ndarray:
  """Mean over runs of the mass on the best response after the squared loss on each number of pairs from the base."""
  step, rows = fit.regression(fit.product, beta), max(pairs)
  masses = np.zeros((runs, len(pairs)))
  for run in range(runs):
    theta = size * rng.choice([-1.0, 1.0], F)
    y = np.where(rng.random((rows, 2, F)) < sigmoid(2 * theta), 1.0, -1.0).astype(np.float32)
    base = np.log(sigmoid(2 * theta * y))
    for i, n in enumerate(pairs):
      batch = fit.batch(base, base.sum(-1), np.arange(rows) < n)
      found = fit.minimise(step, theta, y, batch, scale=1 / beta)
      masses[run, i] = sigmoid(2 * found * np.sign(theta)).prod()
  return masses.mean(0)


def structure(
  rng,
  F: int = 18,
  size: float = 0.15,
  beta: float = 0.02,
  goal: float = 0.9,
  pairs: Sequence[int] = (6, 9, 12, 15, 18, 21, 24, 30),
  ns: Sequence[int] = (2, 10, 50, 200, 1_000, 5_000, 20_000, 50_000, 80_000),
  winners: Sequence[int] = (1, 2, 4, 8, 16, 64),
  runs: int = 8,
) -> Figures:
  """2^F responses, signs of which the policy has one weight each: mass on the best response against samples m.

  `samples_*` is the least m on the grid with a mean mass of at least the goal; N and n are SFT's best choice. `floor`
  is what any method needs that only repeats what it has seen: C_cov * ln(1 / (1 - goal)).
  """
  sft = np.array([[sft_in_product(rng, F, size, N, n, 16 * runs) for n in winners] for N in ns])
  rlhf = regression_in_product(rng, F, size, beta, pairs, runs)
  cost = np.outer(ns, winners)
  for name, mass in (('pairs', rlhf), ('ns', sft)):
    if mass.max() < goal:
      raise ValueError(f'{name}: none of them reaches a mass of {goal:g} but {mass.max():.3g} at best; give more.')
  return {
    'm_rlhf': 2 * np.array(pairs),
    'rlhf': rlhf,
    'n': np.array(ns),
    'm_sft': cost,
    'sft': sft,
    'sft_limit': np.array([sft_limit(F, size, N) for N in ns]),
    'samples_rlhf': 2.0 * np.array(pairs)[rlhf >= goal].min(),
    'samples_sft': 1.0 * cost[sft >= goal].min(),
    'floor': np.array(laws.samples_needed(flips(F, size)[0], 1 - goal)),
  }


def exploration(
  rng, coverages=(50, 200, 800), alphas=(0.0, 1e-3), beta: float = 0.05, singles: int = 8, runs: int = 1
) -> Figures:
  """Samples until the policy gives the best response 0.9, by coverage and alpha: [coverages, alphas].

  A run ends at 40 * C_cov samples, which it is then counted as. `floor`: as in `structure`.
  """
  out = np.zeros((len(coverages), len(alphas)))
  for j, alpha in enumerate(alphas):
    for i, c in enumerate(coverages):
      for _ in range(runs):
        arms = explore.arms(c, singles, ratio=1.5, bulk_below=10, best=1 + int(rng.integers(singles)))
        found = explore.samples_until_sharp(arms, alpha, beta, 0.9, 40 * c, rng)
        out[i, j] += min(found, 40 * c) / runs
  floor = [laws.samples_needed(1 / c, 0.1) for c in coverages]
  return {'coverage': np.array(coverages), 'alpha': np.array(alphas), 'samples': out, 'floor': np.array(floor)}


TWO_STEPS = jax.jit(fit.stepwise([np.zeros((2, 1)), np.array([[[0.0], [0.0]], [[1.0], [0.0]]])]))


def two_steps(rng, betas=(1.0, 0.5, 0.2, 0.1, 0.05, 0.02), ns=(1, 2, 5, 10, 20, 50), samples: int = 512) -> Figures:
  """A class of two-token policies in which the base, theta = 1, is and its sharpened version is not (proposition E.2).

  First tokens have the same features, so that each has probability 1/2 whatever theta is, and the best response (1, 0)
  at most that. `tilt`, `best_of_n`: without the class; `rlhf`, `sft`: in it, fitted to samples.
  """
  responses = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
  of = lambda theta: np.exp(np.asarray(TWO_STEPS(np.asarray(theta, np.float32), responses[None])).sum(-1)[0])
  p = of([1.0]).astype(np.float64)
  p /= p.sum()
  best = int(p.argmax())
  out = {'beta': np.array(betas), 'n': np.array(ns), 'base': p}
  y = responses[draw(rng, p[None], samples)[0]].reshape(-1, 2, 2)
  base = np.asarray(TWO_STEPS(np.array([1.0], np.float32), y))
  rlhf = []
  for beta in betas:
    step = fit.regression(TWO_STEPS, beta)
    rlhf.append(of(fit.minimise(step, np.ones(1), y, fit.batch(base, base.sum(-1)), scale=1 / beta))[best])
  step, sft = fit.imitation(TWO_STEPS), []
  for n in ns:
    found = draw(rng, np.broadcast_to(p, (samples, 4)), n)
    winners = responses[np.take_along_axis(found, p[found].argmax(1)[:, None], 1)]
    base = np.asarray(TWO_STEPS(np.array([1.0], np.float32), winners))
    sft.append(of(fit.minimise(step, np.ones(1), winners, fit.batch(base, base.sum(-1)), bound=50.0))[best])
  return out | {
    'tilt': np.array([laws.tilt(p, beta)[best] for beta in betas]),
    'best_of_n': np.array([laws.best_of_n(p, n)[best] for n in ns]),
    'rlhf': np.array(rlhf),
    'sft': np.array(sft),
  }


def all_members(thetas) -> np.ndarray:
  """[thetas]: what members of the two-token class give to (1, 0)."""
  y = np.array([[[1, 0]]])
  return np.array([float(np.exp(TWO_STEPS(np.array([theta], np.float32), y).sum())) for theta in thetas])
