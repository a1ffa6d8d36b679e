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


def model_grader(*, policy: Policy, tokenizer: Tokenizer, inner: Mapping[str, Any]) -> Callable[..., list[float]]:
  """Returns grade(params, [(question, output, answer), ...]): 1 where ` yes` is likelier than ` no` after the template.

  Nothing but the question and both answers is in view. An empty output is graded 0 without asking.

  Raises:
    UserError: yes and no are the same to the tokenizer.
  """
  words = [tokenizer.encode(word) for word in WORDS]
  if words[0] == words[1]:
    raise UserError("config.inner.grade='model' asks for yes or no, which are the same to this tokenizer.")
  room = inner['prompt_length'] + 2 * inner['answer_length'] + 8  # what is decoded may be more tokens than it was
  P, T = len(tokenizer.plain(TEMPLATE)) + room, max(map(len, words))
  score = scorer(policy, inner['chunk'])
  bos = tokenizer.bos_id if tokenizer.adds_bos else None

  def grade(params, asked: Sequence[tuple[str, str, str]]) -> list[float]:
    wanted = list(dict.fromkeys(triple for triple in asked if triple[1]))
    prompts = [tokenizer.plain(TEMPLATE.format(question=q, output=o, answer=a)) for q, o, a in wanted]
    ids_NxP, length_N, _ = pack_prompts(prompts, P, bos)
    ids_NxKxT, length_NxK, _ = pack_completions([words] * len(wanted), T)
    yes, no = score(params, Prompts(ids_NxP, length_N), ids_NxKxT, length_NxK).sum(-1).T if wanted else ((), ())
    found = {triple: float(a > b) for triple, a, b in zip(wanted, yes, no)}
    return [found[triple] if triple[1] else 0.0 for triple in asked]

  return grade
