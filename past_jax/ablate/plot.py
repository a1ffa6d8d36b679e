"""A figure per sweep: every arm's seeds, mean and 95 % t interval, one panel per metric that claims read."""

from collections.abc import Mapping
from pathlib import Path

from past_jax.ablate import stats, table
from past_jax.types import UserError

ACROSS = 2  # panels in a row


def draw(content: Mapping, path: Path) -> None:
  """Writes an SVG that is the same, byte for byte, for the same content.

  Raises:
    UserError: matplotlib is not installed.
  """
  try:
    import matplotlib
  except ImportError:
    raise UserError("no figure was drawn: it needs matplotlib, pip install 'past-jax[plots]'.") from None
  from matplotlib.figure import Figure

  metrics = table.metrics_of(content)
  arms = list(dict.fromkeys(run['arm'] for run in content['runs']))
  down = -(-len(metrics) // ACROSS)
  with matplotlib.rc_context({'svg.hashsalt': content['sweep'], 'svg.fonttype': 'none', 'font.size': 9}):
    figure = Figure(figsize=(5 * min(ACROSS, len(metrics)), down * (0.9 + 0.28 * len(arms))), layout='constrained')
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='svg', metadata={'Date': None})
