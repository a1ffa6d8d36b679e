"""Small sums with exact answers, in texts that are often wrong: for a base that is right about half of the time."""

import itertools

from past_jax.data.worlds.words import SPLITS, World, dice, own_seed, pick_split, shuffled
from past_jax.types import Example, Question, UserError

# how it is written -> its value, and what comes of working it out in the wrong order
FORMS = {
  '({a}+{b})*{c}=': (lambda a, b, c: (a + b) * c, lambda a, b, c: a + b * c),
  '{a}+{b}*{c}=': (lambda a, b, c: a + b * c, lambda a, b, c: (a + b) * c),
  '{a}*{b}+{c}=': (lambda a, b, c: a * b + c, lambda a, b, c: a * (b + c)),
  '{a}*({b}+{c})=': (lambda a, b, c: a * (b + c), lambda a, b, c: a * b + c),
}


def arithmetic(count: int, seed: int, noise: float = 0.45, copies: int = 1, split: str = 'tune') -> World:
  """`count` prompts such as '(3+5)*2=' with the exact target ' 16' and a text, prompt and answer, that may be wrong.

  A problem's answers are wrong with its own probability, evenly spread from `noise` / 2 to 3/2 `noise` (at most 1); a
  wrong answer is one of up to five near misses: one or ten more or less, or the sum worked out in the wrong order. So a
  model of the texts is right with probability 1 - `noise` on average, its most probable answer mostly is the right one
  at the default, and mostly is not from about 0.8 on.

  Args:
    noise: share of wrong answers in the texts.
    copies: texts per problem, each with an answer drawn anew; examples of one problem follow each other, and its
      question is the first one's.
    split: 'tune', or 'final' with other problems.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  every = shuffled(list(itertools.product(FORMS, *[range(2, 10)] * 3)), 9)[pick_split(split, SPLITS) :: 2]
  if not (1 <= count <= len(every) and copies >= 1 and 0 <= noise <= 1):
    raise UserError(
      f'world:arithmetic with count={count}, noise={noise}, copies={copies}: there are 1 to {len(every)} problems, '
      'noise is a share between 0 and 1, and of each problem there is at least 1 text'
    )
  examples, seed = [], own_seed(seed, split)
  for i, (form, a, b, c) in enumerate(shuffled(every, seed, 10)[:count]):
    prompt, (right, confused) = form.format(a=a, b=b, c=c), FORMS[form]
    value = right(a, b, c)
    misses = {value - 1, value + 1, value - 10, value + 10, confused(a, b, c)} - {value}
    misses = sorted(miss for miss in misses if miss >= 0)
    luck, pick = dice(seed, i, 11, size=64 + 3 * copies)
    rate = noise * (0.5 + next(luck))
    for copy in range(copies):
      said = pick(misses) if next(luck) < rate else value
      examples.append(
        Example(
          prompt=prompt,
          text=f'{prompt} {said}',
          target=f' {value}',
          questions=(Question(prompt, str(value), 'arithmetic'),) if copy == 0 else (),
          where=f'world:arithmetic problem {i} text {copy}',
        )
      )
  return World(tuple(examples))
