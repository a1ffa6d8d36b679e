"""How much a completion, read first, helps a frozen model to predict a target (the reward of arXiv 2510.01265)."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from past_jax.judges.rows import bodies
from past_jax.logps import scorer
from past_jax.text import pack_completions, pack_prompts
from past_jax.types import Example, Judge, Judgement, Policy, Prompts, UserError

Target = Literal['text', 'target', 'answers']
NEEDS = {'text': 'text', 'target': 'target', 'answers': 'questions'}  # target -> the field of Example that it reads


def overlap(ids: list[int], passage: list[int], n: int) -> float:
  """Share of the n-grams of `ids` that occur in `passage`; fewer than n ids count as one shorter n-gram."""
  n = min(n, len(ids))
  grams = lambda row: [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
  seen, own = set(grams(passage)), grams(ids)
  return sum(gram in seen for gram in own) / len(own)


def likelihood_gain(
  target: Target = 'text',
  role: str = 'base',
  joiner: str = '\n',
  max_overlap: float = 0.5,
  ngram: int = 4,
  target_length: int = 128,
  chunk: int = 16,
  *,
  policy: Policy,
  tokenizer,
) -> Judge:
  """Score: log p(target | completion + joiner) - log p(target) in nats, under the frozen `role`.

  Both terms are over the same tokens: where the tokenizer adds no BOS to plain text, nothing predicts the first token
  of a target alone, and it is left out of both. Copies would be the best predictors of the passage, so a completion
  abstains when more than `max_overlap` of its token n-grams occur in the passage; an empty or blank one abstains too.

  Args:
    target: `text`: the passage itself; `target`: the example's held-out sentence; `answers`: the sum over its questions
      of log p(answer | completion + joiner, question) - log p(answer | question).
    target_length: tokens of a target, the question included; the rest is cut off and counted in info `target_trimmed`.
    chunk: completions per device call.

  info: `overlap`; `gain_per_token` (NaN where abstaining); `target_trimmed`, the share of an example's targets cut.

  Raises:
    UserError: an unknown `target` (when built), an example without one, or a question that leaves its answer no room in
      `target_length`.
  """
  if target not in get_args(Target):
    raise UserError(f'judge.target={target!r}: choose one of {", ".join(get_args(Target))}.')
  score_rows = scorer(policy, chunk)
  bos, join = tokenizer.plain(''), tokenizer.encode(joiner)

  def targets(example: Example) -> list[tuple[list[int], int]]:
    """(ids, where the scored part starts) of everything to predict."""
    if not getattr(example, NEEDS[target]):
      raise UserError(
        f'{example.where}: judge likelihood_gain with target={target} needs `{NEEDS[target]}`, and this row has none.'
      )
    if target != 'answers':
      return [(tokenizer.encode(getattr(example, NEEDS[target])), 0 if bos else 1)]
    asked = [(tokenizer.encode(q.question), tokenizer.encode(' ' + q.answer)) for q in example.questions]
    if any(len(question) >= target_length for question, _ in asked):
      raise UserError(f'{example.where}: a question fills judge.target_length={target_length} tokens; make it longer.')
    return [(question + answer, max(len(question), 0 if bos else 1)) for question, answer in asked]

  def score(weights, key, group, examples) -> Judgement:
    del key
    B, G, T = group.ids_BxGxT.shape
    wanted = [targets(example) for example in examples]
    given = bodies(tokenizer, group)
    shared = np.zeros((B, G), np.float32)
    rows = {}  # (context, target) -> row number; equal rows, such as those of copies of a completion, are scored once
    row = lambda context, ids: rows.setdefault((tuple(context), tuple(ids)), len(rows))
    pairs = {}  # (b, g) -> [(row with the completion, row without, first scored token)]
    for b, example in enumerate(examples):
      passage = tokenizer.encode(example.text)
      for g, ids in enumerate(given[b]):
        # Encoded again, since sampled ids need not be the tokenizer's own for their text: a copy stays a copy.
        text = tokenizer.decode(ids).strip()
        if not text:
          continue
        shared[b, g] = overlap(tokenizer.encode(text), passage, ngram)
        if shared[b, g] <= max_overlap:
          pairs[b, g] = [(row(bos + ids + join, t), row(bos, t), start) for t, start in wanted[b]]

    contexts, predicted = ([list(part) for part in parts] for parts in zip(*rows)) if rows else ([], [])
    ids_NxP, length_N, _ = pack_prompts(contexts, len(bos) + T + len(join))
    ids_NxKxT, length_NxK, _ = pack_completions([[ids] for ids in predicted], target_length)
    logps_NxT = score_rows(weights[role], Prompts(ids_NxP, length_N), ids_NxKxT, length_NxK).astype(np.float64)[:, 0]
    gain, per_token = np.full((2, B, G), np.nan, np.float32)
    for (b, g), terms in pairs.items():
      tokens = sum(max(0, int(length_NxK[without, 0]) - start) for _, without, start in terms)
      if tokens:
        gain[b, g] = sum(float((logps_NxT[w, s:] - logps_NxT[wo, s:]).sum()) for w, wo, s in terms)
        per_token[b, g] = gain[b, g] / tokens
    trimmed = np.array([np.mean([len(ids) > target_length for ids, _ in row]) for row in wanted], np.float32)
    info = {'overlap': shared, 'gain_per_token': per_token, 'target_trimmed': np.repeat(trimmed[:, None], G, axis=1)}
    return Judgement(jnp.asarray(gain), info={name: jnp.asarray(x) for name, x in info.items()})

  def lower(weights, group):
    return score_rows.lower(weights[role], len(bos) + group.ids_BxGxT.shape[2] + len(join), 1, target_length)

  return Judge(score, lower={'judge': lower})
