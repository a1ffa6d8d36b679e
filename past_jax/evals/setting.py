"""What the evaluations of config.eval.tasks are given, what they return, and the calls of one shape that they share."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from past_jax.logps import group_logps, token_mask
from past_jax.mesh import host, put_batch
from past_jax.render import pack
from past_jax.text import Tokenizer, pack_completions
from past_jax.types import Example, Policy, Prompts, Question, UserError


class Setting(NamedTuple):
  policy: Policy
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  examples: Sequence[Example]
  questions: Sequence[tuple[int, Question]]  # (index of its example, question)
  template: str = '{question}'
  prompt_length: int = 64
  answer_length: int = 16
  chunk: int = 32
  view: Mapping[str, Any] = {}  # config.view: how a prompt and given completions are rendered for studying
  improve: Mapping[str, Any] = {}  # config.improve: what an improver reads; {}: the config has no such section
  inner: Mapping[str, Any] = {}  # config.inner: how self-edits are trained on; the same
  input_axes: Mapping[str, int] = {}  # as `lora.init` takes them


class Evaluation(NamedTuple):
  """run: (params of each role, tick, before) -> (metrics, samples).

  `before` are the samples of the run's first evaluation, or none. As long as a run has no weights of one of the roles,
  the evaluation is left out.
  """

  run: Callable
  calls: int  # device calls, each of which is passed to `tick`
  roles: tuple[str, ...] = ('policy',)


def padded(rows: Sequence, size: int) -> list[list]:
  """Parts of exactly `size`; the last is filled up with its own last row, whose results are dropped."""
  parts = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
  return [part + part[-1:] * (size - len(part)) for part in parts]


def prompt_rows(setting: Setting, questions: Sequence[str]) -> list[list[int]]:
  """Ids of each question in the template.

  Raises:
    UserError: a prompt is longer than `prompt_length`: what is asked comes first, and would be cut off.
  """
  rows = [setting.tokenizer.plain(setting.template.replace('{question}', question)) for question in questions]
  refuse_long(rows, setting.prompt_length, 'prompt_length', 'prompts')
  return rows


def refuse_long(rows: Sequence[Sequence[int]], most: int, key: str, what: str) -> None:
  longest, count = max(map(len, rows), default=0), sum(len(row) > most for row in rows)
  if count:
    raise UserError(
      f'config.eval.{key}={most} is too short for {count} of {len(rows)} {what}: the longest has {longest} tokens.'
    )


def prompt_parts(setting: Setting, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Prompts]]:
  """(indices of the rows, their prompts on the mesh), `chunk` at a time; the last call repeats its last row."""
  for part in padded(range(len(rows)), setting.chunk):
    ids, length, _ = pack(setting.tokenizer, [rows[i] for i in part], setting.prompt_length)
    yield part, put_batch(setting.mesh, Prompts(ids, length))


def calls(setting: Setting, count: int) -> int:
  return -(-count // setting.chunk)


def candidate_scorer(setting: Setting, asked: Sequence[tuple[str, Sequence[str]]]):
  """score(params, tick) -> (logps_NxK, tokens_NxK): of N prompts, each one's candidates after it.

  Log-probs are sums over tokens in nats; beyond a prompt's own candidates they are -inf and tokens 1.

  Raises:
    UserError: a prompt or a candidate does not fit the lengths of config.eval.
  """
  rows = prompt_rows(setting, [prompt for prompt, _ in asked])
  said = [[setting.tokenizer.encode(' ' + candidate) for candidate in candidates] for _, candidates in asked]
  refuse_long([ids for row in said for ids in row], setting.answer_length, 'answer_length', 'choices')
  K = max(map(len, said), default=0)
  said = [row + [[]] * (K - len(row)) for row in said]

  @jax.jit
  def program(params, prompts, ids_BxKxT, length_BxK):
    logps = group_logps(setting.policy, params, prompts, ids_BxKxT, length_BxK)
    return logps.sum(-1), token_mask(prompts, length_BxK, ids_BxKxT.shape[2]).sum(-1)

  def score(params, tick):
    logps, tokens = np.full((len(said), K), -np.inf), np.ones((len(said), K))
    for part, prompts in prompt_parts(setting, rows):
      ids, length, _ = pack_completions([said[i] for i in part], setting.answer_length)
      sums, counts = host(tick(program(params, prompts, *put_batch(setting.mesh, (ids, length)))))
      logps[part], tokens[part] = np.where(length > 0, sums, -np.inf), np.maximum(counts, 1)
    return logps, tokens

  return score


def by_kind(name: str, questions: Sequence[tuple[int, Question]], values: Mapping[str, Sequence[float]]) -> dict:
  """`NAME/KIND` and `NAME/KIND/VALUE`: means over the questions of a kind, and how many questions and texts they are.

  Args:
    values: name of a value ('' for the main one) -> one number for each question.
  """
  rows = defaultdict(list)
  for i, (_, question) in enumerate(questions):
    rows[question.kind].append(i)
  metrics = {}
  for kind, indices in rows.items():
    for value, numbers in values.items():
      metrics['/'.join(filter(None, (name, kind, value)))] = float(np.mean([numbers[i] for i in indices]))
    metrics[f'{name}/{kind}/n'] = len({questions[i][0] for i in indices})
    metrics[f'{name}/{kind}/questions'] = len(indices)
  return metrics
