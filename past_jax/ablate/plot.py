"""Figures of a sweep: every arm's seeds, mean and 95 % t interval, a panel per metric of its claims; matrices."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from past_jax.ablate import stats, table
from past_jax.types import UserError

ACROSS = 2  # panels in a row


def draw(content: Mapping, path: Path) -> None:
  """Writes an SVG that is the same, byte for byte, for the same content.

  Raises:
    UserError: matplotlib is not installed.
  """
  metrics = table.metrics_of(content)
  arms = list(dict.fromkeys(run['arm'] for run in content['runs']))
  down = -(-len(metrics) // ACROSS)
  with figure_at(content, path, (5 * min(ACROSS, len(metrics)), down * (0.9 + 0.28 * len(arms)))) as figure:
    axes = figure.subplots(down, min(ACROSS, len(metrics)), squeeze=False, sharey=True).flatten()
    for axis, (metric, read) in zip(axes, metrics.items()):
      for y, arm in enumerate(arms):
        x = table.values(content, arm, read)
        axis.plot(x, [y] * len(x), 'o', color='0.6', markersize=3, zorder=1)
        if len(x) > 1:
          low, high = stats.t_interval(x)
          axis.plot([low, high], [y, y], color='C0', zorder=2)
          axis.plot([sum(x) / len(x)], [y], 's', color='C0', markersize=5, zorder=3)
      axis.set_title(metric, fontsize=9)
      axis.set_yticks(range(len(arms)), arms)
      axis.set_ylim(len(arms) - 0.5, -0.5)
      axis.grid(axis='x', color='0.9')
    for axis in axes[len(metrics) :]:
      axis.remove()


def draw_matrices(content: Mapping, path: Path) -> None:
  """A panel for every matrix, darker where a figure is larger; writes nothing where there is none; raises as `draw`."""
  found = matrices(content)
  if not found:
    return
  across = min(3, len(found))
  down, high = -(-len(found) // across), max(float(m.max()) for m in found.values())
  with figure_at(content, path, (0.5 + 3.2 * across, 3.1 * down)) as figure:
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, (name, matrix) in zip(axes, found.items()):
      drawn = axis.imshow(matrix, cmap='Blues', vmin=0.0, vmax=high or 1.0)
      for (i, j), x in np.ndenumerate(matrix):
        color = '0.2' if x < 0.6 * high else '1'
        axis.text(j, i, f'{round(x, 2):g}', ha='center', va='center', fontsize=6, color=color)
      axis.set(title=name, xlabel='passage', ylabel='edits so far')
      axis.set_xticks(range(matrix.shape[1]), range(1, matrix.shape[1] + 1))
      axis.set_yticks(range(len(matrix)))
    for axis in axes[len(found) :]:
      axis.remove()
    figure.colorbar(drawn, ax=axes[: len(found)].tolist(), shrink=0.8)


def matrices(content: Mapping) -> dict[str, np.ndarray]:
  """Figures `NAME/ROW/COLUMN` with numbers for the last two, means over seeds: 'ARM, NAME' -> [rows, columns].

  Rows and columns are counted from 0; what has gaps, such as kinds of questions that are called by numbers, is none.
  """
  cells = defaultdict(lambda: defaultdict(list))
  for run in content['runs']:
    for name, value in run['figures'].items():
      place = re.fullmatch(r'(.+)/(\d+)/(\d+)', name)
      if place and value is not None and np.isfinite(value):
        cells[f'{run["arm"]}, {place[1]}'][int(place[2]), int(place[3])].append(value)
  out = {}
  for name, found in cells.items():
    shape = np.max(list(found), axis=0) + 1
    if len(found) == shape.prod():
      out[name] = np.array([[np.mean(found[i, j]) for j in range(shape[1])] for i in range(shape[0])])
  return out


@contextlib.contextmanager
def figure_at(content: Mapping, path: Path, size: tuple[float, float]):
  try:
    import matplotlib
  except ImportError:
    raise UserError("no figure was drawn: it needs matplotlib, pip install 'past-jax[plots]'.") from None
  from matplotlib.figure import Figure

  with matplotlib.rc_context({'svg.hashsalt': content['sweep'], 'svg.fonttype': 'none', 'font.size': 9}):
    figure = Figure(figsize=size, layout='constrained')
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='svg', metadata={'Date': None})
