"""A language model as the one who grades short answers, yes or no (arXiv 2506.10943, section 4.2)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from past_jax.logps import scorer
from past_jax.text import Tokenizer, pack_completions, pack_prompts
from past_jax.types import Policy, Prompts, UserError

TEMPLATE = """Question: {question}
Right answer: {answer}
Given answer: {output}
Does the given answer say what the right answer says, yes or no? Answer:"""
WORDS = (' yes', ' no')


def prompt_length(tokenizer: Tokenizer, inner: Mapping[str, Any]) -> int:
  """Most tokens of what the model reads; of a longer one, decoded from odd bytes, the beginning is cut off."""
  return len(tokenizer.plain(TEMPLATE)) + inner['prompt_length'] + 2 * inner['answer_length'] + 8


def model_grader(*, policy: Policy, tokenizer: Tokenizer, inner: Mapping[str, Any]) -> Callable[..., list[float]]:
  """Returns grade(params, [(question, output, answer), ...]): 1 where ` yes` is likelier than ` no` after the template.

  Nothing but the question and both answers is in view. An empty output is graded 0 without asking. `grade.lower` is
  (params) -> the program of a call, lowered.

  Raises:
    UserError: yes and no are the same to the tokenizer, or not as many tokens, so that the shorter would win.
  """
  words = [tokenizer.encode(word) for word in WORDS]
  if words[0] == words[1] or len(words[0]) != len(words[1]):
    raise UserError(
      "config.inner.grade='model' compares yes and no, which are different words of as many tokens to a tokenizer of a "
      f'real model; here they are {words[0]} and {words[1]}.'
    )
  P, T = prompt_length(tokenizer, inner), len(words[0])
  score = scorer(policy, inner['chunk'] * inner['questions'])  # as many as are asked at a time
  bos = tokenizer.bos_id if tokenizer.adds_bos else None

  def grade(params, asked: Sequence[tuple[str, str, str]]) -> list[float]:
    wanted = list(dict.fromkeys(triple for triple in asked if triple[1]))
    prompts = [tokenizer.plain(TEMPLATE.format(question=q, output=o, answer=a)) for q, o, a in wanted]
    ids_NxP, length_N, _ = pack_prompts(prompts, P, bos)
    ids_NxKxT, length_NxK, _ = pack_completions([words] * len(wanted), T)
    yes, no = score(params, Prompts(ids_NxP, length_N), ids_NxKxT, length_NxK).sum(-1).T if wanted else ((), ())
    found = {triple: float(a > b) for triple, a, b in zip(wanted, yes, no)}
    return [found[triple] if triple[1] else 0.0 for triple in asked]

  grade.lower = lambda params: score.lower(params, P, len(words), T)
  return grade
