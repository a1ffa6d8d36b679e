"""What a sweep file says: arms, what they start from, and claims as contrasts between arms, fixed before any run.

A sweep file defines get_sweep() -> Sweep. Nothing here runs anything, and importing it is cheap.
"""

import dataclasses
import difflib
import importlib.util
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from past_jax.types import UserError

EXPECTED = {'+': 'above 0', '-': 'below 0', '0': 'within the margin around 0'}
EVALUATIONS = ('before', 'after', 'change')  # of evaluations.jsonl; change: after - before
STEPS = ('first', 'tail', 'rise', 'mean', 'sum')  # of metrics.jsonl; tail: mean of the last eighth
WHEN = (*EVALUATIONS, *STEPS)
BUDGETS = ('steps', 'tokens', 'none')


@dataclasses.dataclass(frozen=True)
class Arm:
  """A run of `past study` per seed."""

  config: str  # FILE.py[:ARGS]
  set: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as --config.KEY=VALUE
  start: str = ''  # the preparing run whose exported model is this one's model.spec; '': the config's own
  shift: Mapping[str, int] = dataclasses.field(default_factory=dict)  # seeded key -> what is added to the seed there


@dataclasses.dataclass(frozen=True)
class Contrast:
  """One number per seed: sum over arms of weight * metric, minus `against`; and what is expected of its mean.

  `metric` is WHEN:NAME, or several, which are averaged. WHEN: after, before or change (evaluations.jsonl), or first,
  tail, rise, mean or sum (metrics.jsonl); rise: tail - first.
  """

  label: str
  weights: Mapping[str, float]
  metric: str | tuple[str, ...]
  expect: str  # '+', '-', or '0': equivalent
  margin: float = 0.0  # of '0', in units of the metric
  against: float = 0.0
  budget: str = ''  # '': the claim's

  @property
  def metrics(self) -> tuple[str, ...]:
    return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

  @property
  def text(self) -> str:
    constant = f' minus {self.against:g}' if self.against > 0 else f' plus {-self.against:g}' if self.against else ''
    return self.label + constant


def difference(
  a: str, b: str, metric, expect: str, margin: float = 0.0, against: float = 0.0, budget: str = ''
) -> Contrast:
  """Arm a minus arm b."""
  return Contrast(f'{a} minus {b}', {a: 1.0, b: -1.0}, metric, expect, margin, against, budget)


def level(arm: str, metric, expect: str, against: float, margin: float = 0.0) -> Contrast:
  """An arm against a constant."""
  return Contrast(arm, {arm: 1.0}, metric, expect, margin, against)


def trend(places: Mapping[str, float], metric, expect: str, margin: float = 0.0) -> Contrast:
  """Slope of the least-squares line through the arms at these places (such as log2 of a number of samples)."""
  centre = sum(places.values()) / len(places)
  square = sum((x - centre) ** 2 for x in places.values())
  weights = {arm: (x - centre) / square for arm, x in places.items()}
  return Contrast(f'slope over {", ".join(places)}', weights, metric, expect, margin)


@dataclasses.dataclass(frozen=True)
class Claim:
  """Reproduced if all its contrasts hold. Statement and published figure may stand in the table of claims instead."""

  id: str
  contrasts: tuple[Contrast, ...]
  statement: str = ''
  published: str = ''
  budget: str = ''  # '': the sweep's; 'none': arms are not matched, and `note` says why
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Sweep:
  about: str  # a sentence or two: world, model, sizes
  arms: Mapping[str, Arm]
  claims: tuple[Claim, ...]
  prepare: Mapping[str, Arm] = dataclasses.field(default_factory=dict)  # one may start from one that is named before it
  final: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keys of all runs that make the questions final
  seeded: tuple[str, ...] = ('seed',)  # keys that are the run's seed, where it does not set them itself
  budget: str = 'steps'  # steps | tokens | none: what the arms of a contrast must have in common
  tolerance: float = 0.1  # share by which tokens may differ
  first: int = 0  # seed of the final runs; another after a sweep was changed in view of final figures
  fewest: int = 5  # seeds, below which there is no verdict
  minutes: float = 20.0  # of one run, above which it is stopped; it can be resumed

  def needed(self, only: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The arms that the claims of these ids compare, in the sweep's order; without ids all arms, controls too."""
    used = {arm for claim in self.claims if claim.id in only for c in claim.contrasts for arm in c.weights}
    return tuple(arm for arm in self.arms if not only or arm in used)

  def metrics(self, arm: str = '') -> tuple[str, ...]:
    """What the claims read of an arm, or of any."""
    read = [m for claim in self.claims for c in claim.contrasts if not arm or arm in c.weights for m in c.metrics]
    return tuple(dict.fromkeys(read))


def near(word: str, words) -> str:
  found = difflib.get_close_matches(word, list(words), 1)
  return f' Did you mean {found[0]!r}?' if found else ''


def problems(sweep: Sweep) -> list[str]:
  """Every problem that can be told without a config, one sentence each."""
  out = []
  if sweep.budget not in BUDGETS:
    out.append(f'budget={sweep.budget!r}: choose one of {", ".join(BUDGETS)}.{near(sweep.budget, BUDGETS)}')
  if both := set(sweep.prepare) & set(sweep.arms):
    out.append(f'{", ".join(sorted(both))}: a name is either of a preparing run or of an arm.')
  for name in (*sweep.prepare, *sweep.arms):
    if not re.fullmatch(r'[A-Za-z0-9][\w.+-]*', name):
      out.append(f'arm {name!r}: names have letters, digits and any of _.+- in them: folders are named after them.')
  for name, arm in (*sweep.prepare.items(), *sweep.arms.items()):
    if strange := set(arm.shift) - set(sweep.seeded):
      out.append(f'arm {name!r} shifts {", ".join(sorted(strange))}, which is none of seeded={sweep.seeded}.')
  before = []
  for name, arm in sweep.prepare.items():
    if arm.start and arm.start not in before:
      out.append(f'prepare {name!r} starts from {arm.start!r}, which is no preparing run named before it.')
    before.append(name)
  for name, arm in sweep.arms.items():
    if arm.start and arm.start not in before:
      out.append(f'arm {name!r} starts from {arm.start!r}: there is no such preparing run.{near(arm.start, before)}')
  ids = [claim.id for claim in sweep.claims]
  if twice := {i for i in ids if ids.count(i) > 1}:
    out.append(f'claim {", ".join(sorted(twice))} stands twice.')
  for claim in sweep.claims:
    at = f'claim {claim.id}'
    if not claim.contrasts:
      out.append(f'{at} has no contrasts.')
    budgets = {c.budget for c in claim.contrasts} | {claim.budget}
    for budget in sorted(budgets - {'', *BUDGETS}):
      out.append(f'{at}: budget={budget!r}: choose one of {", ".join(BUDGETS)}.{near(budget, BUDGETS)}')
    compare = [c.budget or claim.budget or sweep.budget for c in claim.contrasts if len(c.weights) > 1]
    if 'none' in compare and not claim.note:
      out.append(f"{at}: budget 'none' compares arms of different cost: say why in its note.")
    for c in claim.contrasts:
      for arm in c.weights:
        if arm not in sweep.arms:
          out.append(f'{at}, {c.label}: there is no arm {arm!r}.{near(arm, sweep.arms)}')
      if c.expect not in EXPECTED:
        out.append(f'{at}, {c.label}: expect={c.expect!r}: choose one of {", ".join(map(repr, EXPECTED))}.')
      elif (c.expect == '0') != (c.margin > 0):
        out.append(f"{at}, {c.label}: a margin above 0 belongs to expect='0', and only to it.")
      for metric in c.metrics:
        when, _, name = metric.partition(':')
        if when not in WHEN or not name:
          out.append(f'{at}, {c.label}: metric {metric!r} is not WHEN:NAME, WHEN one of {", ".join(WHEN)}.')
  return out


def load(file: Path) -> Sweep:
  """The sweep of a file.

  Raises:
    UserError: there is no such file, it fails (with the line), or the sweep has problems.
  """
  if not file.is_file():
    folder = file.parent if file.parent.is_dir() else Path('.')
    found = difflib.get_close_matches(file.name, [p.name for p in folder.glob('*.py')], 1)
    raise UserError(f'there is no sweep file {file}.' + (f' Did you mean {folder / found[0]}?' if found else ''))
  try:
    spec = importlib.util.spec_from_file_location('sweep_file', file)
    if spec is None:
      raise UserError(f'{file}: a sweep is a Python file, FILE.py.')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = module.get_sweep()
  except UserError:
    raise
  except Exception as error:  # the file is the user's: it may fail in any way
    raise UserError(f'{place(error, file)}: {type(error).__name__}: {error}') from error
  if not isinstance(sweep, Sweep):
    raise UserError(f'{file}: get_sweep() returns {type(sweep).__name__}, not a past_jax.ablate.sweep.Sweep.')
  if found := problems(sweep):
    raise UserError('\n  '.join([f'{file} has problems:', *found]))
  return sweep


def place(error: Exception, file: Path) -> str:
  """file:line of the sweep file that the exception came through."""
  if isinstance(error, SyntaxError):
    return f'{error.filename}:{error.lineno}'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
  return f'{file}:{lines[-1]}' if lines else str(file)
