"""Responses to be improved that are sampled, not given: the base's own, as they are or improved once by the policy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from past_jax.render import prompt_ids
from past_jax.types import Example, Policy
from past_jax.writer import writer

SAMPLED = ('sampled', 'improved')  # of `Plan.draft`


def drafter(
  *,
  policy: Policy,
  tokenizer,
  mesh,
  view: Mapping[str, Any],
  improve: Mapping[str, Any],
  length: int,
  chunk: int,
  stop: Sequence[str] = (),
) -> Callable[..., list[str]]:
  """Returns draft(weights, key, examples, improved, tick) -> a text for each.

  The role `base` answers config.view.instruction. If `improved` the policy then reads that as its draft, and answers.

  Args:
    view, improve: of the config; both samples are drawn at improve['temperature'].
    length, stop: of the completions, as the stage's generator has them.
    chunk: prompts per call.
  """
  options = dict(policy=policy, tokenizer=tokenizer, mesh=mesh, length=length, chunk=chunk, stop=stop)
  answer = writer(**options, prompt_length=view['prompt_length'])
  rewrite = writer(**options, prompt_length=improve['prompt_length'])

  def draft(weights, key, examples: Sequence[Example], improved: bool, tick: Callable) -> list[str]:
    keys = jax.random.split(key)
    asked = [prompt_ids(tokenizer, view['instruction'], e, view['chat']) for e in examples]
    texts = answer(weights['base'], keys[0], asked, improve['temperature'], tick)
    if improved:
      asked = [
        prompt_ids(tokenizer, improve['instruction'], e, view['chat'], draft=text) for e, text in zip(examples, texts)
      ]
      texts = rewrite(weights['policy'], keys[1], asked, improve['temperature'], tick)
    return texts

  return draft
