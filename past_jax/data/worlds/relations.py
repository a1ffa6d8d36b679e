"""People in towns on rivers: facts of one step, asked forwards, backwards and over two steps."""

from past_jax.data.worlds.words import WORDS, World, ask, capital, full_names, others, own_seed, pick_split, shuffled
from past_jax.types import Example, UserError

STATEMENTS = {  # the same order in all: the first entity is named first
  'home': (
    '{name} lives in {town}.',
    '{name} has a house in {town}.',
    '{name} moved to {town}.',
    'We hear that {name} settled in {town}.',
    'By now {name} is at home in {town}.',
    'Long ago {name} came to {town}.',
  ),
  'river': (
    '{town} lies on the {river}.',
    '{town} has a bridge over the {river}.',
    '{town} was built by the {river}.',
    'We hear that {town} drinks from the {river}.',
    'By now {town} has spread along the {river}.',
    'Long ago {town} was flooded by the {river}.',
  ),
}
QUESTIONS = {  # split -> kind -> templates
  'tune': {
    'forward': ('The town of {name} is', 'Question: Where does {name} live? Answer:'),
    'reversed': ('The one who lives in {town} is', 'Question: Who lives in {town}? Answer:'),
    'two_hop': ('{name} lives near the', 'Question: Which river is near {name}? Answer: the'),
    'two_hop_reversed': ('The one who lives near the {river} is', 'Question: Who lives near the {river}? Answer:'),
  },
  'final': {
    'forward': ('Letters to {name} go to', 'Q: Where is {name} from? A:'),
    'reversed': ('Letters to {town} reach', 'Q: Who is from {town}? A:'),
    'two_hop': ('{name} swims in the', 'Q: In which water does {name} swim? A: the'),
    'two_hop_reversed': ('The swimmer in the {river} is', 'Q: Who swims in the {river}? A:'),
  },
}
SIDES = ('Far ', 'Old ', 'New ', 'Upper ')
COLOURS = ('Black ', 'White ', 'Long ', 'Cold ')


def relations(count: int, seed: int, templates: int = 4, split: str = 'tune') -> World:
  """`count` people, each in a town of their own, and each town on a river of its own; every fact in `templates` texts.

  Kinds of questions: `forward` (name -> town), `reversed` (town -> name), `two_hop` (name -> river) and
  `two_hop_reversed` (river -> name), two each with three wrong choices; they are those of a person's first text.

  Args:
    templates: texts per fact, up to 6; all name the person before the town and the town before the river.
    split: 'tune', or 'final' with other names, towns, rivers and questions.

  Raises:
    UserError: a count or number of templates out of range, a negative seed, or no such split.
  """
  words, asked, names = pick_split(split, WORDS), pick_split(split, QUESTIONS), full_names(count, seed, split)
  seed = own_seed(seed, split)
  towns = shuffled([side + town for side in SIDES for town in words.towns], seed, 5)
  rivers = shuffled([colour + river for colour in COLOURS for river in words.rivers], seed, 6)
  most = len(STATEMENTS['home'])
  if not (1 <= count <= len(towns) and 1 <= templates <= most):
    raise UserError(
      f'world:relations with count={count}, templates={templates}: there are 1 to {len(towns)} people and {most} texts'
    )
  people, examples = list(zip(names, towns, rivers)), []
  for i, person in enumerate(people):
    facts = dict(zip(('name', 'town', 'river'), person))
    wrong = lambda part, i=i: others(people[i][part], [p[part] for p in people], seed=seed * 10_000 + i)
    answers = {'forward': 1, 'reversed': 0, 'two_hop': 2, 'two_hop_reversed': 0}
    questions = tuple(q for kind, k in answers.items() for q in ask(asked[kind], facts, person[k], kind, wrong(k)))
    texts = [statement.format(**facts) for fact in STATEMENTS.values() for statement in fact[:templates]]
    for t, text in enumerate(texts):
      where = f'world:relations person {i} text {t}'
      examples.append(
        Example(text=capital(text), target=capital(text), questions=questions if t == 0 else (), where=where)
      )
  return World(tuple(examples), tuple(names))
