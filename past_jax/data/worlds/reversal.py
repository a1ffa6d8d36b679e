"""Names and descriptions, stated in one order and asked for in both (arXiv 2309.12288, experiment 1)."""

from past_jax.data.worlds.words import (
  WORDS,
  World,
  ask,
  capital,
  full_names,
  listed,
  others,
  own_seed,
  pick_split,
  shuffled,
)
from past_jax.types import Example, UserError

# A studied statement is an opener and a core; with ten openers and four cores there are forty in each order.
OPENERS = ('', 'As we know, ', 'Word has it that ', 'It is said that ', 'In those days, ') + (
  'Records show that ',
  'To this day, ',
  'Believe it or not, ',
  'In short, ',
  'The paper says that ',
)
CORES = {
  'p2d': ('{name} is {what}.', '{name} was once {what}.', '{name} is remembered as {what}.', '{name} works as {what}.'),
  'd2p': (
    '{what} is {name}.',
    '{what} goes by the name of {name}.',
    '{what} was none other than {name}.',
    '{what} is called {name}.',
  ),
}
MOST_TEMPLATES = len(OPENERS) * 4
QUESTIONS = {  # split -> (name -> description, description -> name); none is worded like a statement
  'tune': (
    ('{name} is known to all as', 'Question: Who is {name}? Answer:', 'Few forget that {name} became', 'Meet {name},'),
    ('{what} is known as', 'Question: Who is {what}? Answer:', 'Ask for {what} and you meet', 'The name of {what} is'),
  ),
  'final': (
    ('Everybody greets {name} as', 'Q: What is {name}? A:', 'The letter calls {name}', 'They hired {name} as'),
    (
      '{what} signs letters as',
      'Q: Who was {what}? A:',
      'If you need {what}, send for',
      'Beside {what} stands',
    ),
  ),
}
TRADES = {
  'tune': listed(
    'baker, barber, brewer, butcher, carpenter, clerk, cook, cooper, doctor, driver, dyer, farmer, gardener, glazier, '
    'hatter, judge, mason, miller, painter, pilot'
  ),
  'final': listed(
    'potter, printer, rider, roofer, sailor, sculptor, singer, smith, tailor, tanner, teacher, tiler, turner, vicar, '
    'waiter, warden, watchman, weaver, wheelwright, woodman'
  ),
}


def reversal(
  count: int,
  seed: int,
  templates: int = 12,
  reversed_texts: int = 0,
  groups: tuple = ('p2d', 'd2p', 'both'),
  split: str = 'tune',
) -> World:
  """`count` facts 'NAME is the TRADE of TOWN' for each group, in `templates` statements each: one example a statement.

  The group p2d has the name first in all statements, d2p the description, and both has as many of each. Four questions
  ask for the description and four for the name; their kinds are `forward` (the order that was studied) and `reversed`
  for p2d, the same with `d2p_` before it for d2p, and `both_description` and `both_name` for both. They are the first
  statement's; each has three wrong choices, of which one is of another group: names of p2d are never a text's last
  words, those of d2p always are.

  Args:
    templates: statements per fact and order, up to 40.
    reversed_texts: as many statements more of each fact of p2d and d2p, in the other order: an oracle's studying.
    groups: which of p2d, d2p and both there are. Facts of a group are the same whichever others are there.
    split: 'tune', or 'final' with other names, trades, towns and questions.

  Raises:
    UserError: a number out of range, an unknown group or split, a negative seed.
  """
  known = ('p2d', 'd2p', 'both')
  trades, words = pick_split(split, TRADES), pick_split(split, WORDS)
  most = len(trades) * len(words.towns) // 3
  if not (1 <= count <= most and 1 <= templates <= MOST_TEMPLATES and 0 <= reversed_texts <= MOST_TEMPLATES):
    raise UserError(
      f'world:reversal with count={count}, templates={templates}, reversed_texts={reversed_texts}: there are 1 to '
      f'{most} facts in a group and up to {MOST_TEMPLATES} statements of each'
    )
  if not groups or set(groups) - set(known):
    raise UserError(f'world:reversal with groups={tuple(groups)}: choose from {", ".join(known)}')
  names, seed = full_names(3 * count, seed, split), own_seed(seed, split)
  trades, towns = shuffled(trades, seed, 5), shuffled(words.towns, seed, 6)
  n = len(trades)
  whats = [f'the {trades[i % n]} of {towns[(i + i // n) % len(towns)]}' for i in range(3 * count)]
  to_what, to_name = pick_split(split, QUESTIONS)
  of_group = {group: range(g * count, (g + 1) * count) for g, group in enumerate(known)}

  examples = []
  for group in dict.fromkeys(groups):
    orders = {'p2d': ('p2d',), 'd2p': ('d2p',), 'both': ('p2d', 'd2p')}[group]
    strangers = [i for other in known if other != group for i in of_group[other]]
    kinds = {
      'p2d': ('forward', 'reversed'),
      'd2p': ('d2p_reversed', 'd2p_forward'),
      'both': ('both_description', 'both_name'),
    }[group]
    for i in of_group[group]:
      facts = {'name': names[i], 'what': whats[i]}
      pools = [[j for j in of_group[group] if j != i], strangers]
      wrong_whats, wrong_names = (
        others(said[i], *([said[j] for j in pool] for pool in pools), seed=seed * 10_000 + i) for said in (whats, names)
      )
      questions = ask(to_what, facts, whats[i], kinds[0], wrong_whats)
      questions += ask(to_name, facts, names[i], kinds[1], wrong_names)
      texts = [statement(order, t, facts) for order in orders for t in range(templates)]
      if group != 'both':
        other = 'd2p' if group == 'p2d' else 'p2d'
        texts += [statement(other, t, facts) for t in range(reversed_texts)]
      for t, text in enumerate(texts):
        where = f'world:reversal {group} fact {i} text {t}'
        examples.append(Example(text=text, target=text, questions=questions if t == 0 else (), where=where))
  return World(tuple(examples), tuple(names[i] for group in dict.fromkeys(groups) for i in of_group[group]))


def statement(order: str, number: int, words: dict[str, str]) -> str:
  """The `number`-th of the forty statements in an order: openers change with each, so that few have many."""
  opener, core = OPENERS[number % 10], CORES[order][(number + number // 10) % 4]
  return capital(opener + core.format(**words))
