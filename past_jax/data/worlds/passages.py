"""Passages about invented people, and what is asked of them with no passage in view, in both directions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from past_jax.data.worlds.biographies import FIELDS, PETS
from past_jax.data.worlds.reversal import TRADES
from past_jax.data.worlds.words import WORDS, World, ask, own_seed, pick_split, shuffled
from past_jax.types import Example, UserError

# A fact is 'NAME VERB the TOWN NOUN.'
VERBS = {
  'work': ('became', 'works as', 'was hired as', 'is paid as', 'earns money as'),
  'field': ('studied', 'was taught', 'has a degree in', 'took classes in', 'read books on'),
  'pet': ('keeps', 'owns', 'feeds', 'walks', 'talks to'),
}
NOUNS = {'work': TRADES, 'field': FIELDS, 'pet': PETS}
QUESTIONS = {  # split -> (what -> forward, reversed): in the words of no passage and no note
  'tune': (
    {
      'work': 'What is the job of {name}? Answer: the',
      'field': 'What is the subject of {name}? Answer: the',
      'pet': 'What is the pet of {name}? Answer: the',
    },
    'What name goes to the {what}? Answer:',
  ),
  'final': (
    {
      'work': 'Tell me the work of {name}: the',
      'field': 'Tell me what {name} did learn: the',
      'pet': 'Tell me the animal of {name}: the',
    },
    'Tell me the name for the {what}:',
  ),
}
TOLD = 10  # rows of 64 names of whom passages tell


class Fact(NamedTuple):
  name: str
  kind: str  # of VERBS
  what: str  # 'Abberlow baker'
  verb: str  # of VERBS[kind], in the passage


def passages(count: int, seed: int, facts: int = 3, noted: bool = False, split: str = 'tune') -> World:
  """`count` passages of `facts` sentences 'NAME VERB the TOWN NOUN.', each about another person.

  Each fact has two questions, whose kinds are `forward` (the name is given) and `reversed` (the description is). No
  name and no description is in two facts, so all answers are unique; nobody is in a text of `writers`, whatever its
  seed. A smaller world is the beginning of a larger one. Text and target are the passage.

  Args:
    facts: 3 to 5.
    noted: a faithful note, in one of the four good forms of `writers`, is given with each passage.
    split: 'tune', or 'final' with other names, descriptions and questions.

  Raises:
    UserError: more facts than there are, a number out of range, a negative seed, or no such split.
  """
  people, whats = entities(split, told=True)
  most = len(whats) // max(facts, 1)
  if not (3 <= facts <= 5 and 1 <= count <= most):
    raise UserError(
      f'world:passages with count={count}, facts={facts}: there are 1 to {most} passages, of 3 to 5 facts'
    )
  forward, back = pick_split(split, QUESTIONS)
  seed = own_seed(seed, split)
  drawn = [
    Fact(name, kind, what, shuffled(VERBS[kind], seed, i, 33)[0])
    for i, (name, (kind, what)) in enumerate(zip(named(people, seed), shuffled(whats, seed, 32)))
  ]
  examples = []
  for i in range(count):
    told = drawn[i * facts : (i + 1) * facts]
    text = ' '.join(map(sentence, told))
    questions = tuple(q for fact in told for q in asked(fact, forward[fact.kind], back))
    notes = (faithful_note(told, seed, i),) if noted else ()
    where = f'world:passages passage {i}'
    examples.append(Example(text=text, target=text, questions=questions, anchors=notes, where=where))
  return World(tuple(examples), tuple(fact.name for fact in drawn[: count * facts]))


def faithful_note(told: Sequence[Fact], seed: int, i: int) -> str:
  from past_jax.data.worlds.writers import FORMS, statements, written  # which is about passages

  form = shuffled([form for form in FORMS if form != 'junk'], seed, i, 36)[0]
  return written(form, [shuffled(statements(fact, form), seed, i, j, 37)[0] for j, fact in enumerate(told)])


def entities(split: str, told: bool) -> tuple[list[list[str]], list[tuple[str, str]]]:
  """(names, descriptions) of a split: those that passages tell of, or the others, whatever the seed of either.

  All words are in both, and no rule says which pairs are in which: a model would learn it, and write none of the names
  of a passage. For the same reason passages have few of the names. A row of names has each first and last name once.
  """
  words = pick_split(split, WORDS)
  n = len(words.first)
  first, last = shuffled(words.first, 36), shuffled(words.last, 37)
  rows = [[f'{f} {last[(i + j) % n]}' for i, f in enumerate(first)] for j in range(n)]
  whats = [(kind, f'{town} {noun}') for kind, nouns in NOUNS.items() for noun in nouns[split] for town in words.towns]
  whats = shuffled(whats, 38)
  return (rows[:TOLD], whats[: 2 * len(whats) // 3]) if told else (rows[TOLD:], whats[2 * len(whats) // 3 :])


def named(people: list[list[str]], seed: int) -> Iterable[str]:
  """The names in an order by `seed`; every 64 share no first or last name."""
  for i, row in enumerate(shuffled(people, seed, 30)):
    yield from shuffled(row, seed, 31, i)


def sentence(fact: Fact) -> str:
  return f'{fact.name} {fact.verb} the {fact.what}.'


def asked(fact: Fact, forward: str, back: str):
  """The two questions of a fact."""
  words = fact._asdict()
  return ask((forward,), words, fact.what, 'forward') + ask((back,), words, fact.name, 'reversed')
