"""Small instructions, such as 'sort d b a c with commas:', and the answers of imperfect responders to them."""

import re
from typing import Literal

from past_jax.data.worlds.words import World, dice, own_seed, pick_split
from past_jax.types import Example, Question, UserError

TASKS = {
  'sort': sorted,
  'reverse': lambda symbols: symbols[::-1],
  'rotate': lambda symbols: symbols[1:] + symbols[:1],
  'unique': lambda symbols: list(dict.fromkeys(symbols)),
}
FORMATS = {'spaces': ' ', 'commas': ',', 'dashes': '-'}
# How often a responder does the wrong task, writes another format, and goes on after the answer.
RESPONDERS = ((0.1, 0.1, 0.1), (0.5, 0.1, 0.3), (0.1, 0.7, 0.2), (0.6, 0.6, 0.6))


LETTERS = {'tune': 'abcdefgh', 'final': 'ijklmnop'}


def preferences(
  count: int, seed: int, flips: float = 0.0, rejected: Literal['random', 'worst'] = 'random', split: str = 'tune'
) -> World:
  """`count` instructions such as 'sort d b a c with commas:', each with a better and a worse answer, ' a,b,c,d'.

  Four imperfect responders answer; an answer's score is the mean of three marks: the symbols are right, the format is,
  and nothing follows. The anchors are the best answer and a random one of those that score less (arXiv 2310.16944); an
  instruction on which all agree gives none, and one that was there before tells nothing new: both are drawn again.
  Target and question are the right answer's.

  Args:
    flips: share of the pairs that are turned round, to measure what wrong labels cost.
    rejected: 'random', or 'worst': the first of those with the lowest score.
    split: 'tune', or 'final' with other letters.

  Raises:
    UserError: a count below 1, a negative seed, flips outside [0, 1], an unknown `rejected`, or no such split.
  """
  return World(_rows('preferences', count, seed, flips, rejected, split))


def instructions(
  count: int, seed: int, flips: float = 0.0, rejected: Literal['random', 'worst'] = 'random', split: str = 'tune'
) -> World:
  """The rows of `preferences` with a text each: the instruction and what a random responder answers, for pretraining.

  `marks` scores any answer to them.
  """
  return World(_rows('instructions', count, seed, flips, rejected, split))


def marks(completion: str, example: Example) -> float:
  """The mean of three marks of an answer to `example.prompt`: its symbols are right, its format is, nothing follows."""
  task, *symbols, _, form = example.prompt.rstrip(':').split()
  found = re.match(r'\s*([a-z](?:([ ,-])[a-z](?:\2[a-z])*)?)(?![a-z])', completion)
  if not found:
    return 0.0
  said, junk = found[1], completion[found.end() :].strip()
  right = re.findall('[a-z]', said) == TASKS[task](symbols)
  return (right + (found[2] in (None, FORMATS[form])) + (not junk)) / 3


def _rows(world: str, count: int, seed: int, flips: float, rejected: str, split: str) -> tuple[Example, ...]:
  if count < 1 or not 0 <= flips <= 1:
    raise UserError(f'world:{world} with count={count}, flips={flips}: at least 1, and a share between 0 and 1')
  if rejected not in ('random', 'worst'):
    raise UserError(f'world:{world} with rejected={rejected!r}: choose one of random, worst')
  letters, seed = pick_split(split, LETTERS), own_seed(seed, split)
  examples, seen, draw = [], set(), 0
  while len(examples) < count:
    luck, pick = dice(seed, draw, 8)
    draw += 1
    task, form, n = pick(list(TASKS)), pick(list(FORMATS)), pick((4, 5, 6))
    symbols = [pick(letters) for _ in range(n)]
    prompt = f'{task} {" ".join(symbols)} with {form}:'
    if prompt in seen:  # what is held out would have been studied
      continue
    answers = {}  # text -> score
    for wrong, misformed, going_on in RESPONDERS:
      done = task if next(luck) >= wrong else pick([t for t in TASKS if t != task])
      mark = form if next(luck) >= misformed else pick([f for f in FORMATS if f != form])
      junk = pick((' ok', '!', ' ...')) if next(luck) < going_on else ''
      right = TASKS[done](symbols) == TASKS[task](symbols)
      answers[' ' + FORMATS[mark].join(TASKS[done](symbols)) + junk] = (right + (mark == form) + (not junk)) / 3
    best = max(answers, key=answers.get)
    worse = [text for text, score in answers.items() if score < answers[best]]
    if not worse:
      continue
    seen.add(prompt)
    target = ' ' + FORMATS[form].join(TASKS[task](symbols))
    any_worse = pick(worse)
    pair = (best, any_worse if rejected == 'random' else min(worse, key=answers.get))
    if next(luck) < flips:
      pair = pair[::-1]
    text = prompt + pick(list(answers)) if world == 'instructions' else ''
    examples.append(
      Example(
        prompt=prompt,
        text=text,
        anchors=pair,
        target=target,
        questions=(Question(prompt, target.strip(), task),),
        where=f'world:{world} row {len(examples)}',
      )
    )
  return tuple(examples)
