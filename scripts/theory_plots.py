"""One figure per instance of scripts/theory.py: means over seeds, with Student's 95 % t intervals."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from past_jax.ablate import stats

Seeds = Sequence[dict]  # of every seed, what the instance returned


def line(axis, x, y_SxX, label: str, **style) -> None:
  """The mean over seeds S, and its interval as a band; of logs where the axis is logarithmic."""
  into, back = (np.log, np.exp) if axis.get_yscale() == 'log' else (np.asarray, np.asarray)
  y = into(np.asarray(y_SxX, np.float64))
  (drawn,) = axis.plot(x, back(y.mean(0)), label=label, **{'marker': 'o', 'markersize': 3} | style)
  low, high = back(np.array([stats.t_interval(values) for values in y.T])).T
  axis.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)


def of(seeds: Seeds, name: str) -> np.ndarray:
  return np.stack([figures[name] for figures in seeds])


def curves(axis, seeds):
  n = seeds[0]['n']
  line(axis, n, of(seeds, 'best_of_n'), 'best of n, closed form')
  axis.plot(n, of(seeds, 'sampled').mean(0), 'kx', label='best of n, sampled')
  line(axis, n, of(seeds, 'tilt'), 'tilt, beta = 1/n')
  line(axis, n, of(seeds, 'share'), 'best of n: share of prompts >= 0.9', linestyle=':', color='C0')
  line(axis, n, of(seeds, 'tilt_share'), 'tilt: share of prompts >= 0.9', linestyle=':', color='C1')
  axis.set(xscale='log', xlabel='n, or 1/beta', ylabel='mass on the best response')


def decoding(axis, seeds):
  count = of(seeds, 'count').sum(0)
  right = np.nansum(of(seeds, 'share') * of(seeds, 'count'), axis=0)
  share = np.divide(right, count, out=np.full(count.shape, np.nan), where=count > 0)
  axis.bar(seeds[0]['mass'], share, width=0.09)
  axis.axvline(0.5, color='k', linestyle=':', label='1/2')
  axis.set(xlabel='mass of the best response', ylabel='greedy decoding finds it', ylim=(0, 1.05))


def cost_of_coverage(axis, seeds):
  c = seeds[0]['coverage']
  axis.set(xscale='log', yscale='log')
  line(axis, c, of(seeds, 'samples'), 'fixed N, sampled')
  axis.plot(c, c * np.mean(of(seeds, 'samples') / c), 'k:', label='slope 1')
  axis.set(xlabel='C_cov', ylabel='samples per prompt')


def adaptive_against_fixed(axis, seeds):
  x = 1 / seeds[0]['eps']
  axis.set(xscale='log', yscale='log')
  line(axis, x, of(seeds, 'fixed'), 'fixed N')
  line(axis, x, of(seeds, 'adaptive'), 'adaptive, sampled')
  axis.plot(x, of(seeds, 'exact').mean(0), 'kx', label='adaptive, closed form')
  axis.set(xlabel='1 / eps', ylabel='samples per prompt')


def margins(axis, seeds):
  gamma = seeds[0]['gamma']
  line(axis, gamma, of(seeds, 'rlhf'), 'reward regression')
  axis.plot(gamma, of(seeds, 'tilt').mean(0), 'kx', label='tilt, closed form')
  line(axis, gamma, of(seeds, 'sft'), 'imitation of best-of-16')
  axis.plot(gamma, of(seeds, 'best_of_n').mean(0), 'k+', label='best of 16, closed form')
  axis.set(xscale='log', xlabel='margin gamma', ylabel='mass on the best response', ylim=(0, 1.05))


def structure(axis, seeds):
  first = seeds[0]
  line(axis, first['m_rlhf'], of(seeds, 'rlhf'), 'reward regression', color='k')
  sft = of(seeds, 'sft')
  for i, n in enumerate(first['n']):
    line(axis, first['m_sft'][i], sft[:, i], f'imitation of best-of-{n:,}')
  axis.axvline(first['floor'], color='0.5', linestyle=':', label='C_cov ln 10')
  axis.set(xscale='log', xlabel='samples m', ylabel='mass on the best response')


def exploration(axis, seeds):
  c, samples = seeds[0]['coverage'], of(seeds, 'samples')
  axis.set(xscale='log', yscale='log')
  for j, alpha in enumerate(seeds[0]['alpha']):
    line(axis, c, samples[:, :, j], f'alpha = {alpha:g}')
  axis.plot(c, seeds[0]['floor'], 'k:', label='C_cov ln 10')
  axis.set(xlabel='C_cov', ylabel='samples to mass 0.9')


def optimism(axis, seeds):
  axis.set(xscale='log', yscale='log')
  line(axis, seeds[0]['alpha'], of(seeds, 'samples')[:, 0], f'C_cov = {seeds[0]["coverage"][0]}')
  axis.axhline(40 * seeds[0]['coverage'][0], color='k', linestyle=':', label='where runs were ended')
  axis.set(xlabel='alpha', ylabel='samples to mass 0.9')


def two_steps(axis, seeds):
  first = seeds[0]
  line(axis, 1 / first['beta'], of(seeds, 'tilt'), 'tilt, outside the class', color='C0', linestyle='--')
  line(axis, 1 / first['beta'], of(seeds, 'rlhf'), 'reward regression, in the class', color='C0')
  line(axis, first['n'], of(seeds, 'best_of_n'), 'best of n, outside the class', color='C1', linestyle='--')
  line(axis, first['n'], of(seeds, 'sft'), 'imitation of best-of-n, in the class', color='C1')
  axis.axhline(0.5, color='k', linestyle=':', label='1/2')
  axis.set(xscale='log', xlabel='n, or 1/beta', ylabel='mass on the best response', ylim=(0, 1.05))


TABLES = (curves, decoding, cost_of_coverage, adaptive_against_fixed, margins)
CLASSES = (structure, exploration, optimism, two_steps)
PANELS: dict[str, Callable] = {panel.__name__: panel for panel in TABLES + CLASSES}


def draw(name: str, seeds: Seeds, path: Path) -> None:
  """Writes an SVG that is the same, byte for byte, for the same figures."""
  with matplotlib.rc_context({'svg.hashsalt': name, 'svg.fonttype': 'none', 'font.size': 9}):
    figure = Figure(figsize=(7, 3.4), layout='constrained')
    axis = figure.add_subplot()
    PANELS[name](axis, seeds)
    axis.grid(color='0.92')
    figure.legend(fontsize=7, loc='outside right upper')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='svg', metadata={'Date': None})
