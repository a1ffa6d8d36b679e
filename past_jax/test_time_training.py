"""What a choice of how to train makes of a task: rows to train on, learning rate and number of steps."""

from typing import NamedTuple

from past_jax.augmentations import augmented
from past_jax.data.grids import Task, asked, grid_text
from past_jax.training_choice import Choice

STEPS = 375  # of one training at most, SEAL's limit


class Training(NamedTuple):
  rows: tuple[tuple[str, str], ...]  # (what is read, what is learned)
  lr: float
  steps: int


def rows(task: Task, choice: Choice, seed: int, shown: bool) -> list[tuple[str, str]]:
  """(prompt, completion) of each augmented leave-one-out task, as its question is asked and answered.

  With `loss='outputs'` the completion is the output of the pair left out, with 'all' it is the whole text and the
  prompt is empty.

  Args:
    shown: the other demonstrations stand before the question, as in the questions of the task (`task_example`).
  """
  made = []
  for part in augmented(task, choice.flags(), seed):
    (pair,) = part.test
    prompt, completion = asked(pair, part.train if shown else ()), f' {grid_text(pair.output)}'
    made.append((prompt, completion) if choice.loss == 'outputs' else ('', prompt + completion))
  return made


def training(
  task: Task, choice: Choice | None, seed: int, shown: bool, batch: int = 2, most: int = STEPS
) -> Training | None:
  """The training that a choice asks for; None, which is no training, for no choice or one of more than `most` steps.

  Args:
    batch: rows per step; the last of an epoch may have fewer.
  """
  if choice is None:
    return None
  made = tuple(rows(task, choice, seed, shown))
  steps = choice.epochs * -(-len(made) // batch)
  return Training(made, choice.lr, steps) if 0 < steps <= most else None
