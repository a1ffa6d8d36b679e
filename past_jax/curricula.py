"""Curricula: what a round does, as a pure function of its number (from 0)."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from past_jax.types import Curriculum, Plan, UserError

SOURCES = ('none', 'given')
DRAFTS = ('none', 'rejected', 'chosen', 'given', 'sampled', 'improved', 'orders')
FIELDS = [field.name for field in dataclasses.fields(Plan)]


def _plan(where: str, values: Mapping[str, Any]) -> Plan:
  for name in values:
    if name not in FIELDS:
      near = difflib.get_close_matches(name, FIELDS, 1)
      raise UserError(f'{where}.{name}: a plan has no such key.' + (f' Did you mean {near[0]!r}?' if near else ''))
  if isinstance(values.get('refresh'), str):  # a string is a sequence of letters, which are no roles
    values = {**values, 'refresh': (values['refresh'],)}
  plan = dataclasses.replace(Plan(), **values)
  plan = dataclasses.replace(plan, refresh=frozenset(plan.refresh))
  if plan.anchor_source not in SOURCES:
    raise UserError(f'{where}.anchor_source={plan.anchor_source!r}: choose one of {", ".join(SOURCES)}.')
  if plan.draft not in DRAFTS:
    raise UserError(f'{where}.draft={plan.draft!r}: choose one of {", ".join(DRAFTS)}.')
  if not (math.isfinite(plan.temperature) and plan.temperature >= 0):
    raise UserError(f'{where}.temperature={plan.temperature}: give a number of at least 0 (0: greedy).')
  if plan.prompts < 0:
    raise UserError(f'{where}.prompts={plan.prompts}: give at least 1, or 0 for all rows of the data.')
  if plan.epochs < 1:
    raise UserError(f'{where}.epochs={plan.epochs}: give at least 1.')
  return plan


def constant(
  temperature: float = 1.0,
  prompts: int = 8,
  epochs: int = 1,
  anchor_source: str = 'none',
  draft: str = 'none',
  refresh: Sequence[str] = (),
) -> Curriculum:
  """Every round the same plan; the arguments are `Plan`'s.

  Raises:
    UserError: a value out of its range.
  """
  values = dict(temperature=temperature, prompts=prompts, epochs=epochs, anchor_source=anchor_source)
  values |= dict(draft=draft, refresh=refresh)
  plan = _plan('curriculum', values)
  return lambda round_: plan


def stages(
  plans: Sequence[tuple[int, Mapping[str, Any]]] = (),
  temperature: float = 1.0,
  prompts: int = 8,
  epochs: int = 1,
  anchor_source: str = 'none',
  draft: str = 'none',
  refresh: Sequence[str] = (),
) -> Curriculum:
  """Plans one after another: ((rounds, overrides of the other arguments), ...). The last one goes on for ever.

  `Plan.stage` is the override `stage`, or else stage0, stage1, ...

  Raises:
    UserError: no plans, fewer than one round, an override that is no key of `Plan`, or a value out of its range.
  """
  if not plans:
    raise UserError("curriculum.plans is empty; give ((rounds, {'temperature': ...}), ...).")
  defaults = dict(temperature=temperature, prompts=prompts, epochs=epochs, anchor_source=anchor_source)
  defaults |= dict(draft=draft, refresh=refresh)
  ends, built = [], []
  for i, (rounds, overrides) in enumerate(plans):
    if rounds < 1:
      raise UserError(f'curriculum.plans[{i}] lasts {rounds} rounds; give at least 1.')
    ends.append((ends[-1] if ends else 0) + rounds)
    built.append(_plan(f'curriculum.plans[{i}]', {**defaults, 'stage': f'stage{i}', **overrides}))
  return lambda round_: built[min(sum(round_ >= end for end in ends), len(built) - 1)]


TABLE = {'constant': constant, 'stages': stages}
