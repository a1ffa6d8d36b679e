"""Editing towards a hidden quality: keys, such as 'badc>', and responses of eight letters, each good or not by a rule.

The quality of a response is known exactly to `quality` and to no model; models see prompts and noisy preferences.
"""

import dataclasses
import itertools
import math

from past_jax.data.worlds.words import World, dice, own_seed, pick_split, shuffled
from past_jax.types import Example, Question, UserError

LETTERS = {'tune': 'abcdefgh', 'final': 'ijklmnop'}
KEY, LENGTH = 4, 8  # letters of a key and of a response
GOOD = 3  # letters that are good at a place
SKILL = (0.04, 0.90)  # how often a writer's letter is good: least and most
HABIT = 0.7  # share of a writer's bad letters that are a habit, where there is one
KEPT = 0.5  # share of its letters that the second writer of a pair takes over from the first
SLIP = 0.25  # share of the responses that are of a wrong length, or have characters in them that are no letters
FOREIGN = '>?.'
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)  # those that they have
LUCK = 256  # numbers drawn for a pair, of which it takes at most 3 + 2 * (4 * LENGTH + 6)


def edits(count: int, seed: int, noise: float = 0.05, split: str = 'tune') -> World:
  """`count` keys such as 'badc>', each with a preferred and another response such as 'hbfacgda'.

  Three of the eight letters are good at a place of a response, and which three depends on one letter of the key, the
  first at places 1 and 5, the second at 2 and 6, ..., and on whether the place is in the first or the second half. So
  the rule of a world is 16 sets of three letters, and a key has 3^8 = 6561 best responses; a random one has quality
  3/8. The rule depends on seed and split, and so does what of it a model has learnt.

  Each response has a writer, whose letters are good with a probability of their own, evenly spread over `SKILL`. For
  half of the 16 sets all writers have a habit, one bad letter that they write more often than any good one: the most
  probable response has half of its letters wrong, and a lower temperature alone is no improvement. The second writer
  of a pair takes half of the letters over from the first. One response of four is of a wrong length or has other
  characters in it: who learns from them would never hear otherwise that this is worse.

  Of a pair (a, b) the response a is preferred with probability sigmoid((quality(a) - quality(b)) / noise); a pair of
  equal texts is drawn again. On average the preferred has quality 0.48 and the other 0.25 at the default noise.

  The anchors are the preferred response and the other. The target, which no prompt shows, is what `quality` reads: the
  good letters of each place, 'abe cdg ...'. The question is the key, its answer one of the best responses.

  Args:
    noise: of the preferences, in units of quality; 0: the better is always preferred, and of equals either.
    split: 'tune', or 'final' with other letters and another rule.

  Raises:
    UserError: more keys than there are, a count below 1, a negative noise or seed, or no such split.
  """
  letters = pick_split(split, LETTERS)
  keys = [''.join(key) for key in itertools.product(letters, repeat=KEY)]
  if not (1 <= count <= len(keys) and noise >= 0):
    raise UserError(
      f'world:edits with count={count}, noise={noise}: there are 1 to {len(keys)} keys of {KEY} of the letters '
      f'{letters}, and noise is 0 or more'
    )
  seed = own_seed(seed, split)
  orders = {(a, half): shuffled(letters, seed, 41, i, half) for i, a in enumerate(letters) for half in (0, 1)}
  habits = set(shuffled(list(orders), seed, 42)[: len(orders) // 2])
  examples = []
  for i, key in enumerate(shuffled(keys, seed, 43)[:count]):
    cells = [(key[place % KEY], place // KEY) for place in range(LENGTH)]
    places = [(orders[cell], cell in habits) for cell in cells]
    target = ' '.join(''.join(sorted(order[:GOOD])) for order, _ in places)
    best = ''.join(good[0] for good in target.split())
    example = Example(
      prompt=f'{key}>',
      target=target,
      questions=(Question(f'{key}>', best, 'edits'),),
      where=f'world:edits row {i}',
    )
    examples.append(dataclasses.replace(example, anchors=_pair(example, places, noise, seed, i)))
  return World(tuple(examples))


def quality(completion: str, example: Example) -> float:
  """The share of a response's eight places with a good letter, from 0 to 1, known from `example.target` alone.

  Off by 1/8, down to 0, are each letter too few or too many and each character that is none of the world's letters;
  nothing is stripped, and what stands where no good letter can is not good either.

  Raises:
    UserError: the example is none of `world:edits`: its target does not name the good letters of eight places.
  """
  good = example.target.split()
  letters = next((letters for letters in LETTERS.values() if set(''.join(good)) <= set(letters)), '')
  if len(good) != LENGTH or not letters:
    raise UserError(
      f'{example.where}: quality needs a row of world:edits, whose target names the good letters of {LENGTH} places, '
      f'not {example.target[:80]!r}'
    )
  right = sum(letter in wanted for letter, wanted in zip(completion, good))
  faults = abs(len(completion) - LENGTH) + sum(letter not in letters for letter in completion)
  return max(0, right - faults) / LENGTH


def _pair(example: Example, places: list, noise: float, seed: int, row: int) -> tuple[str, str]:
  """(preferred, other): two writers' responses that are not the same."""
  for draw in itertools.count():
    luck, pick = dice(seed, row, 44, draw, size=LUCK)
    a = _written(places, luck, pick)
    b = _written(places, luck, pick, a)
    if a != b:
      gap = quality(a, example) - quality(b, example)
      preferred = (1 + math.tanh(gap / (2 * max(noise, 1e-9)))) / 2  # the sigmoid, without an overflow
      return (a, b) if next(luck) < preferred else (b, a)


def _written(places: list, luck, pick, draft: str = '') -> str:
  """Place by place a letter of the draft, a good one, a habit or any other bad one.

  `places`: (its letters, good ones first; a habit?).
  """
  least, most = SKILL
  skill = least + (most - least) * next(luck)
  text = ''
  for place, (order, habit) in enumerate(places):
    good, bad = order[:GOOD], order[GOOD:]
    if place < len(draft) and next(luck) < KEPT:
      text += draft[place]
    elif next(luck) < skill:
      text += pick(good)
    else:
      text += bad[0] if habit and next(luck) < HABIT else pick(bad)
  if next(luck) >= SLIP:
    return text
  if next(luck) < 0.5:
    letters = sorted(places[0][0])
    return (text + ''.join(pick(letters) for _ in range(max(LENGTHS) - LENGTH)))[: pick(LENGTHS)]
  first = pick(range(LENGTH))
  return text[:first] + ''.join(pick(FOREIGN) for _ in text[first : first + 3]) + text[first + 3 :]
