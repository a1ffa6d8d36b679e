"""Closed-book recall: questions about the studied texts, answered greedily with no text in view."""

import re
import string
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from past_jax.logps import group_logps
from past_jax.mesh import put_batch
from past_jax.render import pack
from past_jax.sampler import sample
from past_jax.text import Tokenizer, completion_text, pack_completions
from past_jax.types import Policy, Prompts, Question


def normalise(text: str) -> str:
  """Lower case, without punctuation, articles and surplus spaces (as SQuAD v1.1's scorer, arXiv 1606.05250)."""
  text = ''.join(' ' if c in string.punctuation else c for c in text.lower())
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def is_correct(output: str, answer: str) -> bool:
  """The answer's words stand, in order and together, in the first line of the output."""
  first = output.strip().splitlines()[0] if output.strip() else ''
  wanted = normalise(answer)
  return bool(wanted) and f' {wanted} ' in f' {normalise(first)} '


def padded(rows: Sequence, size: int) -> list[list]:
  """Parts of exactly `size`; the last is filled up with its own last row, whose results are dropped."""
  parts = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
  return [part + part[-1:] * (size - len(part)) for part in parts]


def closed_book(
  *,
  policy: Policy,
  tokenizer: Tokenizer,
  mesh: jax.sharding.Mesh,
  questions: Sequence[tuple[int, Question]],
  template: str = '{question}',
  prompt_length: int = 64,
  answer_length: int = 16,
  chunk: int = 32,
):
  """Returns evaluate(params, tick) -> (metrics, samples).

  Metrics: `closed_book/KIND` share answered right (see `is_correct`), `.../questions` their number, `.../n` that of the
  texts they are about, which is what an interval may count on: questions about one text are right or wrong together.
  `.../logp` is the mean log-prob in nats of the expected answer after the question, which moves before any is right.

  Args:
    questions: (number of the text, question) pairs.
  """
  newline = tokenizer.encode('\n')
  stop = jnp.array([*tokenizer.stop_ids, *(newline if len(newline) == 1 else [])])
  greedy = jax.jit(
    lambda params, keys, prompts: sample(policy, params, keys, prompts, 0.0, stop, group=1, length=answer_length)
  )
  score = jax.jit(lambda params, *args: group_logps(policy, params, *args).sum(axis=(1, 2)))

  def evaluate(params, tick=lambda x: x):
    samples, by_kind = [], defaultdict(list)
    for part in padded(questions, chunk):
      rows = [tokenizer.plain(template.replace('{question}', q.question)) for _, q in part]
      prompts = put_batch(mesh, Prompts(*pack(tokenizer, rows, prompt_length)[:2]))
      answers = [[tokenizer.encode(' ' + q.answer)] for _, q in part]
      expected = put_batch(mesh, pack_completions(answers, answer_length)[:2])
      keys = put_batch(mesh, jax.random.split(jax.random.key(0), chunk))
      group = jax.device_get(tick(greedy(params, keys, prompts)))
      logps = np.asarray(tick(score(params, prompts, *expected)))
      for i, (text, q) in enumerate(part[: len(questions) - len(samples)]):
        output = completion_text(tokenizer, group.ids_BxGxT[i, 0], int(group.length_BxG[i, 0]))
        correct = is_correct(output, q.answer)
        by_kind[q.kind].append((text, correct, logps[i]))
        samples.append(
          {'kind': q.kind, 'question': q.question, 'answer': q.answer, 'output': output, 'correct': correct}
        )
    metrics = {}
    for kind, results in by_kind.items():
      texts, correct, logps = zip(*results)
      numbers = {'n': len(set(texts)), 'questions': len(results), 'logp': float(np.mean(logps))}
      metrics[f'closed_book/{kind}'] = float(np.mean(correct))
      metrics |= {f'closed_book/{kind}/{name}': value for name, value in numbers.items()}
    return metrics, samples

  return evaluate
