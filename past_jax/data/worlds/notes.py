"""Texts with a note behind each, to pretrain what studies: a model that has learnt to take notes, good and bad ones."""

from past_jax.data.worlds.reversal import all_facts, statement
from past_jax.data.worlds.words import World, capital, dice, own_seed
from past_jax.types import Example, Question, UserError

NOTES = {  # the order of the text, and the other one; no question of `reversal` is worded like these
  'p2d': ('So {name} is {what}.', 'It is {name} who works as {what}.', 'They say that {name} is {what}.'),
  'd2p': ('So {what} is {name}.', 'The work of {what} is done by {name}.', 'They call {what} by the name {name}.'),
}
LAYOUT = 'Text: {text}\nNote: {note}'


def notes(count: int, seed: int, skip: int = 48, wrong: float = 0.3, turned: float = 0.5, split: str = 'tune') -> World:
  """`count` documents 'Text: ...' and, in the next line, 'Note: ...' about facts of `reversal`, again and again.

  A document's question is its text with a note begun, and the answer what the note should go on with.

  Args:
    skip: facts at the beginning of the seed's that are left out; `reversal` with the same seed has 3 * count there.
    wrong: share of notes that are about somebody else.
    turned: share of notes that have the description first; all texts have the name first.
    split: as in `reversal`.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  names, whats = all_facts(seed, split)
  if not (count >= 1 and 0 <= skip < len(names) and 0 <= wrong <= 1 and 0 <= turned <= 1):
    raise UserError(
      f'world:notes with count={count}, skip={skip}, wrong={wrong}, turned={turned}: at least 1, up to '
      f'{len(names) - 1} facts left out, and shares between 0 and 1'
    )
  people, examples = list(zip(names, whats))[skip:], []
  for i in range(count):
    luck, pick = dice(own_seed(seed, split), i, 12, size=1 << 12)
    name, what = pick(people)
    text = statement('p2d', pick(range(4)), {'name': name, 'what': what})
    other = pick(people) if next(luck) < wrong else (name, what)
    order = 'd2p' if next(luck) < turned else 'p2d'
    # A wrong note keeps what it begins with: who does not check it takes it for a good one.
    said = {'name': name, 'what': other[1]} if order == 'p2d' else {'name': other[0], 'what': what}
    note = capital(pick(NOTES[order]).format(**said))
    right = {'name': name, 'what': what}
    before, answer, _ = LAYOUT.format(text=text, note=capital(NOTES[order][0].format(**right))).rpartition(
      name if order == 'd2p' else what
    )
    question = Question(before.rstrip(), answer, 'note' if order == 'p2d' else 'note_turned')
    document = LAYOUT.format(text=text, note=note)
    examples.append(Example(text=document, questions=(question,), where=f'world:notes document {i}'))
  return World(tuple(examples), tuple(names[skip:]))
