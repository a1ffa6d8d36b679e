"""Closed-book recall: questions about the studied texts, answered greedily with no text in view."""

import jax
import jax.numpy as jnp

from past_jax.evals.setting import Evaluation, Setting, by_kind, calls, padded
from past_jax.grading import contains
from past_jax.logps import group_logps
from past_jax.mesh import host, put_batch
from past_jax.render import pack
from past_jax.sampler import sample
from past_jax.text import completion_text, pack_completions
from past_jax.types import Prompts


def closed_book(setting: Setting) -> Evaluation:
  """Greedy answers to the questions that have one; to none, if there are none.

  Metrics: `closed_book/KIND` share answered right (`grading.contains`), `.../questions` their number, `.../n` that of
  the texts they are about, which is what an interval may count on: questions about one text are right or wrong
  together.
  `.../logp` is the mean log-prob in nats of the expected answer after the question, which moves before any is right.
  """
  policy, tokenizer, mesh, length = setting.policy, setting.tokenizer, setting.mesh, setting.answer_length
  questions = [(i, q) for i, q in setting.questions if q.answer]
  newline = tokenizer.encode('\n')
  stop = jnp.array([*tokenizer.stop_ids, *(newline if len(newline) == 1 else [])])
  greedy = jax.jit(
    lambda params, keys, prompts: sample(policy, params, keys, prompts, 0.0, stop, group=1, length=length)
  )
  score = jax.jit(lambda params, *args: group_logps(policy, params, *args).sum(axis=(1, 2)))

  def run(params, tick=lambda x: x, before=()):
    del before
    samples, logps = [], []
    for part in padded(questions, setting.chunk):
      rows = [tokenizer.plain(setting.template.replace('{question}', q.question)) for _, q in part]
      prompts = put_batch(mesh, Prompts(*pack(tokenizer, rows, setting.prompt_length)[:2]))
      answers = [[tokenizer.encode(' ' + q.answer)] for _, q in part]
      expected = put_batch(mesh, pack_completions(answers, length)[:2])
      keys = put_batch(mesh, jax.random.split(jax.random.key(0), setting.chunk))
      group = host(tick(greedy(params, keys, prompts)))
      logps += host(tick(score(params, prompts, *expected))).tolist()
      for i, (_, q) in enumerate(part[: len(questions) - len(samples)]):
        output = completion_text(tokenizer, group.ids_BxGxT[i, 0], int(group.length_BxG[i, 0]))
        correct = bool(contains(output, q.answer))
        samples.append(
          {'kind': q.kind, 'question': q.question, 'answer': q.answer, 'output': output, 'correct': correct}
        )
    return by_kind('closed_book', questions, {'': [s['correct'] for s in samples], 'logp': logps}), samples

  return Evaluation(run, 2 * calls(setting, len(questions)))
