"""Judges that read the completion as text: a rule, or a function of the user's."""

import re
from collections.abc import Callable

import numpy as np

from past_jax.answers import extract, same
from past_jax.functions import scorer
from past_jax.judges.rows import bodies
from past_jax.types import Example, Judge, Judgement, UserError


def _regex(pattern):
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise UserError(f'judge.pattern={pattern!r} is not a regular expression: {error}.') from error
  if not pattern:
    raise UserError('judge.pattern is empty; rule=regex scores 1 where it is found in the completion.')
  return lambda completion, example: float(compiled.search(completion) is not None)


def _exact(completion: str, example: Example) -> float:
  if not example.target:
    raise UserError(f'{example.where}: judge text with rule=exact needs `target`, and this row has none.')
  return float(completion.split() == example.target.split())


def _numeric(completion: str, example: Example) -> float:
  if (expected := extract(example.target, 'last_number')) is None:
    raise UserError(f'{example.where}: judge text with rule=numeric finds no number in target {example.target!r}.')
  return float(same(extract(completion, 'last_number'), expected))


def text(
  rule: str = 'regex',
  pattern: str = '',
  function: str | Callable[[str, Example], float | None] = '',
  *,
  tokenizer,
) -> Judge:
  """Score: what `rule` says of the completion's text, its end token left out.

  Args:
    rule: `regex`: 1 where `pattern` is found, else 0. `exact`: 1 where the completion is the example's target up to
      white space. `numeric`: 1 where both have the same last number (see `answers`), 0 without one. `function`: the
      value of `function`, None or NaN abstains.
    function: 'module:callable', or the callable itself: f(completion, example) -> float | None.

  Raises:
    UserError: an unknown rule, a bad pattern, a function that cannot be imported or that raises (names the row), or an
      example without the target that the rule needs.
  """
  rules = {
    'regex': lambda: _regex(pattern),
    'exact': lambda: _exact,
    'numeric': lambda: _numeric,
    'function': lambda: scorer(function, 'judge.function'),
  }
  if rule not in rules:
    raise UserError(f'judge.rule={rule!r}: choose one of {", ".join(rules)}.')
  judge = rules[rule]()

  def score(weights, key, group, examples) -> Judgement:
    del weights, key
    scores = [
      [judge(tokenizer.decode(ids), example) for ids in row]
      for row, example in zip(bodies(tokenizer, group), examples, strict=True)
    ]
    return Judgement(np.array(scores, np.float32))

  return Judge(score, on_host=True)
