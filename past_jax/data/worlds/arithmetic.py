"""Small sums with exact answers, in texts that are often wrong: for a base that is right about half of the time."""

import itertools

from past_jax.data.worlds.words import SPLITS, World, dice, own_seed, pick_split, shuffled
from past_jax.types import Example, Question, UserError

# how it is written -> its value, what comes of working it out in the wrong order, its first step
FORMS = {
  '({a}+{b})*{c}=': (lambda a, b, c: (a + b) * c, lambda a, b, c: a + b * c, lambda a, b, c: f'{a}+{b}={a + b}'),
  '{a}+{b}*{c}=': (lambda a, b, c: a + b * c, lambda a, b, c: (a + b) * c, lambda a, b, c: f'{b}*{c}={b * c}'),
  '{a}*{b}+{c}=': (lambda a, b, c: a * b + c, lambda a, b, c: a * (b + c), lambda a, b, c: f'{a}*{b}={a * b}'),
  '{a}*({b}+{c})=': (lambda a, b, c: a * (b + c), lambda a, b, c: a * b + c, lambda a, b, c: f'{b}+{c}={b + c}'),
}

WORKINGS = (' {s}, so {v}', ' as {s}, {v}', ' {s} gives {v}') + (
  ' from {s}: {v}',
  ' {s} and thus {v}',
  ' since {s} it is {v}',
)


def arithmetic(
  count: int,
  seed: int,
  noise: float = 0.45,
  copies: int = 1,
  workings: float = 0.0,
  spread: int = 0,
  split: str = 'tune',
) -> World:
  """`count` prompts such as '(3+5)*2=' with the exact target ' 16' and a text, prompt and answer, that may be wrong.

  A problem's answers are wrong with its own probability, evenly spread from `noise` / 2 to 3/2 `noise` (at most 1).
  Half of the wrong ones come of working the sum out in the wrong order, the others are one or ten more or less. So a
  model of the texts is right with probability 1 - `noise` on average, and its most probable answer is the right one for
  problems that are wrong in less than 2/3 of their texts: for nine in ten at the default, for a third at 0.8.

  With `workings` that share of the texts have a step before the answer, ' 3+5=8, so 16', in one of six wordings, and
  are right: good answers are long then, and each of them is rarer than the most frequent short one.
  With `spread` wrong answers are any other number so near, as if guessed: they scatter, and right ones agree.

  Args:
    noise: share of wrong answers in the texts.
    workings: share of texts with a step before the answer.
    spread: how far wrong answers are off at most; 0: they are the two kinds of mistake.
    copies: texts per problem, each with an answer drawn anew; examples of one problem follow each other, and its
      question is the first one's.
    split: 'tune', or 'final' with other problems.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  every = shuffled(list(itertools.product(FORMS, *[range(2, 10)] * 3)), 9)[pick_split(split, SPLITS) :: 2]
  if not (1 <= count <= len(every) and copies >= 1 and 0 <= noise <= 1 and 0 <= workings <= 1 and spread >= 0):
    raise UserError(
      f'world:arithmetic with count={count}, noise={noise}, copies={copies}, workings={workings}, spread={spread}: '
      f'there are 1 to {len(every)} problems, noise and workings are shares between 0 and 1, spread is 0 or more, and '
      'of each problem there is at least 1 text'
    )
  examples, seed = [], own_seed(seed, split)
  for i, (form, a, b, c) in enumerate(shuffled(every, seed, 10)[:count]):
    prompt, (right, confused, first) = form.format(a=a, b=b, c=c), FORMS[form]
    value, step = right(a, b, c), first(a, b, c)
    slips = [value + slip for slip in (-10, -1, 1, 10) if value + slip >= 0]
    misses = slips + [confused(a, b, c)] * len(slips)
    if spread:
      misses = [n for n in range(max(value - spread, 0), value + spread + 1) if n != value]
    luck, pick = dice(seed, i, 11, size=64 + 3 * copies)
    rate = noise * (0.5 + next(luck))
    pains, word = dice(seed, i, 23, size=64 + 2 * copies)  # a draw of its own: with workings=0 nothing else changes
    for copy in range(copies):
      said = f' {pick(misses) if next(luck) < rate else value}'
      if next(pains) < workings:
        said = word(WORKINGS).format(s=step, v=value)
      examples.append(
        Example(
          prompt=prompt,
          text=f'{prompt}{said}',
          target=f' {value}',
          questions=(Question(prompt, str(value), 'arithmetic'),) if copy == 0 else (),
          where=f'world:arithmetic problem {i} text {copy}',
        )
      )
  return World(tuple(examples))
