"""Attention over a tree (see transformer.py): exact, masked blocks skipped, scores recomputed in the backward pass.

Heads lead in here: queries are q_BxKxGxRxTxD (R query heads beside each of K key heads), keys and values of a prompt
pk_BxKxPxD, of completions ok_BxKxGxTxD, so that each product is a batch of plain matrix products without a copy.
"""

import functools

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a fully masked row (a pad) must not become NaN
BLOCKS = 8  # of a row's queries: block i reads the keys up to its end, so 1/16 of the square is wasted work
BLOCK = 128  # the fewest queries of a block, so of 512 tokens 1/8 is wasted
SCORES = 1 << 22  # entries: completions whose scores exist at once


def exact(dtype):
  """float32 means float32: a TPU's default would round the inputs of every product to bfloat16."""
  return 'highest' if dtype == jnp.float32 else None


def product(equation, *operands):
  """einsum with a float32 result."""

  def einsum(*operands):
    return jnp.einsum(equation, *operands, precision=exact(operands[0].dtype), preferred_element_type=jnp.float32)

  if operands[0].dtype == jnp.float32:
    return einsum(*operands)
  # XLA's CPU backend has no such product for every layout of bfloat16; in float32 it is the same.
  wide = lambda *operands: einsum(*(x.astype(jnp.float32) for x in operands))
  return jax.lax.platform_dependent(*operands, cpu=wide, default=einsum)


def capped(x, cap: float):
  """Gemma 2's soft capping (arXiv 2408.00118, section 2)."""
  return cap * jnp.tanh(x / cap) if cap else x


def visible(query_slot, key_slot, window):
  """bool [queries, keys]: keys that are not after the query, and in its window (None: any)."""
  distance = query_slot[:, None] - key_slot[None, :]
  return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def blocks(length: int) -> list[tuple[int, int]]:
  size = max(BLOCK, -(-length // BLOCKS))
  return [(start, min(start + size, length)) for start in range(0, length, size)]


PROMPT, OWN = 'bkgrtd,bksd->bkgrts', 'bkgrtd,bkgsd->bkgrts'  # query-key products of a part


def transposed(equation: str) -> tuple[str, str]:
  """Of a query-key product: (weights, values -> outputs), (queries, weights -> keys, their last axes swapped).

  Swapped, because transposing queries and results is cheap beside transposing the weights.
  """
  queries, keys, scores = equation.replace('->', ',').split(',')
  return f'{scores},{keys}->{queries}', f'{queries},{scores}->{keys[:-2]}{keys[-1]}{keys[-2]}'


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(scale: float, cap: float, q, parts):
  """softmax over all parts' keys -> out like q. `parts`: {equation: (keys, values, mask like the scores)}.

  The backward pass keeps queries, keys, outputs and one number per query (arXiv 2205.14135), no scores.
  """
  return _attend(scale, cap, q, parts)[0]


def _scores(scale, cap, equation, q, part):
  return jnp.where(part[2], capped(product(equation, q, part[0]) * scale, cap), MASKED)


def _attend(scale, cap, q, parts):
  scores = {e: _scores(scale, cap, e, q, part) for e, part in parts.items()}
  top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores.values()])
  weights = {e: jnp.exp(s - top) for e, s in scores.items()}
  total = sum(w.sum(-1, keepdims=True) for w in weights.values())
  out = sum(product(transposed(e)[0], w.astype(q.dtype), parts[e][1]) for e, w in weights.items())
  return (out / total).astype(q.dtype), top + jnp.log(total)


def _forward(scale, cap, q, parts):
  out, normaliser = _attend(scale, cap, q, parts)
  return out, (q, parts, out, normaliser)


def _backward(scale, cap, kept, d_out):
  q, parts, out, normaliser = kept
  dot = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
  dq, d_parts = jnp.zeros(q.shape, jnp.float32), {}
  for e, (k, v, mask) in parts.items():
    to_query, to_key = transposed(e)
    s = _scores(scale, cap, e, q, (k, v, mask))
    w = jnp.exp(s - normaliser)
    ds = w * (product(e, d_out, v) - dot) * scale
    if cap:
      ds *= jnp.where(mask, 1 - (s / cap) ** 2, 0.0)
    ds, w = ds.astype(q.dtype), w.astype(q.dtype)
    dq += product(to_query, ds, k)
    dk, dv = (jnp.swapaxes(product(to_key, *x), -1, -2).astype(k.dtype) for x in ((q, ds), (d_out, w)))
    d_parts[e] = (dk, dv, None)
  return dq.astype(q.dtype), d_parts


attend.defvjp(_forward, _backward)


def tree_attention(q_BxSxHxD, k_BxSxKxD, v_BxSxKxD, valid_BxP, slots_T, window, *, scale: float, cap: float):
  """S = P + G*T: prompt tokens attend to their prompt, completions to the prompt and themselves. out_BxSxHxD.

  Args:
    valid_BxP: which prompt tokens are real.
    slots_T: slots of a completion's tokens.
    window: how many tokens a token sees, an int scalar; None: all.
  """
  (B, S, H, D), K = q_BxSxHxD.shape, k_BxSxKxD.shape[2]
  P, T, R = valid_BxP.shape[1], len(slots_T), H // K
  outs = []
  pk, pv = (jnp.moveaxis(x[:, :P], 2, 1) for x in (k_BxSxKxD, v_BxSxKxD))
  slots = jnp.arange(P)
  wide = lambda mask: mask[:, None, None, None]
  if P:
    q = jnp.transpose(q_BxSxHxD[:, :P].reshape(B, 1, P, K, R, D), (0, 3, 1, 4, 2, 5))
    for start, end in blocks(P):
      mask = visible(slots[start:end], slots[:end], window)[None] & valid_BxP[:, None, :end]
      part = {PROMPT: (pk[:, :, :end], pv[:, :, :end], wide(mask))}
      outs.append(attend(scale, cap, q[:, :, :, :, start:end], part))
    out = jnp.concatenate(outs, axis=4)
    outs = [jnp.transpose(out, (0, 2, 4, 1, 3, 5)).reshape(B, P, H, D)]
  if S > P:
    G = (S - P) // T
    q = jnp.transpose(q_BxSxHxD[:, P:].reshape(B, G, T, K, R, D), (0, 3, 1, 4, 2, 5))
    ok, ov = (jnp.moveaxis(x[:, P:].reshape(B, G, T, K, D), 3, 1) for x in (k_BxSxKxD, v_BxSxKxD))
    own = P + jnp.arange(T)
    done = []
    for start, end in blocks(T):
      query_slots, together = slots_T[start:end], max(1, min(G, SCORES // (B * H * (end - start) * (P + end))))
      seen = wide(visible(query_slots, slots, window)[None] & valid_BxP[:, None])
      mask = wide(visible(query_slots, own[:end], window)[None])
      chunks = []
      for some in (slice(g, g + together) for g in range(0, G, together)):
        parts = {OWN: (ok[:, :, some, :end], ov[:, :, some, :end], mask)}
        parts |= {PROMPT: (pk, pv, seen)} if P else {}
        chunks.append(attend(scale, cap, q[:, :, some, :, start:end], parts))
      done.append(jnp.concatenate(chunks, axis=2))
    out = jnp.concatenate(done, axis=4)
    outs.append(jnp.transpose(out, (0, 2, 4, 1, 3, 5)).reshape(B, S - P, H, D))
  return jnp.concatenate(outs, axis=1)


def grouped(q, kv_heads):
  """[..., H, Dh] -> [..., K, R, Dh]: query heads beside the key head they share."""
  return q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])


def decode_attention(q_BxGxHxD, prompt_kv, own_kv, seen_BxGxP, own_BxGxT, score):
  """One token of every completion attends to its prompt (k_BxKxDxP, v_BxKxPxD) and itself (k_BxGxKxDxT, v_BxGxKxTxD).

  Batch axes lead in both caches, and the axis that a product sums over comes before the other, so that products read
  them as they lie: in other orders XLA copies a cache per token, or takes up to twice the time. The sum of weights
  divides the result, which is smaller than they are.
  """
  (pk, pv), (ok, ov) = prompt_kv, own_kv
  q = grouped(q_BxGxHxD, ok.shape[2])
  seen = score(product('bgkrd,bkds->bkgrs', q, pk))
  own = score(product('bgkrd,bgkdt->bgkrt', q, ok))
  seen = jnp.where(seen_BxGxP[:, None, :, None], seen, MASKED)
  own = jnp.where(own_BxGxT[:, :, None, None], own, MASKED)
  turn = lambda x: jnp.moveaxis(x, 1, 2)  # between bgkr and bkgr
  top = jnp.maximum(turn(seen.max(axis=-1, keepdims=True)), own.max(axis=-1, keepdims=True))
  seen, own = jnp.exp(seen - turn(top)), jnp.exp(own - top)
  total = turn(seen.sum(axis=-1, keepdims=True)) + own.sum(axis=-1, keepdims=True)
  out = turn(product('bkgrs,bksd->bkgrd', seen.astype(pv.dtype), pv))
  out += product('bgkrt,bgktd->bgkrd', own.astype(ov.dtype), ov)
  return (out / total).astype(q.dtype).reshape(q_BxGxHxD.shape)
