"""Statistics of one number per seed: intervals, two one-sided tests, corrections. No model, no files."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST = 3  # seeds, below which nothing is concluded


class Estimate(NamedTuple):
  """Of values over seeds: mean, two intervals for it, and the p-value of what was expected."""

  mean: float
  low: float  # Student's t
  high: float
  boot_low: float  # percentile bootstrap
  boot_high: float
  p: float
  holds: bool  # what was expected, by the t interval, of at least FEWEST seeds


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
  """Student's t interval for the mean of at least two values; where all are equal it is that value."""
  x = np.asarray(values, np.float64)
  half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
  return float(x.mean() - half), float(x.mean() + half)


def bootstrap(values: Sequence[float], level: float = LEVEL, draws: int = 10_000) -> tuple[float, float]:
  """Percentile bootstrap interval for the mean. With few seeds it is too narrow: shown beside t, not decided by."""
  x = np.asarray(values, np.float64)
  means = np.random.default_rng(0).choice(x, (draws, len(x))).mean(axis=1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def t_test(values: Sequence[float], null: float, alternative: str) -> float:
  """p-value of a one-sample t test; `alternative`: two-sided | greater | less. Equal values decide by their sign."""
  x = np.asarray(values, np.float64)
  off, error = x.mean() - null, x.std(ddof=1) / np.sqrt(len(x))
  if not error:
    side = {'two-sided': off != 0, 'greater': off > 0, 'less': off < 0}
    return 0.0 if side[alternative] else 1.0
  t = stats.t(len(x) - 1)
  tails = {'two-sided': 2 * t.sf(abs(off / error)), 'greater': t.sf(off / error), 'less': t.cdf(off / error)}
  return float(tails[alternative])


def estimate(values: Sequence[float], expect: str, margin: float = 0.0) -> Estimate:
  """What two seeds or more say of the expectation that the mean is above 0 ('+'), below ('-') or within +-margin ('0').

  A sign holds if the 95 % t interval excludes 0 on that side, which is a two-sided test at 5 %. Equivalence holds if
  both one-sided t tests at 5 % reject a mean beyond the margin (Schuirmann 1987); p is the larger of the two.
  """
  x = np.asarray(values, np.float64)
  low, high = t_interval(x)
  if expect == '0':
    p = max(t_test(x, -margin, 'greater'), t_test(x, margin, 'less'))
    holds = p < 1 - LEVEL
  else:
    p = t_test(x, 0.0, 'two-sided')
    holds = low > 0 if expect == '+' else high < 0
  return Estimate(float(x.mean()), low, high, *bootstrap(x), p, bool(holds and len(x) >= FEWEST))


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979), in the order given."""
  p = np.asarray(p_values, np.float64)
  order = np.argsort(p)
  adjusted = np.empty_like(p)
  adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
  return adjusted.tolist()
