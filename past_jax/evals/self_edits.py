"""Knowledge incorporation: how much a model answers after training on notes, in arms (arXiv 2506.10943, section 3)."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import jax
import numpy as np

from past_jax.evals.setting import Evaluation, Setting
from past_jax.render import prompt_ids, said
from past_jax.self_edits import DOCUMENTS, Lesson, trials
from past_jax.types import Example, UserError
from past_jax.writer import writer

ARMS = ('base', 'passage', 'own', 'given')


def edits_of(setting: Setting, arms: Sequence[str], length: int, temperature: float, seed: int, stop: Sequence[str]):
  """Returns edits(params, tick) -> {arm: a text for each example}, of those arms that are trained on one.

  Raises:
    UserError: an unknown arm, no section config.inner, an example without questions or, for `given`, without an anchor.
  """
  examples = setting.examples
  if not setting.inner:
    raise UserError('it needs the section config.inner: see configs/seal.py.')
  if strange := [arm for arm in arms if arm not in ARMS] or not arms:
    raise UserError(f'arms={tuple(arms)!r}: choose from {", ".join(ARMS)}.' if strange else '')
  for field, needed in (('questions', True), ('anchors', 'given' in arms)):
    if lacking := [e.where or f'row {i}' for i, e in enumerate(examples) if needed and not getattr(e, field)]:
      raise UserError(f'{lacking[0]} has no {field}, which it needs.')
  view = setting.view
  write = writer(
    policy=setting.policy,
    tokenizer=setting.tokenizer,
    mesh=setting.mesh,
    prompt_length=view['prompt_length'],
    length=length,
    chunk=setting.chunk,
    stop=stop,
  )

  def edits(params, tick) -> dict[str, list[str]]:
    out = {}
    if 'own' in arms:
      asked = [prompt_ids(setting.tokenizer, view['instruction'], e, view['chat']) for e in examples]
      out['own'] = write(params, jax.random.key(seed), asked, temperature, tick)
    if 'given' in arms:
      out['given'] = [said(e.anchors[0]) for e in examples]
    return out

  return edits


def means(name: str, examples: Sequence[Example], grades, logps) -> dict[str, float]:
  """`NAME/accuracy` is a mean over passages of the mean over a passage's questions, `/micro` one over questions.

  Args:
    grades, logps: for each example a number for each question.
  """
  kinds = defaultdict(list)
  for example, own in zip(examples, grades):
    for question, grade in zip(example.questions, own):
      kinds[question.kind].append(grade)
  flat = lambda rows: [x for row in rows for x in row]
  out = {
    f'{name}/accuracy': float(np.mean([np.mean(own) for own in grades])),
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
  seed: int = 0,
  stop: tuple = (),
  limit: int = 0,
) -> Evaluation:
  """After training on one passage at a time, in inner runs as config.inner says; the passage is not in view.

  Arms: `base`, without training; `passage`, on it alone; `own`, also on what the model writes when it reads
  config.view.instruction; `given`, on the row's first given completion instead.

  Metrics of each arm, `self_edits/ARM/...`: see `means`; `chars`, the mean length of what was written.

  Args:
    seeds: inner runs per arm and passage. temperature, length, stop: of what is written. limit: passages; 0: all.

  Raises:
    UserError: as `edits_of`.
  """
  setting = setting._replace(examples=list(setting.examples)[: limit or None])
  edits, inner, examples = edits_of(setting, arms, length, temperature, seed, stop), setting.inner, setting.examples
  read = DOCUMENTS[inner['documents']]
  options = dict(policy=setting.policy, tokenizer=setting.tokenizer, mesh=setting.mesh, input_axes=setting.input_axes)
  attempt = trials(**options, inner=inner)

  def run(params, tick: Callable = lambda x: x, before=()):
    del before
    written = edits(params, tick)
    lessons = {'base': [None] * len(examples), 'passage': [Lesson()] * len(examples)}
    lessons |= {arm: [read(text, e) for text, e in zip(texts, examples)] for arm, texts in written.items()}
    metrics, samples, tried = {}, [], {}
    for arm in arms:
      tried[arm] = attempt(params, list(zip(examples, lessons[arm])), range(seeds), tick)
      grades = [np.mean([t.grades for t in own], axis=0) for own in tried[arm]]
      logps = [np.mean([t.logps for t in own], axis=0) for own in tried[arm]]
      metrics |= means(f'self_edits/{arm}', examples, grades, logps)
      if arm in written:
        metrics[f'self_edits/{arm}/chars'] = float(np.mean([len(text) for text in written[arm]]))
      for i, example in enumerate(examples):
        for q, question in enumerate(example.questions):
          first = tried[arm][i][0]
          shown = dict(question=question.question, answer=question.answer, output=first.answers[q])
          samples.append({'kind': f'self_edits/{arm}', **shown, 'correct': first.grades[q] == 1})
    metrics['self_edits/n'] = len(examples)
    metrics['self_edits/questions'] = sum(len(e.questions) for e in examples)
    return metrics, samples

  chunks = sum(-(-len(examples) * (1 if arm == 'base' else seeds) // inner['chunk']) for arm in arms)
  return Evaluation(run, 2 * chunks + -(-len(examples) // setting.chunk) * ('own' in arms))
