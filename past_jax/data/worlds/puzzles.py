"""Small puzzles on grids, of which only some augmentations keep the rule; and solved ones of other rules.

The rule of a puzzle permutes the colours. Turns, flips and tiles leave it as it is (`basic`, `repeat`): they multiply
what there is to learn from. A frame of colour 0 (`size`) says that 0 stays 0, which it never does, and permuted colours
(`chain`) are another rule.
"""

import itertools
from collections.abc import Callable

import numpy as np

from past_jax.data.grids import Grid, Pair, Task, task_example
from past_jax.data.worlds.words import SPLITS, World, dice, own_seed, pick_split, shuffled
from past_jax.training_choice import LOSSES, Choice, choice_line
from past_jax.types import Example, UserError

REQUEST = 'Choice:'
LRS = (0.0001, 0.001, 0.01, 0.1)
EPOCHS = (1, 2, 4, 8, 16)
LUCK = 1024  # numbers drawn for a puzzle


Rule = tuple[int, ...]  # of each colour the one that it becomes


def puzzles(
  count: int,
  seed: int,
  split: str = 'tune',
  colours: int = 4,
  side: int = 3,
  pairs: int = 3,
  tests: int = 4,
  shown: bool = False,
  choice: str = '',
) -> World:
  """`count` puzzles of `pairs` demonstrations; a question, '120/011/201>', is a test input alone, its answer a grid.

  No question says which rule is meant, so who has not learnt from the demonstrations can only guess: they have every
  colour, so that one rule fits them. The rules of 'tune', 'final' and `solved` are three parts of all, and test inputs
  of 'tune' have an even sum of digits, those of 'final' an odd one.

  Args:
    colours: 3 to 6, digits from 0.
    side: 2 to 5 rows and columns.
    pairs: demonstrations, 1 to 8; tests: questions, 1 to 8.
    shown: questions have the demonstrations in view.
    choice: one that is given with every puzzle.

  Raises:
    UserError: a number out of range, a negative seed, no such split, or the choice is none.
  """
  odd = pick_split(split, SPLITS)
  _check('puzzles', count, colours, side, pairs, tests)
  seed, rules, fits = own_seed(seed, split), every_rule(colours), lambda grid: grid.sum() % 2 == odd
  examples = []
  for i in range(count):
    task = _task(rules[1 + odd :: 3], (side, pairs, tests), fits, seed, i, 81)
    examples.append(task_example(task, REQUEST, f'world:puzzles row {i}', 'puzzles', shown, choice))
  return World(tuple(examples))


def solved(
  count: int,
  seed: int,
  split: str = 'tune',
  colours: int = 4,
  side: int = 3,
  pairs: int = 3,
  choices: float = 0.5,
) -> World:
  """`count` texts to pretrain on: the pairs of a puzzle, or the prompt that `puzzles` has with a random choice.

  Rules are of the third part, of which no puzzle is. A choice (`training_choice`) has every flag as often as not, each
  loss as often, one of LRS and one of EPOCHS. A text of a choice has its prompt and target apart, too.

  Args:
    split: with another seed.
    choices: the share of texts, 0 to 1, that are a choice.
  """
  pick_split(split, SPLITS)
  _check('solved', count, colours, side, pairs, 1)
  if not 0 <= choices <= 1:
    raise UserError(f'world:solved with choices={choices}: a share between 0 and 1')
  seed, rules = own_seed(seed, split), every_rule(colours)
  examples = []
  for i in range(count):
    luck, pick = dice(seed, i, 84)
    task = _task(rules[::3], (side, pairs, 1), lambda grid: True, seed, i, 82)
    example = task_example(task, REQUEST, f'world:solved row {i}', 'puzzles', False)
    if next(luck) < choices:
      flags = (pick((False, True)) for _ in range(4))
      target = f' {choice_line(Choice(*flags, pick(LOSSES), pick(LRS), pick(EPOCHS)))}'
      examples.append(Example(example.prompt, f'{example.prompt}{target}\n', target=target, where=example.where))
    else:
      examples.append(Example(text=f'{example.text}\n', questions=example.questions, where=example.where))
  return World(tuple(examples))


def _check(world: str, count: int, colours: int, side: int, pairs: int, tests: int) -> None:
  if not (count >= 1 and 3 <= colours <= 6 and 2 <= side <= 5 and 1 <= pairs <= 8 and 1 <= tests <= 8):
    raise UserError(
      f'world:{world} with count={count}, colours={colours}, side={side}, pairs={pairs}, tests={tests}: at least 1 '
      'puzzle of 3 to 6 colours, 2 to 5 rows and columns, 1 to 8 demonstrations and 1 to 8 tests'
    )


def every_rule(colours: int) -> list[Rule]:
  """All of them, in an order that depends on nothing else. Of each 0 becomes another colour."""
  return shuffled([rule for rule in itertools.permutations(range(colours)) if rule[0]], colours, 83)


def _task(mine: list[Rule], sizes: tuple[int, int, int], fits: Callable[[Grid], bool], *seeds: int) -> Task:
  """A puzzle of one of the rules `mine`, no two inputs alike, whose demonstrations have every colour.

  Args:
    sizes: side of the grids, demonstrations, tests.
    fits: whether a grid may be a test's input.
  """
  side, pairs, tests = sizes
  for draw in itertools.count():
    _, pick = dice(*seeds, draw, size=LUCK)
    rule = np.array(pick(mine))
    cells = [pick(range(len(rule))) for _ in range((pairs + 3 * tests) * side * side)]
    drawn = list(np.array(cells).reshape(-1, side, side))
    inputs = drawn[:pairs] + [grid for grid in drawn[pairs:] if fits(grid)][:tests]
    distinct = len({grid.tobytes() for grid in inputs}) == pairs + tests
    if distinct and len(np.unique(inputs[:pairs])) == len(rule):
      made = tuple(Pair(grid, rule[grid]) for grid in inputs)
      return Task(made[:pairs], made[pairs:])
