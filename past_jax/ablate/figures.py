"""The figures of a finished run, read from its workdir."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from past_jax.ablate.sweep import STEPS, near
from past_jax.metrics import rows
from past_jax.types import UserError


class NoSuchMetric(UserError):
  """A claim reads what no run writes: more runs would not help."""


def read(workdir: Path, metrics: Sequence[str], also: Sequence[str] = ()) -> dict:
  """{'steps', 'tokens', 'seconds', 'figures': {WHEN:NAME: value}}: of evaluations all, of steps what `metrics` has, and
  `also` as far as the run wrote it.

  Raises:
    NoSuchMetric: the run has not all of `metrics`.
    UserError: one of them is not finite.
  """
  steps, evaluations = rows(workdir / 'metrics.jsonl'), rows(workdir / 'evaluations.jsonl')
  figures = {}
  for when in ('before', 'after'):
    found = [row['metrics'] for row in evaluations if row['when'] == when]
    figures |= {f'{when}:{name}': value for name, value in (found[-1] if found else {}).items()}
  for metric in dict.fromkeys((*metrics, *also)):
    when, _, name = metric.partition(':')
    values = [row[name] for row in steps if isinstance(row.get(name), int | float)]
    if when in STEPS and values:
      figures[metric] = summary(when, values)
  seconds = json.loads((workdir / 'timing.json').read_text())['total']  # of all processes that were at it
  tokens = sum(row['num_tokens'] for row in steps)
  out = {'steps': len(steps), 'tokens': tokens, 'seconds': round(seconds, 1), 'figures': figures}
  for metric in metrics:
    value(out, metric)
  return out


def summary(when: str, values: Sequence[float]) -> float:
  if when == 'first':
    return values[0]
  if when == 'rise':
    return summary('tail', values) - values[0]
  used = values[-max(len(values) // 8, 1) :] if when == 'tail' else values
  return sum(used) / (1 if when == 'sum' else len(used))


def mean(record: Mapping, metrics: Sequence[str]) -> float:
  """Of several metrics of a run's record; raises as `read` does."""
  return sum(value(record, metric) for metric in metrics) / len(metrics)


def named(metrics: Sequence[str]) -> str:
  """One name for their mean: after:score/{sort,reverse}."""
  if len(metrics) == 1:
    return metrics[0]
  shared = re.match(r'(.*[/:])?', os.path.commonprefix(list(metrics)))[0]
  return f'{shared}{{{",".join(metric[len(shared) :] for metric in metrics)}}}'


def value(record: Mapping, metric: str) -> float:
  """A metric of a run's record; raises as `read` does."""
  when, _, name = metric.partition(':')
  figures = record['figures']
  if when == 'change':
    return value(record, f'after:{name}') - value(record, f'before:{name}')
  if metric not in figures:
    has = 'metrics.jsonl' if when in STEPS else f'evaluations.jsonl: {", ".join(sorted(figures))}'
    raise NoSuchMetric(f'there is no metric {metric!r} in {has}.{near(metric, figures)}')
  if figures[metric] is None or not math.isfinite(figures[metric]):
    raise UserError(f'the metric {metric!r} is not finite.')
  return float(figures[metric])
