"""A decoder-only transformer (Llama family) in linen, seen from outside only as a `Policy`.

Linen is used as a frozen subset (Module, param, remat, scan); parameters are a plain nested dict with the layers
stacked on a leading axis, caches are explicit arguments and results.

One row of the trunk is a *tree*: a prompt of `P` tokens (right-aligned) followed by `G` completions of `T` tokens
(left-aligned), laid out as S = P + G*T tokens. Prompt tokens attend to the prompt, a completion's tokens to the prompt
and to their own completion, and positions restart after the prompt's true length. That is exactly what each
prompt + completion would compute alone, with the prompt computed once. A plain row is the tree with P = 0 and G = 1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from past_jax import mesh as mesh_lib
from past_jax.models.config import ModelConfig
from past_jax.types import Policy, Prompts

MASKED = -1e30  # finite: a fully masked row (a pad) must not become NaN

RULES = (  # parameter path -> mesh axes, leading axis of `layers/` is the layer
  ('embed/embedding$', ('tensor', 'fsdp')),
  ('head/kernel$', ('fsdp', 'tensor')),
  ('(q|k|v)/kernel$', (None, 'fsdp', 'tensor', None)),
  ('o/kernel$', (None, 'tensor', None, 'fsdp')),
  ('(gate|up)/kernel$', (None, 'fsdp', 'tensor')),
  ('down/kernel$', (None, 'tensor', 'fsdp')),
  ('scale$', ()),
)


def rotary(x, positions_BxS, theta):
  """Rotates pairs (i, i + half) of the last axis of x_BxSxHxDh by position (RoPE, arXiv 2104.09864)."""
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BxS[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def exact(dtype):
  """float32 means float32: a TPU's default would round the inputs of every product to bfloat16."""
  return 'highest' if dtype == jnp.float32 else None


def product(equation, *operands, **kwargs):
  return jnp.einsum(equation, *operands, precision=exact(operands[0].dtype), **kwargs)


def grouped(q, kv_heads):
  """[..., H, Dh] -> [..., K, R, Dh]: query heads beside the key head they share."""
  return q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])


def prompt_attention(q_BxPxHxD, k_BxPxKxD, v_BxPxKxD, valid_BxP):
  """Causal attention among prompt tokens; pads on the left are keys of nobody."""
  P = valid_BxP.shape[1]
  q = grouped(q_BxPxHxD, k_BxPxKxD.shape[2])
  scores = product('bqkrd,bskd->bkrqs', q, k_BxPxKxD, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  mask = jnp.tril(jnp.ones((P, P), bool))[None] & valid_BxP[:, None, :]
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v_BxPxKxD.dtype)
  return product('bkrqs,bskd->bqkrd', weights, v_BxPxKxD).reshape(q_BxPxHxD.shape)


def completion_attention(q_BxGxQxHxD, prompt_kv, own_kv, valid_BxP, mask_QxT):
  """Completion tokens attend to their prompt (k_BxPxKxD) and to their own completion (k_BxGxTxKxD) under `mask_QxT`."""
  (pk, pv), (ok, ov) = prompt_kv, own_kv
  q = grouped(q_BxGxQxHxD, ok.shape[-2])
  P = valid_BxP.shape[1]
  own = product('bgqkrd,bgskd->bgkrqs', q, ok, preferred_element_type=jnp.float32)
  own = jnp.where(mask_QxT[None, None, None, None], own * q.shape[-1] ** -0.5, MASKED)
  seen = product('bgqkrd,bskd->bgkrqs', q, pk, preferred_element_type=jnp.float32)
  seen = jnp.where(valid_BxP[:, None, None, None, None], seen * q.shape[-1] ** -0.5, MASKED)
  weights = jax.nn.softmax(jnp.concatenate([seen, own], axis=-1), axis=-1).astype(ov.dtype)
  out = product('bgkrqs,bskd->bgqkrd', weights[..., :P], pv)
  out += product('bgkrqs,bgskd->bgqkrd', weights[..., P:], ov)
  return out.reshape(q_BxGxQxHxD.shape)


class RMSNorm(nn.Module):
  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Block(nn.Module):
  """One layer. `carry` is x_BxSxD, or when decoding (x_BxGxD, k, v) with the whole stack's completion cache.

  In the carry the cache is updated in place; as a scanned input and output it would be copied once per token.
  """

  config: ModelConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, carry, layer, shared):
    c, decoding = self.config, isinstance(carry, tuple)
    x = carry[0] if decoding else carry
    kwargs = dict(use_bias=False, dtype=self.dtype, precision=exact(self.dtype))
    project = lambda name, heads: nn.DenseGeneral((heads, c.head_dim), name=name, **kwargs)
    dense = lambda name, width: nn.Dense(width, name=name, **kwargs)

    y = RMSNorm(c.norm_eps, name='attention_norm')(x)
    q = rotary(project('q', c.heads)(y), shared['positions_BxS'], c.rope_theta)
    k = rotary(project('k', c.kv_heads)(y), shared['positions_BxS'], c.rope_theta)
    v = project('v', c.kv_heads)(y)
    valid_BxP, mask_QxT = shared['valid_BxP'], shared['mask_QxT']
    B, P, T = x.shape[0], valid_BxP.shape[1], mask_QxT.shape[1]
    if decoding:
      at = (layer['index'], 0, 0, shared['t'], 0, 0)
      k_all, v_all = (
        jax.lax.dynamic_update_slice(all_, new[None, :, :, None].astype(all_.dtype), at)
        for all_, new in zip(carry[1:], (k, v))
      )
      own = tuple(jax.lax.dynamic_index_in_dim(a, layer['index'], keepdims=False) for a in (k_all, v_all))
      out = completion_attention(q[:, :, None], (layer['k'], layer['v']), own, valid_BxP, mask_QxT)[:, :, 0]
    else:
      tree = lambda a: a[:, P:].reshape(B, -1, T, *a.shape[2:]) if T else None
      parts = []
      if P:
        parts.append(prompt_attention(q[:, :P], k[:, :P], v[:, :P], valid_BxP))
      if T:
        seen = (k[:, :P], v[:, :P])
        out = completion_attention(tree(q), seen, (tree(k), tree(v)), valid_BxP, mask_QxT)
        parts.append(out.reshape(B, -1, *q.shape[2:]))
      out = jnp.concatenate(parts, axis=1)
    x = x + nn.DenseGeneral(c.width, axis=(-2, -1), name='o', **kwargs)(out)
    y = RMSNorm(c.norm_eps, name='mlp_norm')(x)
    x = x + dense('down', c.width)(nn.silu(dense('gate', c.ffn)(y)) * dense('up', c.ffn)(y))
    x = mesh_lib.constrain(x, mesh_lib.BATCH)
    if decoding:
      return (x, k_all, v_all), None
    return x, {'k': k[:, :P], 'v': v[:, :P]} if shared['keep'] is not None else None


class Transformer(nn.Module):
  config: ModelConfig
  dtype: jnp.dtype
  remat: bool

  def setup(self):
    c = self.config
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    scan = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=c.layers,
    )
    init = nn.initializers.normal(0.02)
    self.embed = nn.Embed(c.vocab, c.width, dtype=self.dtype, embedding_init=init)
    self.layers = scan(c, self.dtype)
    self.final_norm = RMSNorm(c.norm_eps)
    if not c.tied:
      self.out = nn.Dense(c.vocab, use_bias=False, name='head', kernel_init=init)

  def lookup(self, ids):
    # Gathered over fsdp first: a lookup in a table split on its width would replicate the result on every device.
    table = mesh_lib.constrain(self.embed.embedding, 'tensor', None).astype(self.dtype)
    return mesh_lib.constrain(jnp.take(table, ids, axis=0), mesh_lib.BATCH)

  def trunk(self, ids_BxS, positions_BxS, valid_BxP, T, keep=None):
    x = self.lookup(ids_BxS)
    shared = {
      'positions_BxS': positions_BxS,
      'valid_BxP': valid_BxP,
      'mask_QxT': jnp.tril(jnp.ones((T, T), bool)),
      'keep': keep,
    }
    x, kv = self.layers(x, None, shared)
    return self.final_norm(x), kv

  def step(self, ids_BxG, positions_BxG, valid_BxP, cache, t):
    T = cache['k'].shape[3]
    shared = {'positions_BxS': positions_BxG, 'valid_BxP': valid_BxP, 'mask_QxT': (jnp.arange(T) <= t)[None], 't': t}
    per_layer = {'index': jnp.arange(self.config.layers), 'k': cache['prompt']['k'], 'v': cache['prompt']['v']}
    x = self.lookup(ids_BxG)
    (x, k, v), _ = self.layers((x, cache['k'], cache['v']), per_layer, shared)
    return self.final_norm(x), k, v

  def logits(self, hidden):
    kernel = self.embed.embedding.T if self.config.tied else self.out.variables['params']['kernel']
    return product('...d,dv->...v', hidden, kernel.astype(self.dtype), preferred_element_type=jnp.float32)

  def everything(self, ids):  # touches every parameter, for init
    hidden, _ = self.trunk(ids, ids, jnp.ones((1, 0), bool), ids.shape[1])
    return self.out(hidden) if not self.config.tied else hidden


def prompt_layout(prompts: Prompts):
  """positions_BxP from each prompt's first real token, and which keys are real."""
  P = prompts.ids_BxP.shape[1]
  offset_BxP = jnp.arange(P)[None] - (P - prompts.length_B)[:, None]
  return jnp.maximum(offset_BxP, 0), offset_BxP >= 0


def transformer(config: ModelConfig, *, dtype='float32', remat: bool = False) -> Policy:
  """The `Policy` of a configuration. Parameters are float32; `dtype` is that of the products."""
  model = Transformer(config, jnp.dtype(dtype), remat)
  apply = lambda params, *args, method, **kw: model.apply({'params': params}, *args, method=method, **kw)

  def init(key):
    return model.init(key, jnp.zeros((1, 2), jnp.int32), method='everything')['params']

  def rows(params, ids_NxL, length_N):
    del length_N  # left-aligned and causal: what comes after a row's end changes nothing before it
    N, L = ids_NxL.shape
    positions = jnp.broadcast_to(jnp.arange(L)[None], (N, L))
    return apply(params, ids_NxL, positions, jnp.ones((N, 0), bool), L, method='trunk')[0]

  def group(params, prompts, ids_BxGxT, length_BxG):
    del length_BxG
    B, G, T = ids_BxGxT.shape
    P = prompts.ids_BxP.shape[1]
    positions_BxP, valid_BxP = prompt_layout(prompts)
    own = prompts.length_B[:, None, None] + jnp.arange(T)[None, None]
    own = jnp.broadcast_to(own, (B, G, T)).reshape(B, G * T)
    ids = jnp.concatenate([prompts.ids_BxP, ids_BxGxT.reshape(B, G * T)], axis=1)
    positions = jnp.concatenate([positions_BxP, own], axis=1)
    hidden, _ = apply(params, ids, positions, valid_BxP, T, method='trunk')
    completion = hidden[:, P:].reshape(B, G, T, -1)
    last = hidden[:, P - 1 : P] if P else jnp.zeros_like(hidden[:, :1])
    last = jnp.broadcast_to(last[:, None], (B, G, 1, hidden.shape[-1]))
    return jnp.concatenate([last, completion[:, :, :-1]], axis=2)

  def head(params, hidden):
    return apply(params, hidden, method='logits')

  def prefill(params, prompts):
    positions, valid = prompt_layout(prompts)
    hidden, kv = apply(params, prompts.ids_BxP, positions, valid, 0, keep=jnp.zeros(()), method='trunk')
    return hidden[:, -1], {'k': kv['k'], 'v': kv['v'], 'length_B': prompts.length_B}

  def start(prompt_cache, G, T):
    N, B, _, K, D = prompt_cache['k'].shape
    room = jnp.zeros((N, B, G, T, K, D), prompt_cache['k'].dtype)
    room = mesh_lib.constrain(room, None, mesh_lib.BATCH)
    return {'prompt': prompt_cache, 'k': room, 'v': room}

  def decode(params, cache, ids_BxG, t):
    length_B, P = cache['prompt']['length_B'], cache['prompt']['k'].shape[2]
    valid = jnp.arange(P)[None] >= P - length_B[:, None]
    positions = jnp.broadcast_to(length_B[:, None] + t, ids_BxG.shape)
    hidden, k, v = apply(params, ids_BxG, positions, valid, cache, t, method='step')
    return hidden, {'prompt': cache['prompt'], 'k': k, 'v': v}

  return Policy(init, rows, group, head, prefill, start, decode)
