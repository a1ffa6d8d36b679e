"""Choosing by likelihood: the answer against wrong ones, or the letter of the answer in a list."""

from collections.abc import Sequence

import numpy as np

from past_jax.data.worlds.words import shuffled
from past_jax.evals.setting import Evaluation, Setting, by_kind, calls, candidate_scorer
from past_jax.types import Question, UserError

LETTERS = 'ABCDEFGHIJ'


def forced_choice(setting: Setting, *, distractors: int = 3) -> Evaluation:
  """Whether the answer is likelier after the question than each wrong one.

  Metrics, for each kind of question: `forced_choice/KIND`, the share won by the sum of the tokens' log-probs (of equal
  ones each has its part), `.../per_token`, the share by their mean, `.../gap` and `.../gap_per_token`, the log-prob of
  the answer less the wrong ones' mean, in nats, and `.../chance`.

  Args:
    distractors: wrong answers of a question that has no choices of its own: other questions' answers of its kind.

  Raises:
    UserError: no question has anything to choose from, or one does not fit the lengths of config.eval.
  """
  asked = []
  for number, (i, q) in enumerate(setting.questions):
    others = {o.answer for _, o in setting.questions if o.kind == q.kind} - {q.answer} if not q.choices else ()
    choices = q.choices or (q.answer, *shuffled(sorted(others), number)[:distractors])
    if q.answer and len(choices) > 1:
      asked.append((i, q._replace(choices=(q.answer, *(c for c in choices if c != q.answer)))))
  if not asked:
    raise UserError('forced_choice needs questions that have choices, or of one kind at least two different answers.')
  score = candidate_scorer(setting, [(q.question, q.choices) for _, q in asked])

  def run(params, tick=lambda x: x, before=()):
    del before
    logps_NxK, tokens_NxK = score(params, tick)
    means_NxK = logps_NxK / tokens_NxK
    best = logps_NxK.argmax(1)
    values = {'': won(logps_NxK), 'per_token': won(means_NxK), 'gap': gap(logps_NxK), 'gap_per_token': gap(means_NxK)}
    values['chance'] = [1 / len(q.choices) for _, q in asked]
    return by_kind('forced_choice', asked, values), samples(asked, best)

  return Evaluation(run, calls(setting, len(asked)))


def multiple_choice(setting: Setting) -> Evaluation:
  """Whether, after the question and its choices in a list, the answer's letter is the likeliest (as MMLU, 2009.03300).

  The choices are in an order of each question's own. Metrics: `multiple_choice/KIND` and `.../chance`.

  Raises:
    UserError: no question has choices, one has more than ten, or one does not fit the lengths of config.eval.
  """
  asked = [(i, q) for i, q in setting.questions if q.choices]
  if not asked or max(len(q.choices) for _, q in asked) > len(LETTERS):
    raise UserError(f'multiple_choice needs questions with choices, up to {len(LETTERS)} each.')
  lists = [shuffled(q.choices, number) for number, (_, q) in enumerate(asked)]
  listed = [
    (
      f'{q.question}\n' + ''.join(f'{letter}. {choice}\n' for letter, choice in zip(LETTERS, choices)) + 'Answer:',
      LETTERS[: len(choices)],
    )
    for (_, q), choices in zip(asked, lists)
  ]
  score = candidate_scorer(setting, listed)

  def run(params, tick=lambda x: x, before=()):
    del before
    logps_NxK, _ = score(params, tick)
    best = [q.choices.index(choices[b]) for (_, q), choices, b in zip(asked, lists, logps_NxK.argmax(1))]
    right = [q.choices[b] == q.answer for (_, q), b in zip(asked, best)]
    chance = [1 / len(q.choices) for _, q in asked]
    return by_kind('multiple_choice', asked, {'': right, 'chance': chance}), samples(asked, best, 'multiple_choice')

  return Evaluation(run, calls(setting, len(asked)))


def won(score_NxK) -> list[float]:
  """1 where column 0 is the largest, shared among those that are as large."""
  top = score_NxK == score_NxK.max(1, keepdims=True)
  return (top[:, 0] / top.sum(1)).tolist()


def gap(score_NxK) -> list[float]:
  """Column 0 less the mean of the others that there are."""
  return [row[0] - row[1:][np.isfinite(row[1:])].mean() for row in score_NxK]


def samples(asked: Sequence[tuple[int, Question]], best: Sequence[int], name: str = 'forced_choice') -> list[dict]:
  chosen = [q.choices[b] for (_, q), b in zip(asked, best)]
  return [
    {'kind': f'{name}/{q.kind}', 'question': q.question, 'answer': q.answer, 'output': c, 'correct': c == q.answer}
    for (_, q), c in zip(asked, chosen)
  ]
