"""Task accuracy: completions are sampled, or decoded greedily, and their extracted answers compared or scored."""

import jax
import jax.numpy as jnp
import numpy as np

from past_jax.answers import RULES, extract, same
from past_jax.evals.setting import Evaluation, Setting, by_kind, calls, prompt_parts, prompt_rows
from past_jax.functions import scorer
from past_jax.mesh import host, put_batch
from past_jax.sampler import sample
from past_jax.text import completion_text
from past_jax.types import Example, UserError


def accuracy(
  setting: Setting, *, rule: str = 'line', function: str = '', samples: int = 1, temperature: float = 0.0, seed: int = 0
) -> Evaluation:
  """How often a completion's answer is the right one.

  Metrics, for each kind of question: `accuracy/KIND`, the mean over questions of the mean over samples; `.../any`, the
  share of questions with a right sample among theirs; `.../unanswered`, the share of samples in which `rule` finds no
  answer; `.../length`, their mean length in tokens, the end token included.

  Args:
    rule: of `answers.RULES`, applied to the completion and, where it finds something there, to the expected answer.
      With `line` a completion ends with its first line.
    function: 'module:callable' instead of `rule`: f(completion, example) -> a score from 0 to 1; means are reported.
    samples: completions per question.
    temperature: 0: greedy.
    seed: of the samples.

  Raises:
    UserError: an unknown rule or function, no question, one that has no answer, or a prompt that does not fit.
  """
  if not setting.questions:
    raise UserError('accuracy needs questions, or rows that have a prompt.')
  if not function and rule not in RULES:
    raise UserError(f'rule={rule!r}: choose one of {", ".join(RULES)}.')
  if not function and (lacking := [q.question for _, q in setting.questions if not q.answer]):
    raise UserError(f'the rule {rule!r} compares with an answer, and this question has none: {lacking[0][:80]!r}.')
  tokenizer, questions = setting.tokenizer, setting.questions
  score = scorer(function, 'function') if function else None
  rows = prompt_rows(setting, [q.question for _, q in questions])
  newline = tokenizer.encode('\n')
  ends_line = not function and rule == 'line' and len(newline) == 1
  stop = jnp.array([*tokenizer.stop_ids, *(newline if ends_line else [])])
  shape = dict(group=samples, length=setting.answer_length)
  program = jax.jit(
    lambda params, keys, prompts: sample(setting.policy, params, keys, prompts, temperature, stop, **shape)
  )

  def judged(question, example: Example, text: str) -> tuple[float, bool]:
    """(score, answered)"""
    if score:
      return score(text, example), bool(text.strip())
    answer = extract(text, rule)
    return float(same(answer, extract(question.answer, rule) or question.answer)), answer is not None

  def run(params, tick=lambda x: x, before=()):
    del before
    texts, lengths = [], []
    keys = jax.random.split(jax.random.key(seed), len(rows))
    for part, prompts in prompt_parts(setting, rows):
      group = host(tick(program(params, put_batch(setting.mesh, keys[np.array(part)]), prompts)))
      for b in range(min(len(part), len(rows) - len(texts))):
        ids, length = group.ids_BxGxT[b], group.length_BxG[b].tolist()
        texts.append([completion_text(tokenizer, ids[g], length[g]) for g in range(samples)])
        lengths.append(length)
    marks = [
      [judged(q, setting.examples[i], text) for text in said] for (i, q), said in zip(questions, texts, strict=True)
    ]
    scores, answered = np.moveaxis(np.array(marks, float), -1, 0)
    values = {
      '': scores.mean(1),
      'any': scores.max(1),
      'unanswered': 1 - answered.mean(1),
      'length': np.mean(lengths, 1),
    }
    shown = [
      {'kind': f'accuracy/{q.kind}', 'question': q.question, 'answer': q.answer, 'output': said[0], 'correct': s == 1}
      for (_, q), said, s in zip(questions, texts, scores[:, 0].tolist())
    ]
    return by_kind('accuracy', questions, values), shown

  return Evaluation(run, calls(setting, len(rows)))
