"""A model whose next token depends on the last one alone, by a table of logits, and a loop that scores it. No tests."""

import jax
import jax.numpy as jnp
import numpy as np

from past_jax.text import byte_tokenizer
from past_jax.types import Policy

TOKENIZER = byte_tokenizer()
V = TOKENIZER.vocab_size


def last_token_policy() -> Policy:
  one_hot = lambda ids: jax.nn.one_hot(ids, V)

  def group(params, prompts, ids_BxGxT, length_BxG):
    B, G, _ = ids_BxGxT.shape
    first = jnp.broadcast_to(prompts.ids_BxP[:, None, -1:], (B, G, 1))
    return one_hot(jnp.concatenate([first, ids_BxGxT[:, :, :-1]], axis=2))

  return Policy(
    init=None,
    rows=None,
    groups=lambda params, batches: [group(params, *batch) for batch in batches],
    head=lambda params, hidden: hidden @ params,
    prefill=lambda params, prompts: (one_hot(prompts.ids_BxP[:, -1]), jnp.zeros((len(prompts.length_B), 1))),
    unstack=lambda params: params,
    start=lambda prompt_cache, G, T: jnp.zeros((len(prompt_cache), G)),
    decode=lambda params, prompt_cache, cache, ids_BxG, age_BxG: (one_hot(ids_BxG), cache),
  )


POLICY = last_token_policy()
TABLE_VxV = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32) * 2


def logp(prompt, completion, table=TABLE_VxV, end=False):
  """Sum of the log-probs of the completion's tokens, one by one."""
  ids = TOKENIZER.encode(prompt + completion) + [TOKENIZER.eos_id] * end
  logits = np.asarray(table, np.float64)
  start = len(TOKENIZER.encode(prompt))
  return sum(logits[ids[i - 1], ids[i]] - np.log(np.exp(logits[ids[i - 1]]).sum()) for i in range(start, len(ids)))
