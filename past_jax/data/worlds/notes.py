"""Notes on statements of `reversal`, good and bad, to pretrain a writer of notes on; and what a note says."""

import re

from past_jax.data.worlds.reversal import MOST_TEMPLATES, TRADES, statement
from past_jax.data.worlds.words import WORDS, World, dice, full_names, own_seed
from past_jax.types import Example, UserError

KINDS = ('copy', 'paraphrase', 'reversed', 'wrong')


def notes(count: int, seed: int, kinds: tuple = KINDS, split: str = 'tune') -> World:
  """`count` texts 'Text: STATEMENT\\nNote: NOTE\\n' with the words of `reversal`, of both its splits.

  Names, trades and towns are drawn apart; nobody whom the `reversal` of the same seed and split tells of is met. A
  prompt is the text up to 'Note:' and its target the note.

  Args:
    kinds: of the notes, all as frequent: `copy` of the statement; `paraphrase`, another one in its order; `reversed`,
      one in the other order; `wrong`, one in its order about another description. Statements come in both orders.
    split: of the `reversal` that is to be studied.

  Raises:
    UserError: a count below 1, no or an unknown kind or split, a negative seed.
  """
  if count < 1 or not kinds or set(kinds) - set(KINDS):
    raise UserError(f'world:notes with count={count}, kinds={tuple(kinds)}: at least 1, of {", ".join(KINDS)}')
  studied = set(full_names(1024, seed, split))
  seed, examples = own_seed(seed, split), []
  first, last, towns = (sum((getattr(w, field) for w in WORDS.values()), ()) for field in ('first', 'last', 'towns'))
  trades = sum(TRADES.values(), ())
  for i in range(count):
    luck, pick = dice(seed, i, 21, size=1024)
    what = lambda pick=pick: f'the {pick(trades)} of {pick(towns)}'
    name = next(x for _ in luck if (x := f'{pick(first)} {pick(last)}') not in studied)
    facts, order, kind = {'name': name, 'what': what()}, pick(('p2d', 'd2p')), pick(kinds)
    back = {'p2d': 'd2p', 'd2p': 'p2d'}[order]
    number, another = pick(range(MOST_TEMPLATES)), pick(range(MOST_TEMPLATES))
    told = statement(order, number, facts)
    note = {
      'copy': told,
      'paraphrase': statement(order, another, facts),
      'reversed': statement(back, another, facts),
      'wrong': statement(order, another, facts | {'what': what()}),
    }[kind]
    prompt = f'Text: {told}\nNote:'
    where = f'world:notes row {i} {kind}'
    examples.append(Example(prompt=prompt, text=f'{prompt} {note}\n', target=f' {note}', where=where))
  return World(tuple(examples))


def faithful(completion: str, example: Example) -> float:
  """1 where a note on a statement of `reversal` has both its name and its description, else 0."""
  return float(None not in _places(completion, example))


def reverses(completion: str, example: Example) -> float:
  """1 where it is faithful and names them in the other order than the statement does, else 0."""
  note, told = _places(completion, example), _places(example.text, example)
  return float(None not in note and (note[0] < note[1]) != (told[0] < told[1]))


def _places(text: str, example: Example) -> tuple[int | None, int | None]:
  """Where the name and the description of the example's statement stand in `text`."""
  parts = [re.search(pattern, example.text) for pattern in (r'[A-Z][a-z]+ [A-Z][a-z]+', r'[a-z]+ of [A-Z][a-z]+')]
  if None in parts:
    raise UserError(f'{example.where}: only statements of world:reversal have a name and a description to look for.')
  return tuple(at if (at := text.find(part[0])) >= 0 else None for part in parts)
