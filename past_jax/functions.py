"""Functions of the user's, named in a config."""

import importlib
import math
from collections.abc import Callable

from past_jax.types import Example, UserError

Scorer = Callable[[str, Example], float | None]


def scorer(function: str | Scorer, key: str) -> Callable[[str, Example], float]:
  """score(completion, example) -> float; NaN where the user's function says None.

  Args:
    function: 'module:callable', or the callable itself.
    key: of the config, for messages.

  Raises:
    UserError: it cannot be imported or is no function; from `score`, what the function raised and on which row.
  """
  if callable(function):
    name, call = getattr(function, '__qualname__', repr(function)), function
  else:
    name, (module, _, attribute) = function, function.partition(':')
    try:
      call = getattr(importlib.import_module(module), attribute) if module and attribute else None
    except Exception as error:  # the user's module may fail in any way
      raise UserError(f'{key}={name!r} cannot be imported: {type(error).__name__}: {error}.') from error
    if not callable(call):
      raise UserError(f"{key}={name!r} is not a function; write it as 'module:function'.")

  def score(completion: str, example: Example) -> float:
    try:
      value = call(completion, example)
      return math.nan if value is None else float(value)
    except Exception as error:
      where = f'{example.where}: ' if example.where else ''
      raise UserError(
        f'{where}{key}={name!r} failed on completion {completion[:80]!r}: {type(error).__name__}: {error}.'
      ) from error

  return score
