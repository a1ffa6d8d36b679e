"""Sampling groups: the prompt is prefilled once, all completions decode in one loop on the device.

Temperature, filters, stop ids and keys are traced: changing them compiles nothing. The noise of a row depends on
(prompt's key, member, position) alone, never on batch mates.
"""

import jax
import jax.numpy as jnp

from past_jax.types import Group, Policy, Prompts

BLOCK = 256


def filtered(logits, top_k, top_p, min_p):
  """Logits with everything outside top-k (0: off), top-p (1: off) and min-p (0: off) at -inf."""

  def apply(logits):
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    k = jnp.where(top_k > 0, jnp.minimum(top_k, logits.shape[-1]), logits.shape[-1])
    kth = jnp.take_along_axis(ordered, jnp.full((*logits.shape[:-1], 1), k - 1), axis=-1)
    probs = jax.nn.softmax(jnp.where(ordered >= kth, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # mass of likelier tokens; the first is always kept
    floor = jnp.min(jnp.where(before < top_p, ordered, ordered[..., :1]), axis=-1, keepdims=True)
    floor = jnp.maximum(floor, ordered[..., :1] + jnp.log(min_p))
    return jnp.where(logits >= jnp.maximum(kth, floor), logits, -jnp.inf)

  return jax.lax.cond((top_k > 0) | (top_p < 1) | (min_p > 0), apply, lambda x: x, logits)


def categorical(uniform, logits):
  """Inverse of the CDF, one uniform per row: [...], [..., V] -> [...]. Two levels, so no cumulative sum over V."""
  V = logits.shape[-1]
  pad = [(0, 0)] * (logits.ndim - 1) + [(0, -V % BLOCK)]
  p = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  p = jnp.pad(p, pad).reshape(*logits.shape[:-1], -1, BLOCK)

  def first_above(mass, target):
    """The first positive entry whose cumulative mass exceeds the target; rounding may not lead past the last one."""
    total = jnp.cumsum(mass, axis=-1)
    index = jnp.arange(mass.shape[-1]).reshape((1,) * (mass.ndim - 1) + (-1,))
    hit = (total > target[..., None]) & (mass > 0)
    last = jnp.max(jnp.where(mass > 0, index, 0), axis=-1)
    index = jnp.where(hit.any(axis=-1), jnp.argmax(hit, axis=-1), last)
    before = jnp.take_along_axis(total - mass, index[..., None], axis=-1)[..., 0]
    return index, target - before

  mass = p.sum(axis=-1)
  block, rest = first_above(mass, uniform * mass.sum(axis=-1))
  inside = jnp.take_along_axis(p, block[..., None, None], axis=-2)[..., 0, :]
  return block * BLOCK + first_above(inside, rest)[0]


def sample(
  policy: Policy,
  params,
  keys_B,
  prompts: Prompts,
  temperature,
  stop_ids,
  *,
  group: int,
  length: int,
  top_k=0,
  top_p=1.0,
  min_p=0.0,
) -> Group:
  """`group` completions of up to `length` tokens for every prompt.

  Args:
    keys_B: one PRNG key per prompt.
    temperature: scalar; 0 is greedy decoding.
    stop_ids: int array; a completion ends with the first of them, which belongs to it. -1 entries match nothing.
  """
  B, G, T = prompts.ids_BxP.shape[0], group, length
  top_k, top_p, min_p = jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p, jnp.float32), jnp.asarray(min_p, jnp.float32)
  temperature, stop_ids = jnp.asarray(temperature, jnp.float32), jnp.asarray(stop_ids, jnp.int32)
  member_keys = jax.vmap(lambda key: jax.vmap(lambda g: jax.random.fold_in(key, g))(jnp.arange(G)))(keys_B)

  def draw(hidden_BxGxD, t):
    logits = policy.head(params, hidden_BxGxD)
    scaled = filtered(logits / jnp.where(temperature > 0, temperature, 1.0), top_k, top_p, min_p)
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t))))(member_keys)
    token = jnp.where(temperature > 0, categorical(uniform, scaled), jnp.argmax(logits, axis=-1)).astype(jnp.int32)
    pick = lambda x: jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(x, axis=-1)
    return token, pick(logits), jnp.where(temperature > 0, pick(scaled), 0.0)

  def body(carry):
    t, hidden, cache, out, done = carry
    token, logp, behaviour = draw(hidden, t)
    token = jnp.where(done, 0, token)
    write = lambda all_, new: jax.lax.dynamic_update_slice(all_, jnp.where(done, 0, new)[..., None], (0, 0, t))
    out = {
      'ids': write(out['ids'], token),
      'logps': write(out['logps'], logp),
      'behaviour': write(out['behaviour'], behaviour),
      'length': out['length'] + ~done,
    }
    done = done | (token[..., None] == stop_ids[None, None]).any(axis=-1)
    hidden, cache = policy.decode(params, cache, token, t)
    return t + 1, hidden, cache, out, done

  hidden_BxD, prompt_cache = policy.prefill(params, prompts)
  hidden = jnp.broadcast_to(hidden_BxD[:, None], (B, G, hidden_BxD.shape[-1]))
  out = {
    'ids': jnp.zeros((B, G, T), jnp.int32),
    'logps': jnp.zeros((B, G, T), jnp.float32),
    'behaviour': jnp.zeros((B, G, T), jnp.float32),
    'length': jnp.zeros((B, G), jnp.int32),
  }
  carry = (jnp.int32(0), hidden, policy.start(prompt_cache, G, T), out, jnp.zeros((B, G), bool))
  _, _, _, out, done = jax.lax.while_loop(lambda c: (c[0] < T) & ~c[4].all(), body, carry)
  return Group(prompts, out['ids'], out['length'], done, out['logps'], out['behaviour'], jnp.zeros((B, G), jnp.int32))
