"""Tasks on grids, such as those of ARC (arXiv 1911.01547): as arrays, as text and back.

A grid is a line: digits are colours, rows are separated by '/', as in '120/001'. So an answer ends with its line, as
everywhere in this project, and a document may have a pair a line: '12/30> 21/03'.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from past_jax.training_choice import Choice, choice_line, read_choice
from past_jax.types import Example, Question, UserError

Grid = np.ndarray  # int [rows, columns], colours 0 to 9

COLOURS = 10
SIDE = 30  # rows or columns that a grid has at most


class Pair(NamedTuple):
  input: Grid
  output: Grid


class Task(NamedTuple):
  train: tuple[Pair, ...]  # the demonstrations
  test: tuple[Pair, ...]
  name: str = ''


def grid_text(grid: Grid) -> str:
  return '/'.join(''.join(map(str, row)) for row in grid.tolist())


def read_grid(text: str) -> Grid | None:
  """The grid that the text is, but for space around it; None: it is none. Rows may be lines, too."""
  text = text.strip()
  if not re.fullmatch(r'[0-9]+(/[0-9]+)*|[0-9]+(\r?\n[0-9]+)*', text, re.ASCII):
    return None
  rows = re.split(r'/|\r?\n', text)
  if len({len(row) for row in rows}) > 1 or max(len(rows), len(rows[0])) > SIDE:
    return None
  return np.array([[int(digit) for digit in row] for row in rows])


def is_solved(output: str, answer: str) -> bool:
  """The output's first line is the answer's grid, cell by cell."""
  given, wanted = read_grid((output.strip().splitlines() or [''])[0]), read_grid(answer)
  return given is not None and wanted is not None and np.array_equal(given, wanted)


def pair_text(pair: Pair) -> str:
  return f'{asked(pair)} {grid_text(pair.output)}'


def asked(pair: Pair, shown: Sequence[Pair] = ()) -> str:
  """The question for a pair's output, below the demonstrations that are shown; the answer follows after a space."""
  return '\n'.join([*map(pair_text, shown), f'{grid_text(pair.input)}>'])


def task_example(task: Task, request: str, where: str, kind: str, shown: bool, choice: str = '') -> Example:
  """The task as an item to study.

  Args:
    request: what the prompt asks for below the demonstrations.
    kind: of the questions, one for each test pair.
    shown: questions have the demonstrations in view.
    choice: is given with it, as a completion; '': none.

  Raises:
    UserError: `choice` is none that can be read.
  """
  if choice and (not isinstance(choice, str) or read_choice(choice) is None):
    example = choice_line(Choice(True, False, False, False, 'outputs', 1e-3, 4))
    raise UserError(f'{where}: choice={choice!r} is no text of a choice, such as {example!r}')
  text = '\n'.join(map(pair_text, task.train))
  demonstrations = task.train if shown else ()
  questions = tuple(Question(asked(p, demonstrations), grid_text(p.output), kind) for p in task.test)
  anchors = (choice,) if choice else ()
  return Example(prompt=f'{text}\n{request}', text=text, questions=questions, anchors=anchors, where=where)


def example_task(example: Example) -> Task:
  """The task that `task_example` was given, known from the example's text and questions.

  Raises:
    UserError: the example is no task on grids.
  """
  lines = example.text.splitlines()
  train = [_read_pair(line, example.where) for line in lines]
  test = [_read_pair(f'{q.question.splitlines()[-1]} {q.answer}', example.where) for q in example.questions]
  if not train or not test:
    raise UserError(f'{example.where}: a task on grids has a line "GRID> GRID" for each pair, and a question')
  return Task(tuple(train), tuple(test), example.where)


def _read_pair(line: str, where: str) -> Pair:
  left, _, right = line.partition('>')
  grids = read_grid(left), read_grid(right)
  if grids[0] is None or grids[1] is None:
    raise UserError(f'{where}: {line[:80]!r} is no pair of grids such as "12/30> 21/03"')
  return Pair(*grids)
