"""Procedurally generated reasoning tasks of the package `reasoning-gym` (arXiv 2505.24760), and its own scoring."""

import functools
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from past_jax.data.worlds.words import SPLITS, World, own_seed, pick_split
from past_jax.types import Example, UserError

WHERE = 'reasoning-gym '  # what `Example.where` begins with; the rest says how to make the row again


def reasoning(
  task: str, count: int, seed: int, options: Mapping[str, Any] = MappingProxyType({}), split: str = 'tune'
) -> World:
  """`count` rows of a task such as 'chain_sum': the question as prompt, its answer as target. `score` scores answers.

  Args:
    options: of the task, such as {'min_terms': 2}.
    split: 'tune', or 'final' with another seed.

  Raises:
    UserError: the package is not installed, there is no such task, it refuses an option, or a number is out of range.
  """
  pick_split(split, SPLITS)
  if count < 1 or seed < 0:
    raise UserError(f'world:reasoning with count={count}, seed={seed}: at least 1 row, and seeds are 0 or more')
  made = dict(task=task, size=count, seed=own_seed(seed, split), options=dict(options))
  rows = _rows(json.dumps(made))
  where = lambda i: WHERE + json.dumps(made | {'row': i})
  return World(
    tuple(Example(prompt=row['question'], target=f' {row["answer"]}', where=where(i)) for i, row in enumerate(rows))
  )


def score(completion: str, example: Example) -> float:
  """What the task's own scorer says of the last <answer>...</answer>, or of the whole completion without one, 0 to 1.

  For the judge `text` with rule 'function', and for the evaluation `accuracy`.
  """
  if not example.where.startswith(WHERE):
    raise UserError(f'{example.where}: only rows of world:reasoning have a scorer of their own.')
  made = json.loads(example.where.removeprefix(WHERE))
  rows = _rows(json.dumps({key: made[key] for key in ('task', 'size', 'seed', 'options')}))
  tagged = re.findall(r'<answer>(.*?)</answer>', completion, re.DOTALL)
  return float(rows.score_answer(answer=(tagged[-1] if tagged else completion).strip(), entry=rows[made['row']]))


@functools.cache
def _rows(made: str):
  """The data set, of JSON, so that scoring a row does not make all of them again."""
  try:
    import reasoning_gym
  except ImportError as error:
    raise UserError(f'world:reasoning needs reasoning-gym ({error}); run: pip install "past-jax[tasks]"') from error
  made = json.loads(made)
  try:
    return reasoning_gym.create_dataset(made['task'], size=made['size'], seed=made['seed'], **made['options'])
  except (ValueError, TypeError, AssertionError) as error:  # no such task, no such option, a value it refuses
    raise UserError(f'world:reasoning, task={made["task"]!r}, options={made["options"]}: {error}') from error
