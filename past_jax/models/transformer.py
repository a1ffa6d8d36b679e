"""A decoder-only transformer in linen, seen from outside only as a `Policy`. What families differ in is in the config.

Linen is used as a frozen subset (Module, param, remat, scan); parameters are a plain nested dict with the layers
stacked on a leading axis, caches are explicit arguments and results.

One row of the trunk is a *tree*: a prompt of `P` tokens (right-aligned) followed by `G` completions of `T` tokens
(left-aligned), laid out as S = P + G*T tokens. Prompt tokens attend to the prompt, a completion's tokens to the prompt
and to their own completion, and positions restart after the prompt's true length. That is exactly what each
prompt + completion would compute alone, with the prompt computed once. A plain row is the tree with P = 0 and G = 1.

A token's *slot* is its place in its own prompt + completion, counted from the prompt's left pad. Prompts end at slot P
whatever their length, so causality and windows depend on slots alone and one mask serves ragged prompts.

Batches of trees of several shapes go through the layers together: all but attention looks at tokens alone, so a layer's
kernels are read, and on a mesh gathered, once for all of them, and so are their gradients. Tokens are kept as [W, N],
where W divides every batch: row w has the w-th part of each, one behind the other. A single batch is W trees.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from past_jax import mesh as mesh_lib
from past_jax.models.attention import capped, decode_attention, exact, product, tree_attention
from past_jax.models.config import Kind, ModelConfig
from past_jax.types import Policy, Prompts

EVERYTHING = 1 << 30  # a window that no row reaches

VOCAB = ('tensor', 'fsdp')  # the head's product is split over the vocabulary, whatever layout its kernel is kept in
RULES = (  # parameter path -> mesh axes, leading axis of `layers/` is the layer
  ('embed/embedding$', ('tensor', 'fsdp')),
  ('positions/embedding$', (None, 'fsdp')),
  ('head/kernel$', ('fsdp', 'tensor')),
  ('(q|k|v)/kernel$', (None, 'fsdp', 'tensor', None)),
  ('o/kernel$', (None, 'tensor', None, 'fsdp')),
  ('(gate|up)/kernel$', (None, 'fsdp', 'tensor')),
  ('down/kernel$', (None, 'tensor', 'fsdp')),
  ('(q|k|v)/bias$', (None, 'tensor', None)),
  ('(gate|up)/bias$', (None, 'tensor')),
  ('((o|down|norm)/bias|scale|lora_a|lora_b)$', ()),
  ('score/kernel$', ('fsdp', None)),
)
# Of one layer while decoding. Each device keeps its part of a kernel, along what the product leaves (q, k, v, gate, up)
# or sums over (o, down), and activations move: a token's kernels are many times as large.
DECODE_RULES = (
  ('(q|k|v)/kernel$', (None, 'tensor', 'fsdp')),
  ('o/kernel$', ('tensor', 'fsdp')),
  ('(gate|up)/kernel$', (None, ('tensor', 'fsdp'))),
  ('down/kernel$', (('tensor', 'fsdp'),)),
  ('(q|k|v)/bias$', ('tensor', 'fsdp')),
  ('(gate|up)/bias$', (('tensor', 'fsdp'),)),
  ('((o|down|norm)/bias|scale|lora_a|lora_b)$', ()),
)
# Of its activations: a device's own rows, or all of its data shard; of heads its own rows', or a part of all.
OWN, ALL = (mesh_lib.BATCH,), ('data',)
OWN_HEADS, ALL_HEADS = (mesh_lib.BATCH, None, 'tensor'), ('data', None, 'tensor', 'fsdp')
# What a layer keeps for the backward pass: all, its products with kernels, or its input; of both of these also what
# attention's kernel gives (splash.py). The rest is computed again.
REMAT = {
  'none': lambda block: block,
  **{
    name: functools.partial(nn.remat, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(*names))
    for name, names in {'dots': ('product', 'attended'), 'layer': ('attended',)}.items()
  },
}
INPUT_AXES = {'o': 2}  # of a linear layer's kernel, behind the axis of layers: those that a product sums over; else 1
ACTIVATIONS = {
  'silu': nn.silu,
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}


@functools.partial(jax.tree_util.register_dataclass, data_fields=['positions_BxS', 'valid_BxP'], meta_fields=['G', 'T'])
@dataclasses.dataclass(frozen=True)
class Trees:
  """A batch of trees of one shape."""

  positions_BxS: jax.Array
  valid_BxP: jax.Array  # bool: which prompt tokens are real
  G: int
  T: int

  @property
  def slots_T(self):
    """Of a completion's tokens."""
    return self.valid_BxP.shape[1] + jnp.arange(self.T)


def pack(arrays: Sequence[jax.Array]):
  """Arrays [B, S, ...] of several batches as one, [W, N, ...]."""
  W = math.gcd(*(len(x) for x in arrays))
  return jnp.concatenate([x.reshape(W, -1, *x.shape[2:]) for x in arrays], axis=1)


def unpack(x_WxN, like: Sequence[jax.Array]):
  """The inverse of `pack`, for batches of [B, S] as those of `like`."""
  out, start, W = [], 0, len(x_WxN)
  for B, S in (x.shape[:2] for x in like):
    end = start + B // W * S
    out.append(x_WxN[:, start:end].reshape(B, S, *x_WxN.shape[2:]))
    start = end
  return out


def axes_of(path: str) -> tuple:
  """Mesh axes of a parameter."""
  return next(axes for pattern, axes in RULES if re.search(pattern, path))


def rotations(kinds: tuple[Kind, ...], positions_BxS):
  """(sine, cosine) of shape [kind, B, S, 1, pairs], of rotary embeddings (arXiv 2104.09864); None: nothing rotates."""
  pairs = max(len(kind.frequencies) for kind in kinds)
  if not pairs:
    return None
  still = (0.0,) * pairs  # a layer without positions turns by 0
  frequency = jnp.array([kind.frequencies or still for kind in kinds], jnp.float32)
  amplitude = jnp.array([kind.amplitude for kind in kinds], jnp.float32)[:, None, None, None, None]
  angle = positions_BxS[None, :, :, None, None].astype(jnp.float32) * frequency[:, None, None, None, :]
  return jnp.sin(angle) * amplitude, jnp.cos(angle) * amplitude


def rotate(x, rotation):
  """Rotates the pairs (i, i + pairs) of the last axis of x_BxSxHxDh; what is beyond them passes."""
  if rotation is None:
    return x
  sin, cos = rotation
  pairs = sin.shape[-1]
  a, b, rest = jnp.split(x.astype(jnp.float32), [pairs, 2 * pairs], axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def matmul(n, result, placed, x, w):
  """Sum over the last n axes of x and the first n of w, whose gradient is `placed` on these axes of the mesh."""
  axes = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())
  return jax.lax.dot_general(x, w, axes, exact(x.dtype), result)


def _matmul_forward(n, result, placed, x, w):
  return matmul(n, result, placed, x, w), (x, w)


def _matmul_backward(n, result, placed, kept, dy):
  """As JAX would, but with dw = x^T dy in the layout of w: XLA's CPU backend is 2.5 times slower on its transpose.

  And placed at once: XLA would add up whole gradients on all devices, and then cut them.
  """
  x, w = kept
  dy, rows, O = dy.astype(x.dtype), tuple(range(x.ndim - n)), w.ndim - n
  summed = (tuple(range(dy.ndim - O, dy.ndim)), tuple(range(n, w.ndim))), ((), ())
  dx = jax.lax.dot_general(dy, w, summed, exact(x.dtype), x.dtype)
  dw = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), exact(x.dtype), w.dtype)
  return dx, mesh_lib.move(dw, placed) if placed else dw


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def scaled(x, w_D):
  """x_...xD * w. The gradient of w sums over rows by a product with ones: ten times faster on XLA's CPU backend."""
  return x * w_D.reshape((1,) * (x.ndim - 1) + w_D.shape)


def _scaled_backward(kept, dy):
  x, w_D = kept
  rows = tuple(range(x.ndim - 1))
  ones = jnp.ones(x.shape[:-1], x.dtype)
  return scaled(dy, w_D), jax.lax.dot_general(ones, dy * x, ((rows, rows), ((), ())), 'highest')


scaled.defvjp(lambda x, w_D: (scaled(x, w_D), (x, w_D)), _scaled_backward)


class Norm(nn.Module):
  """Over the last axis, in float32. Only its input is kept for the backward pass."""

  kind: str
  eps: float

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1:]
    plus_one = self.kind == 'rms_plus_one'
    scale = self.param('scale', nn.initializers.zeros if plus_one else nn.initializers.ones, width)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def norm(x, scale):
      y = x.astype(jnp.float32)
      if self.kind == 'layer':
        y -= jnp.mean(y, axis=-1, keepdims=True)
      y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
      return scaled(y, 1 + scale if plus_one else scale)

    y = norm(x, scale)
    if self.kind == 'layer':
      y += self.param('bias', nn.initializers.zeros, width).reshape((1,) * (x.ndim - 1) + width)
    return y.astype(x.dtype)


class Linear(nn.Module):
  """x_...xI -> [..., O]: x @ kernel + bias, and + (x @ lora_a) @ lora_b where `lora.attach` put these leaves.

  The product goes through the activations, never through kernel + lora_a @ lora_b: under `vmap` over adapters that sum
  would be a copy of the kernel for each of them.
  """

  outputs: tuple[int, ...]
  dtype: jnp.dtype
  bias: bool = False
  summed: int = 1  # trailing axes of x that the product sums over
  result: jnp.dtype | None = None
  kernel_init: nn.initializers.Initializer | None = None
  placed: tuple = ()  # mesh axes of the kernel; (): its layout is chosen elsewhere

  @nn.compact
  def __call__(self, x):
    n, O = self.summed, len(self.outputs)
    fan = dict(in_axis=range(n), out_axis=range(n, n + O))
    init = self.kernel_init or nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', **fan)

    def times(x, w, n, placed=()):
      return matmul(n, self.result or self.dtype, placed, x.astype(self.dtype), w.astype(self.dtype))

    kernel = self.param('kernel', init, (*x.shape[-n:], *self.outputs))
    y = checkpoint_name(times(x, kernel, n, self.placed), 'product')
    if self.has_variable('params', 'lora_a'):
      a, b = (self.get_variable('params', name) for name in ('lora_a', 'lora_b'))
      y += times(times(x, a, n), b, 1)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, self.outputs).astype(y.dtype)
      y += bias.reshape((1,) * (y.ndim - O) + self.outputs)
    return y


class Block(nn.Module):
  """One layer. `carry` is x_WxNxD, or when decoding (x_BxGxD, k_BxGxKxDxT, v_BxGxKxTxD): the completions' own cache."""

  config: ModelConfig
  dtype: jnp.dtype
  pallas: bool | None = None

  @nn.compact
  def __call__(self, carry, layer, shared):
    c, decoding = self.config, isinstance(carry, tuple)
    x = carry[0] if decoding else carry
    norm = lambda name, kind=c.norm: Norm(kind, c.norm_eps, name=name)

    def linear(name, *outputs, **options):
      _, *placed = axes_of(f'layers/{name}/kernel')  # behind the axis of layers
      return Linear(outputs, self.dtype, name in c.biased, placed=tuple(placed), name=name, **options)

    # Decoding, kernels stay where DECODE_RULES put them and rows move: all of a data shard to each part of a kernel,
    # its products back. Both ends of a way are said: XLA would move a kernel to where its product is due.
    move = mesh_lib.move if decoding else lambda x, *layouts: x
    y = move(norm('attention_norm')(x), OWN, ALL)
    q, k = linear('q', c.heads, c.head_dim)(y), linear('k', c.kv_heads, c.head_dim)(y)
    v = linear('v', c.kv_heads, c.head_dim)(y)
    q, k, v = (move(x, ALL_HEADS, OWN_HEADS) for x in (q, k, v))
    if c.qk_norm:
      q, k = norm('q_norm')(q), norm('k_norm')(k)
    of_kind = lambda table: table[0] if len(c.kinds) == 1 else jnp.take(table, layer['kind'], axis=0)
    rotation = jax.tree.map(of_kind, shared['rotations'])
    q, k = rotate(q, rotation), rotate(k, rotation)
    if decoding:
      score = lambda scores: capped(scores * c.scale, c.attention_cap)
      own = tuple(
        jax.lax.dynamic_update_slice_in_dim(kept, jnp.expand_dims(new, axis).astype(kept.dtype), shared['at'], axis)
        for kept, new, axis in zip(carry[1:], (k, v), (4, 3))
      )
      out = decode_attention(q, layer['prompt'], own, *shared['masks'][layer['kind']], score)
    else:
      trees, window = shared['trees'], of_kind(shared['windows']) if shared['windows'] is not None else None
      unpacked = zip(trees, *(unpack(x, [t.positions_BxS for t in trees]) for x in (q, k, v)))
      out = pack([self.attend(*one, layer['kind'], window) for one in unpacked])

    post = norm if c.post_norms else lambda name: lambda x: x
    out = move(out, OWN_HEADS, ALL_HEADS)
    attended = post('attention_post_norm')(move(linear('o', c.width, summed=2)(out), OWN))
    y = move(norm('mlp_norm')(x if c.parallel else x + attended), OWN, ALL)
    act, up = ACTIVATIONS[c.activation], linear('up', c.ffn)(y)
    inner = jax.checkpoint(lambda *x: functools.reduce(jnp.multiply, x[1:], act(x[0])), prevent_cse=False)
    inner = inner(*([linear('gate', c.ffn)(y), up] if c.gated else [up]))
    x = x + attended + post('mlp_post_norm')(move(linear('down', c.width)(inner), OWN))
    x = mesh_lib.constrain(x, mesh_lib.BATCH)
    if decoding:
      return x, *own
    return x, {'k': k, 'v': v} if shared['keep'] is not None else None

  def attend(self, trees: Trees, q_BxSxHxD, k_BxSxKxD, v_BxSxKxD, kind, window):
    c = self.config
    tree, options = (q_BxSxHxD, k_BxSxKxD, v_BxSxKxD, trees.valid_BxP), dict(scale=c.scale, cap=c.attention_cap)
    if mesh_lib.platform() == 'tpu' if self.pallas is None else self.pallas:
      from past_jax.models import splash  # Pallas takes a second to import

      options |= dict(windows=[kind.window for kind in c.kinds], pattern=c.pattern)
      return splash.tree_attention(*tree, trees.T, kind, **options)
    return tree_attention(*tree, trees.slots_T, window, **options)


class Transformer(nn.Module):
  config: ModelConfig
  dtype: jnp.dtype
  remat: str
  pallas: bool | None = None

  def setup(self):
    c = self.config
    scan = nn.scan(
      REMAT[self.remat](Block),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=c.layers,
    )
    init = nn.initializers.normal(0.02)
    self.embed = nn.Embed(c.vocab, c.width, dtype=self.dtype, embedding_init=init)
    if c.learned_positions:
      self.positions = nn.Embed(c.context, c.width, dtype=self.dtype, embedding_init=init)
    self.layers = scan(c, self.dtype, self.pallas)
    self.final_norm = Norm(c.norm, c.norm_eps)
    if not c.tied:
      self.head = Linear((c.vocab,), self.dtype, result=jnp.float32, kernel_init=init)

  def lookup(self, ids, positions):
    c = self.config

    def rows(table, index):
      # Every device looks all tokens up in its part of the width, then parts are exchanged for tokens: what moves are
      # activations, there and back, not the table and its gradient.
      x = jnp.take(table, mesh_lib.constrain(index, 'data'), axis=0)
      x = mesh_lib.constrain(x, 'data', *[None] * (x.ndim - 2), 'fsdp')
      # Cast after it: the gradient of a row sums over all places of its token, which bfloat16 would stop adding to.
      return mesh_lib.constrain(x.astype(self.dtype), mesh_lib.BATCH)

    x = rows(self.embed.embedding, ids) * jnp.asarray(c.embed_scale, self.dtype)
    if c.learned_positions:
      x += rows(self.positions.embedding, positions)
    return mesh_lib.constrain(x, mesh_lib.BATCH)

  def trunk(self, ids: Sequence[jax.Array], trees: Sequence[Trees], keep=None):
    """Hidden states [B, S, D] of each batch; with `keep` also keys and values of all layers, of a single batch."""
    kinds = self.config.kinds
    positions_WxN = pack([t.positions_BxS for t in trees])
    shared = {  # what all layers read. A window of 0 is none; where no kind has one, nothing is masked for it
      'rotations': rotations(kinds, positions_WxN),
      'windows': jnp.array([k.window or EVERYTHING for k in kinds]) if any(k.window for k in kinds) else None,
      'trees': tuple(trees),
      'keep': keep,
    }
    x = self.lookup(pack(ids), positions_WxN)
    x, kv = self.layers(x, {'kind': jnp.array(self.config.pattern)}, shared)
    return unpack(self.final_norm(x), ids), kv

  def logits(self, hidden):
    # Each device has all tokens of its data shard, of one part of the vocabulary: hidden states are gathered, which are
    # fewer than the table has rows.
    hidden = mesh_lib.move(hidden, OWN, ALL)
    if self.config.tied:
      table = mesh_lib.constrain(self.embed.embedding, VOCAB, None).astype(self.dtype)
      logits = product('...d,vd->...v', hidden, table)
    else:
      logits = self.head(hidden)
    return capped(mesh_lib.constrain(logits, 'data', *[None] * (logits.ndim - 2), VOCAB), self.config.logit_cap)

  def everything(self, ids):  # touches every parameter, for init
    (hidden,), _ = self.trunk([ids], [row_trees(ids)])
    return self.logits(hidden)


def prompt_layout(prompts: Prompts):
  """positions_BxP from each prompt's first real token, and which keys are real."""
  P = prompts.ids_BxP.shape[1]
  offset_BxP = jnp.arange(P)[None] - (P - prompts.length_B)[:, None]
  return jnp.maximum(offset_BxP, 0), offset_BxP >= 0


def row_trees(ids_NxL) -> Trees:
  """Plain rows: no prompt, one completion."""
  N, L = ids_NxL.shape
  return Trees(jnp.broadcast_to(jnp.arange(L)[None], (N, L)), jnp.ones((N, 0), bool), 1, L)


def transformer(config: ModelConfig, *, dtype='float32', remat: str = 'none', pallas: bool | None = None) -> Policy:
  """The `Policy` of a configuration. Parameters are float32; `dtype` is that of the products, `remat` one of `REMAT`.

  Norms, rotations, softmax, soft caps and logits are computed in float32 whatever `dtype` is.

  Args:
    pallas: attention over trees and rows by the TPU's kernel (splash.py; interpreted elsewhere) or by einsums
      (attention.py). None: by the kernel where the devices of the mesh are TPUs. Decoding is always einsums.
  """
  model = Transformer(config, jnp.dtype(dtype), remat, pallas)
  apply = lambda params, *args, method, **kw: model.apply({'params': params}, *args, method=method, **kw)

  def init(key):
    return model.clone(pallas=False).init(key, jnp.zeros((1, 2), jnp.int32), method='everything')['params']

  def rows(params, ids_NxL, length_N):
    del length_N  # left-aligned and causal: what comes after a row's end changes nothing before it
    return apply(params, [ids_NxL], [row_trees(ids_NxL)], method='trunk')[0][0]

  def tree(prompts, ids_BxGxT):
    """Ids [B, S] of a batch, and its layout."""
    B, G, T = ids_BxGxT.shape
    positions_BxP, valid_BxP = prompt_layout(prompts)
    own = prompts.length_B[:, None, None] + jnp.arange(T)[None, None]
    own = jnp.broadcast_to(own, (B, G, T)).reshape(B, G * T)
    ids_BxS = jnp.concatenate([prompts.ids_BxP, ids_BxGxT.reshape(B, G * T)], axis=1)
    return ids_BxS, Trees(jnp.concatenate([positions_BxP, own], axis=1), valid_BxP, G, T)

  def groups(params, batches):
    def before(hidden_BxSxD, batch):
      """The states that predict the completions' tokens: each the one before its token."""
      (B, G, T), P = batch[1].shape, batch[0].ids_BxP.shape[1]
      completion = hidden_BxSxD[:, P:].reshape(B, G, T, -1)
      last = hidden_BxSxD[:, P - 1 : P] if P else jnp.zeros_like(hidden_BxSxD[:, :1])
      last = jnp.broadcast_to(last[:, None], (B, G, 1, hidden_BxSxD.shape[-1]))
      return jnp.concatenate([last, completion[:, :, :-1]], axis=2)

    ids, trees = zip(*(tree(prompts, ids) for prompts, ids, _ in batches))
    hidden, _ = apply(params, ids, trees, method='trunk')
    return [before(*one) for one in zip(hidden, batches)]

  def head(params, hidden):
    return apply(params, hidden, method='logits')

  def unembed(params):
    # Both ends of the way are said, so that gradients come back to where the table is kept.
    if config.tied:
      table = mesh_lib.move(params['embed']['embedding'], axes_of('embed/embedding'), (VOCAB, None))
      return params | {'embed': params['embed'] | {'embedding': table}}
    kernel = mesh_lib.move(params['head']['kernel'], axes_of('head/kernel'), (None, VOCAB))
    return params | {'head': params['head'] | {'kernel': kernel}}

  def prefill(params, prompts):
    trees = Trees(*prompt_layout(prompts), 0, 0)
    (hidden,), kv = apply(params, [prompts.ids_BxP], [trees], keep=jnp.zeros(()), method='trunk')
    by_layer = zip(jnp.moveaxis(kv['k'], 2, 4), jnp.moveaxis(kv['v'], 2, 3))  # as decode_attention reads them
    return hidden[:, -1], {'layers': tuple(by_layer), 'length_B': prompts.length_B}

  def start(prompt_cache, G, T):
    B, K, D, P = prompt_cache['layers'][0][0].shape
    room = lambda a, *shape: mesh_lib.constrain(jnp.zeros((B, G, K, *shape), a.dtype), mesh_lib.BATCH, None, 'tensor')
    layers = tuple((room(k, D, T), room(v, T, D)) for k, v in prompt_cache['layers'])
    # Looked up, because XLA's CPU backend would compute sines again for every head of every layer.
    turns = rotations(config.kinds, jnp.arange(P + T)[None])
    return {'layers': layers, 'rotations': turns, 'step': jnp.int32(0)}

  def unstack(params):
    # Cast here, because Linear and lookup would do it at every token; norms and biases compute in float32.
    cast = lambda path, w: w if path[-1].key in ('scale', 'bias') else w.astype(dtype)
    params = jax.tree.map_with_path(cast, params)
    params = unembed(params)
    layers = (jax.tree.map(operator.itemgetter(i), params['layers']) for i in range(config.layers))
    return params | {'layers': tuple(mesh_lib.lay_out(layer, DECODE_RULES) for layer in layers)}

  def decode(params, prompt_cache, cache, ids_BxG, age_BxG):
    length_B, P, T = prompt_cache['length_B'], prompt_cache['layers'][0][0].shape[3], cache['layers'][0][0].shape[4]
    back_T = (cache['step'] - jnp.arange(T)) % T  # how many tokens ago each entry of the ring was written
    ahead_P = P - jnp.arange(P)
    valid_BxP = ahead_P[None] <= length_B[:, None]

    def masks(window):
      seen_BxGxP = jnp.broadcast_to(valid_BxP[:, None], (*age_BxG.shape, P))
      own_BxGxT = back_T[None, None] <= age_BxG[..., None]
      if window:
        seen_BxGxP &= ahead_P[None, None] + age_BxG[..., None] < window
        own_BxGxT &= back_T[None, None] < window
      return seen_BxGxP, own_BxGxT

    positions = length_B[:, None] + age_BxG
    turns = jax.tree.map(lambda table: table[:, 0, positions], cache['rotations'])
    shared = {'rotations': turns, 'at': cache['step'] % T}
    shared['masks'] = [masks(kind.window) for kind in config.kinds]
    x, block, layers = apply(params, ids_BxG, positions, method='lookup'), Block(config, jnp.dtype(dtype)), []
    stack = zip(config.pattern, params['layers'], prompt_cache['layers'], cache['layers'])
    for kind, weights, prompt_kv, own_kv in stack:
      layer = {'kind': kind, 'prompt': prompt_kv}
      x, *own_kv = block.apply({'params': weights}, (x, *own_kv), layer, shared)
      layers.append(tuple(own_kv))
    hidden = apply(params, x, method=lambda model, x: model.final_norm(x))
    return hidden, cache | {'layers': tuple(layers), 'step': cache['step'] + 1}

  return Policy(init, rows, groups, head, prefill, unstack, start, decode, unembed)
