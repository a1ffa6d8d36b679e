"""A language model as a marker: a cheap stand-in for a judge that trains (arXiv 2506.10943 v2, appendix)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from past_jax.judges.rows import bodies
from past_jax.logps import scorer
from past_jax.render import fill
from past_jax.text import pack_completions, pack_prompts
from past_jax.types import Judge, Judgement, Policy, Prompts, UserError

CRITERIA = ('length', 'diversity', 'quality', 'correctness')
TEMPLATE = """Passage:
{text}

Notes on it:
{completion}

On a scale from 1 (poor) to 5 (excellent), the {criterion} of these notes is"""


def rubric(
  template: str = TEMPLATE,
  criteria: Sequence[str] = CRITERIA,
  role: str = 'base',
  marks: Sequence[str] = (' 1', ' 2', ' 3', ' 4', ' 5'),
  prompt_length: int = 512,
  chunk: int = 16,
  *,
  policy: Policy,
  tokenizer,
) -> Judge:
  """Score: mean over the criteria of the mark that the model expects, 1 for the first; an empty completion abstains.

  The expectation is over `marks` alone, by their log-probs after `template`, which has the completion at {completion}
  and the criterion at {criterion}, and may name {prompt} and {text}. A mark that is not the likeliest counts, so marks
  are finer than whole numbers and ties are rare.

  Args:
    marks: worst first, as the model would write them.
    prompt_length: tokens; a longer prompt is cut off on the left.
    chunk: prompts per device call.

  info: the mark of every criterion, by its name; `prompt_trimmed`, 1 where the prompt was cut.

  Raises:
    UserError: the template lacks {completion} or {criterion}, there are no criteria, or fewer than two different marks.
  """
  if missing := [name for name in ('{completion}', '{criterion}') if name not in template]:
    raise UserError(f'judge.template lacks {" and ".join(missing)}.')
  answers = [tokenizer.encode(mark) for mark in marks]
  if len(set(map(tuple, answers))) < max(2, len(answers)) or not all(answers) or not criteria:
    raise UserError('judge.marks are two or more different texts, and judge.criteria names at least one.')
  score_rows = scorer(policy, chunk)
  bos = tokenizer.bos_id if tokenizer.adds_bos else None

  def score(weights, key, group, examples) -> Judgement:
    del key
    B, G = group.length_BxG.shape
    texts = [[tokenizer.decode(ids).strip() for ids in row] for row in bodies(tokenizer, group)]
    ask = lambda example, text, name: tokenizer.plain(fill(template, example, completion=text, criterion=name))
    prompts = [ask(e, text, name) for e, row in zip(examples, texts) for text in row for name in criteria]
    ids_NxP, length_N, _ = pack_prompts(prompts, prompt_length, bos)
    said = pack_completions([answers] * len(prompts), max(map(len, answers)))[:2]
    logps_NxK = score_rows(weights[role], Prompts(ids_NxP, length_N), *said).sum(-1, dtype=np.float64)
    p = np.exp(logps_NxK - logps_NxK.max(-1, keepdims=True))
    expected = (p * np.arange(1, len(answers) + 1)).sum(-1) / p.sum(-1)
    empty = np.array([[not text for text in row] for row in texts])[..., None]
    marks_BxGxC = np.where(empty, np.nan, expected.reshape(B, G, -1)).astype(np.float32)
    cut = np.array([len(p) > prompt_length for p in prompts]).reshape(B, G, -1).any(-1)
    info = {name: jnp.asarray(marks_BxGxC[..., i]) for i, name in enumerate(criteria)}
    info['prompt_trimmed'] = jnp.asarray(cut, jnp.float32)
    return Judgement(jnp.asarray(marks_BxGxC.mean(-1)), info=info)

  def lower(weights, group):
    return score_rows.lower(weights[role], prompt_length, len(answers), max(map(len, answers)))

  return Judge(score, lower={'judge': lower})
