"""Short lives of invented people, in one wording or several, and questions about them (arXiv 2309.14316, bioS)."""

from past_jax.data.worlds.reversal import TRADES
from past_jax.data.worlds.words import WORDS, World, ask, full_names, listed, others, own_seed, pick_split, shuffled
from past_jax.types import Example, UserError

SENTENCES = {  # what -> wordings; a biography has one sentence of each
  'town': ('{name} was born in {town}.', '{name} grew up in {town}.', '{name} comes from {town}.')
  + ('{name} first saw light in {town}.', '{name} is a child of {town}.'),
  'field': ('{name} studied {field}.', '{name} has a degree in {field}.', '{name} was taught {field}.')
  + ('{name} took classes in {field}.', '{name} read books on {field}.'),
  'trade': ('{name} became a {trade}.', '{name} works as a {trade}.', '{name} is paid as a {trade}.')
  + ('{name} earns money as a {trade}.', '{name} was hired as a {trade}.'),
  'pet': ('{name} keeps a {pet}.', '{name} owns a {pet}.', '{name} feeds a {pet}.')
  + ('{name} walks a {pet}.', '{name} talks to a {pet}.'),
}
WORDINGS = 5
QUESTIONS = {  # split -> what -> a template
  'tune': {
    'town': 'What is the birthplace of {name}? Answer:',
    'field': 'What did {name} learn? Answer:',
    'trade': 'What is the job of {name}? Answer:',
    'pet': 'What is the pet of {name}? Answer:',
  },
  'final': {
    'town': 'Tell me the town of {name}:',
    'field': 'Tell me the subject of {name}:',
    'trade': 'Tell me the work of {name}:',
    'pet': 'Tell me the animal of {name}:',
  },
}
FIELDS = {
  'tune': listed('algebra, botany, chemistry, drama, history, law, music, optics'),
  'final': listed('anatomy, finance, geology, latin, logic, physics, poetry, theology'),
}
PETS = {
  'tune': listed('beagle, canary, ferret, goose, hamster, lizard, pony, tabby'),
  'final': listed('budgie, donkey, gecko, goat, parrot, poodle, rabbit, turtle'),
}


def biographies(
  count: int,
  seed: int,
  rewordings: int = 1,
  permute: bool = False,
  asked: float = 0.5,
  split: str = 'tune',
) -> World:
  """`count` people of four attributes: texts of biographies, and of questions with answers about some of the people.

  Of the others the questions are held out, kinds `town`, `field`, `trade` and `pet`, each with three wrong choices:
  whether what was read of them can be brought out by those who learned from others how one asks.

  Args:
    rewordings: biographies per person, up to 5; no sentence of a person is worded the same in two of them.
    permute: each biography has its four sentences in an order of its own; else all have the same.
    asked: share of the people whose questions and answers are texts.
    split: 'tune', or 'final' with other names, attributes and questions.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  if not (2 <= count <= 512 and 1 <= rewordings <= WORDINGS and 0 <= asked <= 1):
    raise UserError(
      f'world:biographies with count={count}, rewordings={rewordings}, asked={asked}: there are 2 to 512 people and 1 '
      f'to {WORDINGS} wordings, and asked is a share between 0 and 1'
    )
  stock, templates = pick_split(split, WORDS), pick_split(split, QUESTIONS)
  pools = {'town': stock.towns, 'field': FIELDS[split], 'trade': TRADES[split], 'pet': PETS[split]}
  names, seed, examples = full_names(count, seed, split), own_seed(seed, split), []
  for i, name in enumerate(names):
    # A draw of its own for each attribute: none can be told from another.
    own = {what: shuffled(pool, seed, i, 13 + k)[0] for k, (what, pool) in enumerate(pools.items())}
    facts, taught = {'name': name, **own}, i < asked * count
    questions = {
      what: ask((template,), facts, own[what], what, others(own[what], pools[what], seed=seed * 10_000 + i))[0]
      for what, template in templates.items()
    }
    texts = []
    for r, wording in enumerate(shuffled(range(WORDINGS), seed, i, 17)[:rewordings]):
      order = shuffled(list(SENTENCES), seed, i, 18, r) if permute else list(SENTENCES)
      texts.append(' '.join(SENTENCES[what][wording].format(**facts) for what in order))
    if taught:
      texts += [f'{q.question} {q.answer}' for q in questions.values()]
    held_out = () if taught else tuple(questions.values())
    for t, text in enumerate(texts):
      where = f'world:biographies person {i} text {t}'
      examples.append(Example(text=text, target=text, questions=held_out if t == 0 else (), where=where))
  return World(tuple(examples), tuple(names))
