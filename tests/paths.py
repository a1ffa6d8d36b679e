"""The ways to a completion's log-probs, all (policy, params, prompts, ids_BxGxT, length_BxG) -> logps_BxGxT.

Log-probs are 0 where `token_mask` is False, so that the arrays can be compared as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from past_jax.logps import group_logps, token_mask
from past_jax.types import Policy, Prompts


def picked(policy: Policy, params, hidden, ids):
  logits = policy.head(params, hidden)
  return jnp.take_along_axis(logits, ids[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)


def by_group(policy: Policy, params, prompts: Prompts, ids_BxGxT, length_BxG):
  """The trainer's path."""
  return group_logps(policy, params, prompts, ids_BxGxT, length_BxG)


def by_rows(policy: Policy, params, prompts: Prompts, ids_BxGxT, length_BxG):
  """Every prompt + completion as a plain row [N = B * G, L = P + T], left-aligned."""
  (B, G, T), P = ids_BxGxT.shape, prompts.ids_BxP.shape[1]
  start_N = jnp.repeat(prompts.length_B, G)
  # Prompts end where completions begin, so a row is what is left of both after the prompt's pads.
  both_NxL = jnp.concatenate([jnp.repeat(prompts.ids_BxP, G, axis=0), ids_BxGxT.reshape(B * G, T)], axis=1)
  ids_NxL = jax.vmap(jnp.roll)(both_NxL, start_N - P)
  hidden = policy.rows(params, ids_NxL, start_N + length_BxG.reshape(-1))
  logps_NxL = picked(policy, params, hidden[:, :-1], ids_NxL[:, 1:])  # [n, l]: of token l + 1
  own_NxT = jnp.maximum(start_N[:, None] + jnp.arange(T)[None] - 1, 0)
  logps = jnp.take_along_axis(logps_NxL, own_NxT, axis=1).reshape(B, G, T)
  return jnp.where(token_mask(prompts, length_BxG, T), logps, 0.0)


def by_decode(policy: Policy, params, prompts: Prompts, ids_BxGxT, length_BxG):
  """The sampler's path with the tokens given: prefill, then one token of every completion at a time."""
  B, G, T = ids_BxGxT.shape
  hidden_BxD, prompt_cache = policy.prefill(params, prompts)
  params = policy.unstack(params)
  hidden = jnp.broadcast_to(hidden_BxD[:, None], (B, G, hidden_BxD.shape[-1]))

  def step(carry, t):
    hidden, cache = carry
    ids_BxG = jax.lax.dynamic_index_in_dim(ids_BxGxT, t, axis=2, keepdims=False)
    age_BxG = jnp.full((B, G), t)
    return policy.decode(params, prompt_cache, cache, ids_BxG, age_BxG), picked(policy, params, hidden, ids_BxG)

  _, logps = jax.lax.scan(step, (hidden, policy.start(prompt_cache, G, T)), jnp.arange(T))
  return jnp.where(token_mask(prompts, length_BxG, T), jnp.moveaxis(logps, 0, 2), 0.0)


def ragged(seed: int, prompt_lengths, completion_lengths, P: int, T: int, vocab: int = 260):
  """(prompts, ids_BxGxT, length_BxG) of random ids; the pads are random too, since nothing may read them."""
  rng = np.random.default_rng(seed)
  length_BxG = np.asarray(completion_lengths, np.int32)
  ids_BxP = rng.integers(0, vocab, (len(prompt_lengths), P)).astype(np.int32)
  ids_BxGxT = rng.integers(0, vocab, (*length_BxG.shape, T)).astype(np.int32)
  return Prompts(ids_BxP, np.asarray(prompt_lengths, np.int32)), ids_BxGxT, length_BxG


def rows_of(prompts: Prompts, ids_BxGxT, length_BxG) -> list[list[int]]:
  """The B * G prompts + completions as lists of ids."""
  P = prompts.ids_BxP.shape[1]
  return [
    [*map(int, prompts.ids_BxP[b, P - prompts.length_B[b] :]), *map(int, ids_BxGxT[b, g, : length_BxG[b, g]])]
    for b in range(ids_BxGxT.shape[0])
    for g in range(ids_BxGxT.shape[1])
  ]
