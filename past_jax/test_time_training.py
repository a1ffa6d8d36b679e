"""What a choice of how to train makes of a task: rows to train on."""

from past_jax.augmentations import augmented
from past_jax.data.grids import Task, asked, grid_text
from past_jax.training_choice import Choice


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
