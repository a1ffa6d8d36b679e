"""Knowledge incorporation: how much a model answers after training on notes, in arms (arXiv 2506.10943, section 3)."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from past_jax.evals.setting import Evaluation, Setting, calls
from past_jax.inner import Job, runner
from past_jax.render import prompt_ids, said
from past_jax.self_edits import DOCUMENTS, MODEL, Lesson, Trial, lesson_of, recipe, refuse_long, rows_of, trials
from past_jax.types import Example, UserError
from past_jax.writer import writer

GRADES, LOGPS = Trial._fields.index('grades'), Trial._fields.index('logps')
ARMS = ('base', 'passage', 'own', 'given')
FIGURES = {'accuracy', 'micro', 'logp', 'stderr', 'chars', 'unread', 'rows_cut', 'steps', 'tokens'}  # of an arm


class Notes(NamedTuple):
  """What the arms are trained on."""

  # (params, tick, numbers of examples, all if None) -> {arm: texts of each}, of the arms that are trained on some
  write: Callable
  calls: int


def notes(
  setting: Setting,
  arms: Sequence[str],
  *,
  count: int,
  length: int,
  temperature: float,
  top_p: float,
  seed: int,
  stop: Sequence[str],
) -> Notes:
  """`count` texts for each example: `own`, sampled after config.view.instruction; `given`, its first given completions.

  Raises:
    UserError: an unknown arm, no section config.inner, an example without questions or, for `given`, without anchors;
      questions that do not fit, or of a kind that is called as a figure is; the arm `passage` without
      config.inner.passage.
  """
  examples, view = setting.examples, setting.view
  if not setting.inner:
    raise UserError('the section config.inner is missing: see configs/seal.py.')
  if not arms or set(arms) - set(ARMS):
    raise UserError(f'arms={tuple(arms)!r}: choose from {", ".join(ARMS)}.')
  for field in ('questions', *(['anchors'] if 'given' in arms else [])):
    if lacking := [e.where or f'row {i}' for i, e in enumerate(examples) if not getattr(e, field)]:
      raise UserError(f'{len(lacking)} of {len(examples)} rows have no {field}, {lacking[0]} first.')
  if 'passage' in arms and not setting.inner['passage']:
    raise UserError('the arm passage is trained on the passage, and config.inner.passage is off.')
  if taken := FIGURES & {q.kind for e in examples for q in e.questions}:
    raise UserError(f'questions of the kind {min(taken)!r} would hide the figure of that name: call them otherwise.')
  refuse_long(setting.tokenizer, setting.inner, examples)
  sampled = writer(
    policy=setting.policy,
    tokenizer=setting.tokenizer,
    mesh=setting.mesh,
    prompt_length=view['prompt_length'],
    length=length,
    chunk=setting.chunk,
    stop=stop,
    top_p=top_p,
  )

  def write(params, tick, numbers: Sequence[int] | None = None) -> dict[str, list[list[str]]]:
    some, out = [examples[i] for i in (range(len(examples)) if numbers is None else numbers)], {}
    if 'own' in arms:
      key = jax.random.key(seed) if numbers is None else jax.random.fold_in(jax.random.key(seed), numbers[0])
      asked = [prompt_ids(setting.tokenizer, view['instruction'], e, view['chat']) for e in some]
      flat = sampled(params, key, [ids for ids in asked for _ in range(count)], temperature, tick)
      out['own'] = [flat[i : i + count] for i in range(0, len(flat), count)]
    if 'given' in arms:
      out['given'] = [[said(anchor) for anchor in e.anchors[:count]] for e in some]
    return out

  return Notes(write, calls(setting, len(examples) * count) * ('own' in arms))


def means(name: str, examples: Sequence[Example], grades, logps) -> dict[str, float]:
  """`NAME/accuracy` is a mean over passages of the mean over a passage's questions, `/micro` one over questions.

  `NAME/stderr` is the standard error of the first, as passages go; of one passage there is none.

  Args:
    grades, logps: for each example a number for each question.
  """
  kinds = defaultdict(list)
  for example, own in zip(examples, grades):
    for question, grade in zip(example.questions, own):
      kinds[question.kind].append(grade)
  flat = lambda rows: [x for row in rows for x in row]
  each = passage_means(grades)
  out = {
    f'{name}/accuracy': float(np.mean(each)),
    **stderr(f'{name}/stderr', each),
    f'{name}/micro': float(np.mean(flat(grades))),
    f'{name}/logp': float(np.mean(flat(logps))),
  }
  return out | ({f'{name}/{kind}': float(np.mean(own)) for kind, own in kinds.items()} if len(kinds) > 1 else {})


def self_edits(
  setting: Setting,
  *,
  arms: tuple = ARMS[:3],
  seeds: int = 1,
  length: int = 256,
  temperature: float = 1.0,
  top_p: float = 1.0,
  seed: int = 0,
  stop: tuple = (),
) -> Evaluation:
  """After training on one passage at a time, in inner runs as config.inner says; the passage is not in view.

  Arms: `base`, without training; `passage`, on it alone; `own`, also on what the model writes when it reads
  config.view.instruction; `given`, on the row's first given completion instead.

  Metrics of each arm, `self_edits/ARM/...`: see `means` and `gains`; `rows_cut`, how many of its rows were left out or
  cut, a mean over passages; of what was written `chars`, its mean length, and `unread`, the share that
  config.inner.documents cannot read, which answers nothing.

  Args:
    seeds: inner runs per arm and passage. temperature, top_p, length, stop: of what is written.

  Raises:
    UserError: as `notes`.
  """
  made = notes(setting, arms, count=1, length=length, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
  inner, examples = setting.inner, setting.examples
  attempt = trials_of(setting)

  def run(params, grader, tick):
    written = made.write(params, tick)
    lessons = {'base': [None] * len(examples), 'passage': [Lesson()] * len(examples)}
    lessons |= {
      arm: [lesson_of(inner, text, e) for (text,), e in zip(texts, examples)] for arm, texts in written.items()
    }
    metrics, samples, marks = {}, [], {}
    for arm in arms:
      tried = attempt(params, list(zip(examples, lessons[arm])), range(seeds), tick, grader)
      if arm in written:
        blank = lambda t: t._replace(grades=[0.0] * len(t.grades))
        unread = [lesson is None for lesson in lessons[arm]]
        tried = [[blank(t) for t in own] if bad else own for own, bad in zip(tried, unread)]
      marks[arm], logps = ([np.mean([t[i] for t in own], axis=0) for own in tried] for i in (GRADES, LOGPS))
      metrics |= means(f'self_edits/{arm}', examples, marks[arm], logps)
      samples += shown(f'self_edits/{arm}', examples, [own[0] for own in tried])
      if arm != 'base':
        cut = [rows_of(setting.tokenizer, inner, e, x)[1] for e, x in zip(examples, lessons[arm]) if x is not None]
        metrics[f'self_edits/{arm}/rows_cut'] = sum(cut) / len(examples)
      if arm in written:
        metrics[f'self_edits/{arm}/unread'] = float(np.mean(unread))
        metrics[f'self_edits/{arm}/chars'] = float(np.mean([len(text) for (text,) in written[arm]]))
    return metrics | gains('self_edits', marks) | counts('self_edits', examples), samples

  runs = sum(run_calls(setting, len(examples) * (1 if arm == 'base' else seeds)) for arm in arms)
  return graded(setting, run, made.calls + runs)


def continued(
  setting: Setting,
  *,
  arms: tuple = ARMS[:3],
  edits: int = 5,
  documents: Literal['whole', 'blocks', 'lines', 'questions'] = 'whole',
  lr: float = 1e-3,
  epochs: int = 3,
  batch: int = 8,
  rank: int = 32,
  alpha: float = 64.0,
  length: int = 256,
  temperature: float = 1.0,
  top_p: float = 1.0,
  seed: int = 0,
  stop: tuple = (),
) -> Evaluation:
  """After training on all passages in one run, each arm the same way: continued pretraining.

  Arms are those of `self_edits`, and so are the metrics, `continued/ARM/...`, but for what is said of notes; there are
  `edits` of them on a passage. `steps` and `tokens` are what an arm was trained with: they differ.

  Args:
    documents: the rows of a note, as config.inner.documents has them.
    lr, epochs, batch, rank, alpha: of this run, instead of config.inner's; rank 0 trains all parameters.

  Raises:
    UserError: as `notes`; a number below 1, or adapters that are scaled away.
  """
  for key, value in dict(edits=edits, epochs=epochs, batch=batch).items():
    if value < 1:
      raise UserError(f'{key}={value} must be at least 1.')
  if rank < 0 or (rank and not alpha):
    raise UserError(f'rank={rank}, alpha={alpha}: a rank is 0 or more, and alpha=0 scales adapters away.')
  made = notes(setting, arms, count=edits, length=length, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
  inner, examples, tokenizer = setting.inner | {'documents': documents}, setting.examples, setting.tokenizer
  own = dict(lr=lr, epochs=epochs, batch=batch, rank=rank, alpha=alpha, steps=0)
  most = edits * (1 if documents == 'whole' else inner['rows'])  # rows of the notes on a passage
  shape = recipe(inner, **own, rows=len(examples) * (most + 1))
  options = dict(policy=setting.policy, tokenizer=tokenizer, mesh=setting.mesh, input_axes=setting.input_axes)
  learn, attempt = runner(**options, recipe=shape).learn, trials_of(setting)

  def run(params, grader, tick):
    written, metrics, samples, marks = made.write(params, tick), {}, [], {}
    for arm in arms:
      texts = written[arm] if arm in written else [[] for _ in examples]
      of = lambda e, some: [row for text in some for row in DOCUMENTS[documents](text, e).rows]
      lessons = [Lesson(of(e, some)) for e, some in zip(examples, texts)]
      each = [rows_of(tokenizer, inner, e, lesson, most + 1) for e, lesson in zip(examples, lessons)]
      rows = [row for own, _ in each for row in own]
      learned, losses = (params, []) if arm == 'base' else learn(params, Job(rows, seed=seed), tick)
      tried = [t for (t,) in attempt(learned, [(e, None) for e in examples], (seed,), tick, grader)]
      marks[arm] = [t.grades for t in tried]
      metrics |= means(f'continued/{arm}', examples, marks[arm], [t.logps for t in tried])
      if arm != 'base':
        metrics[f'continued/{arm}/rows_cut'] = sum(cut for _, cut in each) / len(examples)
      metrics[f'continued/{arm}/steps'] = len(losses)
      metrics[f'continued/{arm}/tokens'] = epochs * sum(min(len(row.ids), shape.length) for row in rows) * bool(losses)
      samples += shown(f'continued/{arm}', examples, tried)
    return metrics | gains('continued', marks) | counts('continued', examples), samples

  each = run_calls(setting, len(examples))
  return graded(setting, run, made.calls + sum(each + (arm != 'base') for arm in arms))


def gains(name: str, grades: Mapping[str, Sequence]) -> dict[str, float]:
  """`NAME/ARM/over_OTHER`: accuracy less that of the arm named before it, and `..._stderr`, paired by passage.

  Args:
    grades: of each arm for each example a number for each question.
  """
  out, each = {}, {arm: passage_means(own) for arm, own in grades.items()}
  for a, b in itertools.pairwise(each):
    key = f'{name}/{b}/over_{a}'
    out |= {key: float(np.mean(each[b] - each[a])), **stderr(f'{key}_stderr', each[b] - each[a])}
  return out


def passage_means(grades: Sequence) -> np.ndarray:
  return np.array([np.mean(own) for own in grades])


def stderr(key: str, values: np.ndarray) -> dict[str, float]:
  return {key: float(values.std(ddof=1) / np.sqrt(len(values)))} if len(values) > 1 else {}


def run_calls(setting: Setting, runs: int) -> int:
  """Device calls of so many inner runs: each chunk is trained once, and asked a few questions at a time."""
  most = max(len(e.questions) for e in setting.examples)
  return -(-runs // setting.inner['chunk']) * (1 + -(-most // setting.inner['questions']))


def trials_of(setting: Setting) -> Callable:
  options = dict(policy=setting.policy, tokenizer=setting.tokenizer, mesh=setting.mesh, input_axes=setting.input_axes)
  return trials(**options, inner=setting.inner)


def graded(setting: Setting, run: Callable, calls: int) -> Evaluation:
  """Of run(params, grader, tick); the grader is the role base where config.inner.grade is a model, else None."""
  same = lambda arrays: arrays
  if setting.inner['grade'] == MODEL:
    return Evaluation(lambda params, base, tick=same, before=(): run(params, base, tick), calls, ('policy', 'base'))
  return Evaluation(lambda params, tick=same, before=(): run(params, None, tick), calls)


def shown(kind: str, examples: Sequence[Example], tried: Sequence[Trial]) -> list[dict]:
  return [
    dict(kind=kind, question=q.question, answer=q.answer, output=output, correct=grade == 1)
    for example, trial in zip(examples, tried)
    for q, output, grade in zip(example.questions, trial.answers, trial.grades)
  ]


def counts(name: str, examples: Sequence[Example]) -> dict[str, float]:
  return {f'{name}/n': len(examples), f'{name}/questions': sum(len(e.questions) for e in examples)}
