"""Log-probabilities of completions: the one function that trainer, judges and evaluations share."""

import jax
import jax.numpy as jnp

from past_jax.types import Policy, Prompts

CHUNK = 1024  # tokens whose logits exist at once


def token_mask(prompts: Prompts, length_BxG, T: int):
  """bool_BxGxT: tokens that have a log-prob. The first token after an empty prompt has none: nothing precedes it."""
  t = jnp.arange(T)[None, None]
  return (t < length_BxG[:, :, None]) & ((t > 0) | (prompts.length_B > 0)[:, None, None])


def group_logps(policy: Policy, params, prompts: Prompts, ids_BxGxT, length_BxG, *, chunk: int = CHUNK):
  """log p(token | prompt, earlier tokens of its completion), logps_BxGxT float32; 0 where `token_mask` is False.

  Exactly what scoring each prompt + completion alone would give, with the prompt computed once. The head runs on
  completion positions only, in slices of T of about `chunk` tokens, recomputed in the backward pass, so that no array
  holds the vocabulary for all tokens of the batch. A batch of at most `chunk` tokens is one slice, which is kept.
  """
  B, G, T = ids_BxGxT.shape
  hidden = policy.group(params, prompts, ids_BxGxT, length_BxG)
  width = max(1, min(T, chunk // (B * G)))
  slices = -(-T // width)
  pad = slices * width - T
  hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
  ids = jnp.pad(ids_BxGxT, ((0, 0), (0, 0), (0, pad)))

  def score(hidden_BxGxtxD, ids_BxGxt):
    logits = policy.head(params, hidden_BxGxtxD)
    picked = jnp.take_along_axis(logits, ids_BxGxt[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)

  if slices == 1:
    logps = score(hidden, ids)  # few enough tokens to keep their logits for the backward pass
  else:
    split = lambda x: jnp.moveaxis(x.reshape(B, G, slices, width, *x.shape[3:]), 2, 0)
    logps = jax.lax.map(jax.checkpoint(lambda s: score(*s)), (split(hidden), split(ids)))
    logps = jnp.moveaxis(logps, 0, 2).reshape(B, G, slices * width)
  return jnp.where(token_mask(prompts, length_BxG, T), logps[:, :, :T], 0.0)
