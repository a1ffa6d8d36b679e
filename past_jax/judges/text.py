"""Judges that read the completion as text: a rule, or a function of the user's."""

import importlib
import re
from collections.abc import Callable
from decimal import Decimal

import jax.numpy as jnp
import numpy as np

from past_jax.judges.rows import bodies
from past_jax.types import Example, Judge, Judgement, UserError

# A minus directly after a word is a hyphen (`10-5`); commas count only between groups of three digits.
NUMBER = re.compile(r'(?:(?<![\w)])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)')


def number(text: str) -> Decimal | None:
  """The answer in `text`: the first number after the last `####` if there is one, else the last number, if any."""
  marked = NUMBER.findall(text.rpartition('####')[2])[:1] if '####' in text else []
  found = marked or NUMBER.findall(text)[-1:]
  return Decimal(found[0].replace(',', '')) if found else None


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
  if (expected := number(example.target)) is None:
    raise UserError(f'{example.where}: judge text with rule=numeric finds no number in target {example.target!r}.')
  return float(number(completion) == expected)


def _function(function):
  if callable(function):
    name, call = getattr(function, '__qualname__', repr(function)), function
  else:
    name, (module, _, attribute) = function, function.partition(':')
    try:
      call = getattr(importlib.import_module(module), attribute) if module and attribute else None
    except Exception as error:  # the user's module may fail in any way
      raise UserError(f'judge.function={name!r} cannot be imported: {type(error).__name__}: {error}.') from error
    if not callable(call):
      raise UserError(f"judge.function={name!r} is not a function; write it as 'module:function'.")

  def rule(completion, example):
    try:
      value = call(completion, example)
      return np.nan if value is None else float(value)
    except Exception as error:
      where = f'{example.where}: ' if example.where else ''
      raise UserError(
        f'{where}judge.function={name!r} failed on completion {completion[:80]!r}: {type(error).__name__}: {error}.'
      ) from error

  return rule


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
      white space. `numeric`: 1 where both have the same answer (see `number`), 0 without a number. `function`: the
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
    'function': lambda: _function(function),
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
    return Judgement(jnp.asarray(scores, jnp.float32))

  return Judge(score)
