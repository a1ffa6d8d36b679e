"""Augmentations of tasks on grids, each with its inverse, under the four flags of SEAL's self-edits (2506.10943).

An augmentation is one function of a grid. It is applied to inputs and outputs, demonstrations and tests alike, so that
the rule of the new task is the old one seen through it: if the rule commutes with the function, it is the same rule.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from past_jax.data.grids import COLOURS, SIDE, Grid, Pair, Task
from past_jax.data.stream import permutation


class Augmentation(NamedTuple):
  """inverse(forward(grid)) is the grid; inverse is None of what no grid becomes by it."""

  name: str
  forward: Callable[[Grid], Grid]
  inverse: Callable[[Grid], Grid | None]


def recoloured(colours: Sequence[int]) -> Augmentation:
  """Colour c becomes colours[c]; `colours` is a permutation of range(10)."""
  colours = np.asarray(colours)
  return Augmentation(
    f'recoloured_{"".join(map(str, colours))}', lambda grid: colours[grid], lambda grid: np.argsort(colours)[grid]
  )


def enlarged(rows: int, columns: int) -> Augmentation:
  """A cell becomes a block of `rows` x `columns` cells."""

  def inverse(grid):
    small = grid[::rows, ::columns]
    return _if_equal(small, forward, grid)

  forward = lambda grid: grid.repeat(rows, 0).repeat(columns, 1)
  return Augmentation(f'enlarged_{rows}x{columns}', forward, inverse)


def framed(colour: int) -> Augmentation:
  """A border of one cell around the grid."""

  def inverse(grid):
    return _if_equal(grid[1:-1, 1:-1], forward, grid)

  forward = lambda grid: np.pad(grid, 1, constant_values=colour)
  return Augmentation(f'framed_{colour}', forward, inverse)


def tiled(rows: int, columns: int) -> Augmentation:
  """The grid `rows` times below itself and `columns` times beside itself."""

  def inverse(grid):
    return _if_equal(grid[: len(grid) // rows, : grid.shape[1] // columns], forward, grid)

  forward = lambda grid: np.tile(grid, (rows, columns))
  return Augmentation(f'tiled_{rows}x{columns}', forward, inverse)


def chained(*steps: Augmentation) -> Augmentation:
  """One after another."""

  def inverse(grid):
    for step in reversed(steps):
      grid = None if grid is None else step.inverse(grid)
    return grid

  forward = lambda grid: functools.reduce(lambda made, step: step.forward(made), steps, grid)
  return Augmentation('+'.join(step.name for step in steps), forward, inverse)


def _if_equal(small: Grid, forward: Callable[[Grid], Grid], grid: Grid) -> Grid | None:
  return small if small.size and np.array_equal(forward(small), grid) else None


SAME = Augmentation('same', lambda grid: grid, lambda grid: grid)
MOVES = (  # with SAME, all eight symmetries of a square
  Augmentation('rotated_90', np.rot90, lambda grid: np.rot90(grid, 3)),
  Augmentation('rotated_180', lambda grid: np.rot90(grid, 2), lambda grid: np.rot90(grid, 2)),
  Augmentation('rotated_270', lambda grid: np.rot90(grid, 3), np.rot90),
  Augmentation('flipped_up_down', np.flipud, np.flipud),
  Augmentation('flipped_left_right', np.fliplr, np.fliplr),
  Augmentation('transposed', np.transpose, np.transpose),
  Augmentation('antitransposed', lambda grid: np.rot90(grid, 2).T, lambda grid: np.rot90(grid, 2).T),
)
SIZES = (enlarged(2, 2), enlarged(2, 1), enlarged(1, 2), framed(0))
REPEATS = (tiled(1, 2), tiled(2, 1), tiled(2, 2))


def augmentations(flags: Sequence[str], seed: int, colours: Sequence[int] = range(COLOURS)) -> list[Augmentation]:
  """What the flags stand for; SAME is always the first, and without flags the only one.

  basic: MOVES. size: SIZES. repeat: REPEATS. chain: each of MOVES, with `colours` permuted among each other as the seed
  says. Nothing is shifted: what falls off a grid does not come back, and what comes in again on the other side is
  another object.
  """
  permuted = np.tile(np.arange(COLOURS), (len(MOVES), 1))
  permuted[:, list(colours)] = [np.asarray(colours)[permutation(len(colours), seed, i)] for i in range(len(MOVES))]
  chains = [chained(move, recoloured(to)) for move, to in zip(MOVES, permuted)]
  table = {'basic': MOVES, 'size': SIZES, 'chain': chains, 'repeat': REPEATS}
  return [SAME, *itertools.chain.from_iterable(table[flag] for flag in flags)]


def seen_through(task: Task, augmentation: Augmentation) -> Task:
  """The task with every grid of it augmented."""
  pairs = lambda given: tuple(Pair(augmentation.forward(a), augmentation.forward(b)) for a, b in given)
  return Task(pairs(task.train), pairs(task.test), f'{task.name} {augmentation.name}')


def leave_one_out(task: Task) -> list[Task]:
  """A task for each demonstration: it is the test, the others demonstrate. The task's own test is not looked at."""
  return [
    Task(task.train[:i] + task.train[i + 1 :], (pair,), f'{task.name} pair {i}') for i, pair in enumerate(task.train)
  ]


def augmented(task: Task, flags: Sequence[str], seed: int) -> list[Task]:
  """The tasks to train on at test time (arXiv 2411.07279): leave-one-out, each seen through each augmentation.

  Augmentation by augmentation, SAME first. Demonstrations stand in an order of the seed's, and the colours permuted are
  those that they have. Tasks that an augmentation makes larger than a grid may be are left out.
  """
  tasks, colours = [], sorted({int(colour) for pair in task.train for grid in pair for colour in np.unique(grid)})
  for i, augmentation in enumerate(augmentations(flags, seed, colours)):
    for j, part in enumerate(leave_one_out(task)):
      order = permutation(len(part.train), seed, i, j)
      new = seen_through(part._replace(train=tuple(part.train[k] for k in order)), augmentation)
      if all(max(grid.shape) <= SIDE for pair in (*new.train, *new.test) for grid in pair):
        tasks.append(new)
  return tasks
