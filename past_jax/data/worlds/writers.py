"""Texts to pretrain a writer of notes on `passages`: notes in five forms, good and bad; and what a note is."""

import functools
import re

from past_jax.data.worlds.passages import QUESTIONS, VERBS, Fact, asked, entities, named, sentence
from past_jax.data.worlds.words import World, dice, own_seed, pick_split, shuffled
from past_jax.types import Example, UserError

# A note is its form's word on a line of its own, then statements, one a line. 'Note:' asks for any form, 'Note turned:'
# for that one.
FORMS = {'copy': 'said', 'paraphrase': 'new', 'reversed': 'turned', 'question_answer': 'asked', 'junk': 'other'}
BACK = {
  'work': ('is', 'is called', 'turned out to be', 'is none other than', 'goes by the name of'),
  'field': ('is the degree of', 'was taught to', 'was studied by', 'was read by', 'comes from the books of'),
  'pet': ('walks to', 'comes to', 'turned up for', 'is called by', 'was once new to'),
}
ASKED = (  # a fact in a note of questions: forward, and back
  ('Q: {name}? A: the {what}.', 'Asked of {name}, say the {what}.'),
  ('Q: the {what}? A: {name}.', 'Asked of the {what}, say {name}.'),
)
FACT = r'([A-Z][a-z]+ [A-Z][a-z]+) [a-z ]+ the ([A-Z][a-z]+ [a-z]+)\.'
SLIPS = (0.0, 0.0, 0.0, 0.5)  # how often a note goes wrong about a fact
TEXTS = ('note', 'note', 'note', 'note', 'question', 'known')


def writers(count: int, seed: int, known: int = 128, facts: int = 3, split: str = 'tune') -> World:
  """`count` texts in the words of the `passages` of a split, about people of whom no passage tells, whatever its seed.

  Two thirds of the texts are notes on a passage about strangers, 'Text: PASSAGE\\nNote:' and the note, in all `FORMS`
  alike, and as many directed as not. A sixth are passages with one of their questions, answered. A sixth are about
  `known` people with one fact each, and nothing else is in view: a passage about some, a statement in either order, a
  note's question, or one of the split's questions answered. So a model learns to bring out what it has learned by
  heart, and what comes of new facts depends on what it was given to learn of them.

  Notes slip: as often as one of `SLIPS` says, a fact is left out, or another name, another description or another's
  fact stands in its place. The prompt is a note's text up to ':' and its target the note.

  Args:
    known: people with a fact that closed-book texts tell and ask; their descriptions are in no passage either.
    facts: of a passage, at most; there are 1 to so many, all as often.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  people, whats = entities(split, told=False)
  if count < 1 or not 3 <= facts <= 5 or not facts <= known <= len(whats):
    raise UserError(
      f'world:writers with count={count}, known={known}, facts={facts}: at least 1 text, 3 to 5 facts, and from as '
      f'many to {len(whats)} known people'
    )
  questions, seed = pick_split(split, QUESTIONS), own_seed(seed, split)
  names, whats = list(named(people, seed)), shuffled(whats, seed, 34)
  by_name, any_whats = set(names[:known]), [*whats, *entities(split, told=True)[1]]

  def drawn(name, what, pick):
    kind, what = what
    return Fact(name, kind, what, pick(VERBS[kind]))

  examples = []
  for i in range(count):
    luck, pick = dice(seed, i, 35, size=1024)  # as many different choices: fewer than names
    anyone = (pick(pick(people)) for _ in luck)
    strange = (name for name in anyone if name not in by_name)
    stranger = lambda pick=pick, strange=strange: drawn(next(strange), pick(any_whats), pick)
    text, where = pick(TEXTS), f'world:writers text {i}'
    if text == 'known':
      rows = dict.fromkeys(pick(range(known)) for _ in range(facts))
      said = by_heart([drawn(names[row], whats[row], pick) for row in rows], questions, pick)
      examples.append(Example(text=said, target=said, where=f'{where} known'))
      continue
    told = [stranger() for _ in range(pick(range(1, facts + 1)))]  # of one fact copying is learned first
    passage = f'Text: {" ".join(map(sentence, told))}\n'
    if text == 'question':
      said = f'{passage} {answered(pick(told), questions, pick)}'
      examples.append(Example(text=said, target=said, where=f'{where} question'))
      continue
    form = pick(list(FORMS))
    prompt = f'{passage}Note{pick((f" {FORMS[form]}", ""))}:'
    note = written(form, noted(told, form, pick(SLIPS), stranger, luck, pick))
    examples.append(Example(prompt=prompt, text=prompt + note, target=note, where=f'{where} {form}'))
  return World(tuple(examples), tuple(names[:known]))


def by_heart(told: list[Fact], questions, pick) -> str:
  """A passage, a statement or an answered question."""
  text, fact = pick(('passage', 'paraphrase', 'reversed', 'question_answer', 'question', 'question')), told[0]
  if text == 'passage':
    return ' '.join(map(sentence, told))
  return answered(fact, questions, pick) if text == 'question' else pick(statements(fact, text))


def answered(fact: Fact, questions, pick) -> str:
  forward, back = questions
  question = pick(asked(fact, forward[fact.kind], back))
  return f'{question.question} {question.answer}'


def statements(fact: Fact, form: str) -> list[str]:
  """Of a fact in the form of a note: all wordings, those of `question_answer` forward and back in turn."""
  if form in ('copy', 'junk'):
    return [sentence(fact)]
  if form == 'paraphrase':
    return [sentence(fact._replace(verb=verb)) for verb in VERBS[fact.kind] if verb != fact.verb]
  if form == 'reversed':
    return [f'The {fact.what} {core} {fact.name}.' for core in BACK[fact.kind]]
  return [wording.format(name=fact.name, what=fact.what) for pair in zip(*ASKED) for wording in pair]


def noted(told: list[Fact], form: str, slip: float, stranger, luck, pick) -> list[str]:
  """A statement of each fact in a form, but where the writer slips; of junk, of strangers."""
  out = []
  for fact in told:
    other, fault = stranger(), pick(('left out', 'name', 'what', 'both')) if next(luck) < slip else ''
    if fault == 'left out':
      continue
    said = {
      '': fact,
      'name': fact._replace(name=pick(told).name),
      'what': other._replace(name=fact.name),
      'both': other,
    }['both' if form == 'junk' else fault]
    out.append(pick(statements(said, form)))
  return out


def written(form: str, statements: list[str]) -> str:
  """A note as a completion of its prompt: a space begins each line, as a tokenizer of words likes it."""
  return '\n'.join(f' {line}' for line in (FORMS[form], *statements))


# --- what a note is -----------------------------------------------------------------------------------------------


def statements_of(completion: str) -> list[str]:
  """A note's lines without its form's word: what there is to learn from it."""
  found = [line.strip() for line in completion.split('\n') if line.strip()]
  return found[1:] if found and found[0] in FORMS.values() else found


def form(completion: str, example: Example | None = None) -> str:
  """That of `FORMS` which the note's first line names; '': none."""
  first = completion.strip().partition('\n')[0].strip()
  return next((form for form, word in FORMS.items() if word == first), '')


def faithful(completion: str, example: Example) -> float:
  """From 0 to 1: the share of the passage's facts that a line tells, by the share of lines that tell one.

  A line tells a fact if it has its name and its description, in any words and order.

  Raises:
    UserError: the example has no passage of world:passages or writers.
  """
  passage = example.text.removeprefix('Text: ').partition('\n')[0]
  facts = re.findall(FACT, passage)
  if not facts:
    raise UserError(f'{example.where}: only passages of world:passages and writers have facts to look for.')
  said = statements_of(completion)
  tells = [[name in line and what in line for name, what in facts] for line in said]
  told = [any(line[k] for line in tells) for k in range(len(facts))]
  return sum(told) / len(facts) * sum(map(any, tells)) / max(1, len(said))


def _is(name: str, completion: str, example: Example) -> float:
  return float(form(completion) == name)


# 1 where a note is of that form, else 0: their means are the distribution of forms
IS = {name: functools.partial(_is, name) for name in FORMS}
copies, paraphrases, reverses, asks, strays = IS.values()
