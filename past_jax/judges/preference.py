"""A language model asked which of two completions is better, in both orders: models favour a position (2306.05685)."""

import itertools
import re

import jax.numpy as jnp
import numpy as np

from past_jax.judges.rows import bodies
from past_jax.logps import scorer
from past_jax.text import pack_completions, pack_prompts
from past_jax.types import Judge, Judgement, Policy, Prompts, UserError

TEMPLATE = """Text:
{text}

Note A: {a}
Note B: {b}

The note that is true to the text and says the most about it is note"""


def preference(
  template: str = TEMPLATE,
  role: str = 'base',
  first: str = ' A',
  second: str = ' B',
  prompt_length: int = 512,
  chunk: int = 16,
  *,
  policy: Policy,
  tokenizer,
) -> Judge:
  """Score: share of its non-tied opponents that a completion beats, as probability; NaN if it tied with all.

  The model reads `template` with the two completions at {a} and {b}; the probability that the first is better is
  sigmoid(log p(first) - log p(second)). wins_BxGxG[b, i, j] averages both orders. Orders that name different winners
  (or none) make a tie: 0.5, and neither score counts it. Empty completions tie with everything. All pairs are judged,
  so a round costs B*G*(G-1) prompts.

  Args:
    template: may also name {prompt}, {text} and {target} of the example. Its end has no space if the answers begin
      with one.
    first, second: what the model would write for the first or the second; texts of one or more tokens.
    prompt_length: tokens; a longer prompt is cut off on the left.
    chunk: prompts per device call.

  info, per completion: `ties`, the share of its pairs that tie; `order_disagreement`, the share in which the orders
  name different winners; `prompt_trimmed`, the share of its prompts cut.

  Raises:
    UserError: the template lacks {a} or {b}, or the answers are equal or empty.
  """
  missing = [name for name in ('{a}', '{b}') if name not in template]
  if missing:
    raise UserError(f'judge.template lacks {" and ".join(missing)}, where the two completions go.')
  parts = re.split(r'\{(prompt|text|target|a|b)\}', template)  # literal, name, literal, ..., literal
  literals = [tokenizer.encode(part, start=not i) for i, part in enumerate(parts[::2])]
  answers = [tokenizer.encode(first), tokenizer.encode(second)]
  if answers[0] == answers[1] or not all(answers):
    raise UserError(f'judge.first={first!r} and judge.second={second!r} must differ and not be empty.')
  bos = tokenizer.plain('')
  score_rows = scorer(policy, chunk)

  def ask(example_ids, a, b):
    fields = example_ids | {'a': a, 'b': b}
    filled = [ids for literal, name in zip(literals, parts[1::2]) for ids in (literal, fields[name])]
    prompt = list(itertools.chain(*filled, literals[-1]))
    return prompt if prompt[: len(bos)] == bos else bos + prompt

  def score(weights, key, group, examples) -> Judgement:
    del key
    B, G = group.length_BxG.shape
    given = bodies(tokenizer, group)
    orders = list(itertools.permutations(range(G), 2))
    prompts = []
    for example, members in zip(examples, given, strict=True):
      ids = {name: tokenizer.encode(getattr(example, name)) for name in ('prompt', 'text', 'target')}
      prompts += [ask(ids, members[i], members[j]) for i, j in orders]
    ids_NxP, length_N, _ = pack_prompts(prompts, prompt_length, tokenizer.bos_id if bos else None)
    ids_NxKxT, length_NxK, _ = pack_completions([answers] * len(prompts), max(map(len, answers)))
    logps = score_rows(weights[role], Prompts(ids_NxP, length_N), ids_NxKxT, length_NxK).sum(-1, dtype=np.float64)
    odds_BxGxG, trimmed_BxGxG = np.zeros((2, B, G, G))  # [i, j]: log-odds of the first, i being first
    if orders:  # a group of one has none
      i, j = np.array(orders).T
      odds_BxGxG[:, i, j] = (logps[:, 0] - logps[:, 1]).reshape(B, -1)
      trimmed_BxGxG[:, i, j] = np.array([len(p) > prompt_length for p in prompts]).reshape(B, -1)

    swapped_BxGxG = -odds_BxGxG.swapaxes(1, 2)  # the same question about the same pair, i being second
    empty_BxG = np.array([[not ids for ids in row] for row in given]).reshape(B, G)
    agreed = np.sign(odds_BxGxG) * np.sign(swapped_BxGxG) > 0
    agreed &= ~(empty_BxG[:, :, None] | empty_BxG[:, None, :])
    sigmoid = lambda x: 0.5 * (1 + np.tanh(x / 2))
    wins = np.where(agreed, (sigmoid(odds_BxGxG) + sigmoid(swapped_BxGxG)) / 2, 0.5)
    decided = agreed.sum(-1)
    mean = np.where(agreed, wins, 0).sum(-1) / np.maximum(decided, 1)
    share = lambda pairs: jnp.asarray(pairs.sum(-1) / max(G - 1, 1), jnp.float32)
    info = {
      'ties': share(~agreed & ~np.eye(G, dtype=bool)[None]),
      'order_disagreement': share(np.sign(odds_BxGxG) * np.sign(swapped_BxGxG) < 0),
      'prompt_trimmed': share((trimmed_BxGxG + trimmed_BxGxG.swapaxes(1, 2)) / 2),
    }
    scores = jnp.asarray(np.where(decided > 0, mean, np.nan), jnp.float32)
    return Judgement(scores, wins_BxGxG=jnp.asarray(wins, jnp.float32), info=info)

  def lower(weights, group):
    return score_rows.lower(weights[role], prompt_length, 2, max(map(len, answers)))

  return Judge(score, lower={'judge': lower})
