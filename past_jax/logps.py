"""Log-probabilities of completions: the one function that trainer, judges and evaluations share."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from past_jax import mesh as mesh_lib
from past_jax.types import Array, Policy, Prompts

Rows = tuple[Prompts, Array, Array]  # prompts, ids_BxGxT, length_BxG

CHUNK = 1024  # tokens of a device whose logits exist at once
STATISTICS = {  # of the distribution of a token, from its log-probs logp_...xV
  'log_sum_sq': lambda logp: jax.nn.logsumexp(2 * logp, axis=-1),  # log sum_v p(v)^2
  'top': lambda logp: logp.max(-1),  # nats: the log-prob of the likeliest token
  'entropy': lambda logp: -(jnp.exp(logp) * logp).sum(-1),  # nats
}


def token_mask(prompts: Prompts, length_BxG, T: int):
  """bool_BxGxT: tokens that have a log-prob. The first token after an empty prompt has none: nothing precedes it."""
  t = jnp.arange(T)[None, None]
  return (t < length_BxG[:, :, None]) & ((t > 0) | (prompts.length_B > 0)[:, None, None])


def pick(logits, ids):
  """logits[..., ids]. Where the vocabulary is split over devices, without gathering it."""
  if not mesh_lib.split_over('fsdp', 'tensor'):
    return jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  vocab = jnp.arange(logits.shape[-1]).reshape((1,) * ids.ndim + (-1,))
  return jnp.where(vocab == ids[..., None], logits, 0.0).sum(axis=-1)


def outputs(
  policy: Policy,
  params,
  batches: Mapping[str, Rows],
  statistics: Mapping[str, Sequence[str]],
  *,
  chunk: int = CHUNK,
) -> dict[str, dict[str, Array]]:
  """Of each batch `logps_BxGxT`, log p(token | prompt, earlier tokens of its completion), and what is asked for.

  All are float32, and 0 where `token_mask` is False. They are exactly what scoring each prompt + completion alone would
  give, with the prompt computed once, and all batches in one pass through the layers. The head runs on completion
  positions only, in slices of T of about `chunk` tokens per device, recomputed in the backward pass, so that no array
  holds the vocabulary for all tokens of a batch. A batch of at most so many tokens is one slice, which is kept.

  Args:
    statistics: for each batch names in `STATISTICS`, computed from the same logits.
  """
  hidden = dict(zip(batches, policy.groups(params, list(batches.values()))))
  head = functools.partial(policy.head, policy.unembed(params))

  def scores(names, hidden_BxGxtxD, ids_BxGxt):
    logits = head(hidden_BxGxtxD)
    total = jax.nn.logsumexp(logits, axis=-1)
    picked = pick(logits, ids_BxGxt)
    return {'logps': picked - total} | {name: STATISTICS[name](logits - total[..., None]) for name in names}

  def sliced(score, hidden, ids, mask):
    B, G, T = ids.shape
    slices = -(-T // max(1, chunk * mesh_lib.devices() // (B * G)))  # logits are spread over all devices
    width = -(-T // slices)  # of equal slices, so that least is padded
    pad = slices * width - T
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    ids = jnp.pad(ids, ((0, 0), (0, 0), (0, pad)))
    if slices == 1:
      out = score(hidden, ids)  # few enough tokens to keep their logits for the backward pass
    else:
      split = lambda x: jnp.moveaxis(x.reshape(B, G, slices, width, *x.shape[3:]), 2, 0)
      out = jax.lax.map(jax.checkpoint(lambda s: score(*s)), (split(hidden), split(ids)))
      out = {name: jnp.moveaxis(x, 0, 2).reshape(B, G, slices * width) for name, x in out.items()}
    return {f'{name}_BxGxT': jnp.where(mask, x[:, :, :T], 0.0) for name, x in out.items()}

  return {
    name: sliced(
      functools.partial(scores, statistics[name]), hidden[name], ids, token_mask(prompts, length, ids.shape[2])
    )
    for name, (prompts, ids, length) in batches.items()
  }


def group_outputs(
  policy: Policy, params, *rows, statistics: Sequence[str] = (), chunk: int = CHUNK
) -> dict[str, Array]:
  """`outputs` of one batch: rows are prompts, ids_BxGxT, length_BxG."""
  return outputs(policy, params, {'': rows}, {'': statistics}, chunk=chunk)['']


def group_logps(policy: Policy, params, prompts: Prompts, ids_BxGxT, length_BxG, *, chunk: int = CHUNK) -> Array:
  """logps_BxGxT of `outputs`, of one batch."""
  return group_outputs(policy, params, prompts, ids_BxGxT, length_BxG, chunk=chunk)['logps_BxGxT']


def scorer(policy: Policy, chunk: int, of=group_logps):
  """`group_logps`, or another such function, for any number of prompts, `chunk` at a time.

  Every call has the same shapes: one program, and memory that does not grow with the round. The last call is filled up
  by repeating a row.

  Returns:
    score(params, prompts, ids_NxKxT, length_NxK) -> what `of` gives, such as logps_NxKxT, numpy float32;
    `score.lower(params, P, K, T)` is the program of a call, lowered
  """
  # Replicated at the end, so that every process can read all of it.
  program = jax.jit(lambda *args: mesh_lib.constrain(of(policy, *args)))

  def score(params, prompts: Prompts, ids_NxKxT, length_NxK) -> np.ndarray:
    rows = mesh_lib.host((Prompts(prompts.ids_BxP, prompts.length_B), ids_NxKxT, length_NxK))
    N = len(rows[2])
    if N == 0:
      return np.zeros(ids_NxKxT.shape, np.float32)
    picks = [np.minimum(np.arange(start, start + chunk), N - 1) for start in range(0, N, chunk)]
    calls = [program(params, *jax.tree.map(functools.partial(np.take, indices=pick, axis=0), rows)) for pick in picks]
    return np.concatenate(mesh_lib.host(calls))[:N]

  def lower(params, P: int, K: int, T: int):
    ints = lambda *shape: jax.ShapeDtypeStruct((chunk, *shape), np.int32)
    return program.lower(params, Prompts(ints(P), ints()), ints(K, T), ints(K))

  score.lower = lower
  return score
