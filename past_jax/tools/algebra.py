"""Answers that are expressions, compared by sympy: in the sandbox, since reading an expression may compute anything."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from past_jax import answers
from past_jax.tools.sandbox import Limits, run
from past_jax.types import UserError

START = 8  # seconds of CPU in which sympy is imported
PROGRAM = Path(__file__).with_name('expressions.py')


def algebra(completions: Sequence[str], targets: Sequence[str], rule: str, limits: Limits) -> list[bool]:
  """Whether each completion's answer equals its target as an expression: 2*(x+1) and 2x + 2, 1/2 and 0.5, sqrt(8).

  Args:
    rule: of `answers.RULES`: how the answer is found; '': all of the completion is the answer.
    limits: of one comparison; one that reaches them is no equality.

  Raises:
    UserError: sympy is not installed, or this system has no sandbox.
  """
  found = [answers.extract(c, rule) if rule else c.strip() for c in completions]
  equal = [answers.same(a, t) for a, t in zip(found, targets, strict=True)]
  open_ = [i for i, (a, t) in enumerate(zip(found, targets)) if a and not equal[i] and not (_number(a) and _number(t))]
  while open_:
    verdicts = _compared([(found[i], targets[i]) for i in open_], limits)
    for i, verdict in zip(open_, verdicts):
      equal[i] = verdict
    open_ = open_[len(verdicts) + 1 :]  # the one after the last verdict took the process with it
  return equal


def _number(answer: str) -> bool:
  """One whose spelling decides."""
  return bool(re.fullmatch(r'-?[0-9.]+(/[0-9]+)?', answers.canonical(answer)))


def _compared(pairs: Sequence[tuple[str, str]], limits: Limits) -> list[bool]:
  """Verdicts up to the pair, if any, that reached a limit of the whole process."""
  packages = [_package(name) for name in ('sympy', 'mpmath')]
  order = {'packages': sorted({str(path.parent) for path in packages}), 'seconds': limits.seconds, 'pairs': pairs}
  times = dict(seconds=START + limits.seconds * len(pairs), wall=limits.wall * (1 + len(pairs)))
  outcome = run(
    PROGRAM.read_text(),
    json.dumps(order),
    dataclasses.replace(limits, **times),
    readable=[str(path) for path in packages],
  )
  lines = outcome.output.splitlines()
  if not lines or lines[0] != 'ready':
    raise UserError(f'sympy does not start in the sandbox (status {outcome.code}): {outcome.errors.strip()[-300:]}')
  return [line == 'equal' for line in lines[1:]]


def _package(name: str) -> Path:
  found = importlib.util.find_spec(name)
  if found is None or not found.submodule_search_locations:
    raise UserError(f'The tool algebra needs {name}; run: pip install "past-jax[tools]"')
  return Path(found.submodule_search_locations[0])
