"""Completions whose answer a tool checks by computing it: algebra, or a program that is run."""

from typing import Literal

import numpy as np

from past_jax import answers, tools
from past_jax.judges.rows import bodies
from past_jax.tools.sandbox import Limits
from past_jax.types import Judge, Judgement, UserError


def tool(
  tool: Literal['algebra', 'code'] = 'algebra',
  rule: Literal['', 'line', 'last_number', 'boxed', 'choice', 'tag'] = 'line',
  seconds: int = 2,
  memory: int = 512,
  *,
  tokenizer,
) -> Judge:
  """Score: 1 where the tool finds the example's target in the completion, else 0; an empty one abstains.

  Args:
    tool: `algebra`: the answer equals the target as an expression. `code`: the program, the last fenced block of the
      completion or all of it, prints the target.
    rule: how the answer is found (`answers.extract`), in the completion or in what the program prints; '': all of it.
    seconds: of CPU time for a comparison or a program.
    memory: MiB of the process that computes, 512 or more for algebra.

  Raises:
    UserError: an unknown tool or rule, an example without a target, a system without a sandbox, or no sympy.
  """
  if tool not in tools.TABLE:
    raise UserError(f'judge.tool={tool!r}: choose one of {", ".join(tools.TABLE)}.')
  if rule and rule not in answers.RULES:
    raise UserError(f"judge.rule={rule!r}: choose one of {', '.join(answers.RULES)}, or ''.")
  check, limits = tools.TABLE[tool], Limits(seconds=seconds, memory=memory << 20)

  def score(weights, key, group, examples) -> Judgement:
    del weights, key
    for example in examples:
      if not example.target:
        raise UserError(f'{example.where}: judge tool needs `target`, and this row has none.')
    found = bodies(tokenizer, group)
    texts = [[tokenizer.decode(ids) for ids in row] for row in found]
    targets = [[example.target] * len(row) for example, row in zip(examples, texts, strict=True)]
    right = np.array(check(sum(texts, []), sum(targets, []), rule, limits), np.float32)
    empty = np.array([[not ids for ids in row] for row in found])
    return Judgement(np.where(empty, np.float32(np.nan), right.reshape(empty.shape)))

  return Judge(score, on_host=True)
