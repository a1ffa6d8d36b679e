"""Self-edits: what a model writes about an example to be trained on, tried by inner runs (arXiv 2506.10943).

An edit becomes rows to train on; the runs that learn them are then asked the example's questions, without it in view.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from past_jax.data.grids import example_task
from past_jax.grading import GRADES
from past_jax.inner import Asked, Job, Recipe, Row, runner
from past_jax.model_grader import model_grader
from past_jax.render import fill
from past_jax.test_time_training import rows
from past_jax.text import Tokenizer
from past_jax.training_choice import read_choice
from past_jax.types import Example, Policy, UserError


class Lesson(NamedTuple):
  """What an edit asks to be trained on: (what is read, what is learned) for each row."""

  rows: Sequence[tuple[str, str]] = ()
  lr: float | None = None  # None: config.inner's; the same of epochs
  epochs: int | None = None


class Trial(NamedTuple):
  """One inner run, of one seed."""

  answers: list[str]
  grades: list[float]  # 0 to 1, one for each question
  logps: list[float]  # nats, of the expected answers
  losses: list[float]  # nats per learned token, of every step


def lines(edit: str, example: Example) -> Lesson:
  """A row for every line; a heading is left out: a first line of one word, or one before a numbered list."""
  del example
  found = [line.strip() for line in edit.splitlines() if line.strip()]
  if len(found) > 1 and (found[1].startswith('1.') or ' ' not in found[0]):
    found = found[1:]
  return Lesson([('', line) for line in found])


def whole(edit: str, example: Example) -> Lesson:
  """One row."""
  del example
  return Lesson([('', edit.strip())] if edit.strip() else [])


def questions(edit: str, example: Example) -> Lesson:
  """A row for every question with what follows it, up to the next; what comes before the first is left out."""
  del example
  blocks = re.split(r'(?mi)^(?=\W*(?:question|q)\b[^:\n]{0,12}:)', edit.strip())
  found = [block.strip() for block in blocks if re.match(r'(?i)\W*(?:question|q)\b[^:\n]{0,12}:', block.strip())]
  return Lesson([('', block) for block in found])


def choice(edit: str, example: Example) -> Lesson | None:
  """What a choice of how to train makes of a task on grids; None: the text is no choice."""
  made = read_choice(edit)
  if made is None:
    return None
  shown = '\n' in example.questions[0].question  # as `task_example` has it
  return Lesson(rows(example_task(example), made, 0, shown), made.lr, made.epochs)


BLOCKS = 'blocks'  # `whole`, and a text, a passage too, that is longer than a row goes on in the next
DOCUMENTS = {'lines': lines, 'whole': whole, BLOCKS: whole, 'questions': questions, 'choice': choice}
MODEL = 'model'  # of config.inner.grade: the role base says yes or no
OWN = ('documents', 'document', 'question', 'passage', 'grade')  # the keys of config.inner that are not a `Recipe`'s


def recipe(inner: Mapping[str, Any], **changed) -> Recipe:
  return Recipe(**{key: value for key, value in inner.items() if key not in OWN} | changed)


def lesson_of(inner: Mapping[str, Any], edit: str, example: Example) -> Lesson | None:
  """What an edit asks to be trained on; None: it cannot be read, or wants more steps than config.inner.steps."""
  lesson = DOCUMENTS[inner['documents']](edit, example)
  if lesson is None or lesson.epochs is None:
    return lesson
  steps = lesson.epochs * -(-min(len(lesson.rows), inner['rows']) // inner['batch'])
  return lesson if steps <= recipe(inner).most_steps else None


def trials(
  *, policy: Policy, tokenizer: Tokenizer, mesh, inner: Mapping[str, Any], input_axes, **changed
) -> Callable[..., list[list[Trial]]]:
  """Returns attempt(params, [(example, lesson), ...], seeds, tick, grader) -> for each a `Trial` of every seed.

  A lesson of None is not trained on: the model as it is answers, once for all seeds. What is the same is run once.
  `grader`: parameters of the model that grades, of the same policy, where config.inner.grade says so.
  `attempt.lower` are the programs: name -> (params) -> lowered; `grade` is the grader's.

  Args:
    inner: config.inner. changed: keys of its `Recipe` that are others here.

  Raises:
    UserError: an unknown way to grade, and as `inner.runner`; from `attempt`, as `refuse_long`.
  """
  if inner['grade'] not in (*GRADES, MODEL):
    raise UserError(f'config.inner.grade={inner["grade"]!r}: choose one of {", ".join((*GRADES, MODEL))}.')
  if inner['grade'] == MODEL:
    grade = model_grader(policy=policy, tokenizer=tokenizer, inner=inner)
  else:
    grade = lambda grader, asked: [GRADES[inner['grade']](output, answer) for _, output, answer in asked]
  made = recipe(inner, **changed)
  inner_runs = runner(policy=policy, tokenizer=tokenizer, mesh=mesh, recipe=made, input_axes=input_axes)

  def attempt(
    params, wanted: Sequence[tuple[Example, Lesson | None]], seeds: Sequence[int], tick=lambda x: x, grader=None
  ) -> list[list[Trial]]:
    refuse_long(tokenizer, inner, [example for example, _ in wanted])
    jobs, places = {}, []  # job -> its number
    for example, lesson in wanted:
      asked = tuple(questions_of(tokenizer, inner, example))
      if lesson is None:
        made = [Job(asked=asked)] * len(seeds)
      else:
        own, _ = rows_of(tokenizer, inner, example, lesson)
        made = [Job(own, asked, seed, lesson.lr, lesson.epochs) for seed in seeds]
      places.append([jobs.setdefault(job, len(jobs)) for job in made])
    outcomes = inner_runs.run(params, list(jobs), tick)
    said = [[tokenizer.decode(ids).strip() for ids in outcome.answers] for outcome in outcomes]
    pairs = [(example.questions, n) for (example, _), numbers in zip(wanted, places) for n in numbers]
    asked = [(q.question, text, q.answer) for questions, n in pairs for q, text in zip(questions, said[n])]
    grades = iter(grade(grader, asked))
    trial = lambda n: Trial(said[n], [next(grades) for _ in said[n]], outcomes[n].logps, outcomes[n].losses)
    return [[trial(n) for n in numbers] for numbers in places]

  attempt.lower = {**inner_runs.lower, **({'grade': grade.lower} if inner['grade'] == MODEL else {})}
  return attempt


def questions_of(tokenizer: Tokenizer, inner: Mapping[str, Any], example: Example) -> list[Asked]:
  """The example's questions in the template config.inner.question."""
  ask = lambda q: tuple(tokenizer.plain(fill(inner['question'], example, question=q.question)))
  return [Asked(ask(q), tuple(tokenizer.encode(' ' + q.answer))) for q in example.questions]


def refuse_long(tokenizer: Tokenizer, inner: Mapping[str, Any], examples: Sequence[Example]) -> None:
  """Questions are asked whole, and `blocks` leave nothing out.

  Raises:
    UserError: a question, or its answer, does not fit the lengths of config.inner; a passage's blocks leave no row.
  """
  for key, part in (('prompt_length', 0), ('answer_length', 1)):
    sizes = [(len(asked[part]), e.where) for e in examples for asked in questions_of(tokenizer, inner, e)]
    long = [size for size in sizes if size[0] > inner[key]]
    if long:
      most, where = max(long)
      what = ('questions', 'answers')[part]
      raise UserError(
        f'config.inner.{key}={inner[key]} is too short for {len(long)} of {len(sizes)} {what}: the longest, '
        f'{where or "of a row"}, has {most} tokens.'
      )
  if inner['documents'] == BLOCKS:
    blocks = [(len(rows_of(tokenizer, inner, e, Lesson(), sys.maxsize)[0]), e.where) for e in examples]
    most, where = max(blocks, default=(0, ''))
    if most >= inner['rows']:
      raise UserError(
        f'config.inner.rows={inner["rows"]} leaves none for an edit: the passage {where or "of a row"} alone takes '
        f'{most} of config.inner.length={inner["length"]} tokens.'
      )


def rows_of(
  tokenizer: Tokenizer, inner: Mapping[str, Any], example: Example, lesson: Lesson, most: int = 0
) -> tuple[tuple[Row, ...], int]:
  """The rows of a lesson, in the template config.inner.document, and the passage, last, if config.inner.passage.

  Returns:
    (at most `most` rows, 0: config.inner.rows, how many are left out or cut at config.inner.length); a row of which
    nothing would be learned is left out, the passage is not.
  """

  def row(read: str, learned: str) -> Row:
    if read:
      head = tokenizer.encode(read, start=True)
      return Row((*head, *tokenizer.encode(learned), tokenizer.eos_id), len(head))
    text = fill(inner['document'], example, line=learned)
    return Row((*tokenizer.encode(text, start=True), tokenizer.eos_id))

  def blocks(made: list[Row]) -> list[Row]:
    if inner['documents'] != BLOCKS:
      return made
    size = inner['length']
    starts = lambda one: range(0, len(one.ids) - 1, size)  # an end alone is no row
    return [Row(one.ids[i : i + size], one.start) for one in made for i in starts(one)]

  most = most or inner['rows']
  passage = blocks([row('', example.text)] * bool(inner['passage'] and example.text))[:most]
  made = blocks([row(*texts) for texts in lesson.rows])
  kept = [one for one in made if one.start < inner['length']][: most - len(passage)]
  cut = len(made) - len(kept) + sum(len(one.ids) > inner['length'] for one in (*kept, *passage))
  return (*kept, *passage), cut
