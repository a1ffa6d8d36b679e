"""Attention over a tree on a TPU: Pallas's splash attention under the static mask of a tree (see transformer.py).

The kernel skips blocks of scores that the mask empties, and keeps no scores; softmax and its sums are float32. The mask
is static, so ragged prompts are segments: a prompt's left pads are one, all other tokens the other. Elsewhere than on a
TPU the kernel is interpreted, which is for tests.

Importing Pallas takes a second, so this module is imported where a program is traced that needs it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info_lib
from jax.sharding import PartitionSpec

from past_jax import mesh as mesh_lib
from past_jax.models.attention import exact

LANES = 128  # prompts and completions are padded to multiples of it, as are blocks
BLOCKS = (128, 256, 384, 512)  # edges of a block; at 512, to compute one takes twice as long as to begin it (see STEP)
STEP = 1 << 17  # scores of heads of 128 that a TPU v5e at its peak computes in 0.35 us, about what a grid step takes


@dataclasses.dataclass(frozen=True)
class TreeMask(mask_lib.Mask):
  """Which keys a query of a tree sees: [size, size], never there as a whole.

  P + G * T tokens, and behind them pads up to `size`, each of which sees itself alone.
  """

  P: int
  G: int
  T: int
  size: int
  window: int = 0  # tokens that a token sees, itself included; 0: all before it

  @property
  def shape(self) -> tuple[int, int]:
    return self.size, self.size

  @functools.cached_property
  def spans(self):
    """Two pairs (first, end) of int_S: the keys that each query sees in the prompt, and those behind the prompt."""
    s = np.arange(self.size)
    t = (s - self.P) % max(self.T, 1)
    prompt, own = s < self.P, (s >= self.P) & (s < self.P + self.G * self.T)
    slot = np.where(own, self.P + t, s)
    first = np.maximum(slot - self.window + 1, 0) if self.window else np.zeros_like(s)  # slot that it sees
    in_prompt = np.where(prompt | own, first, 0), np.where(prompt, s + 1, np.where(own, self.P, 0))
    behind = np.where(own, s - t + np.maximum(first - self.P, 0), s), np.where(prompt, s, s + 1)
    return in_prompt, behind

  def __getitem__(self, index) -> np.ndarray:
    queries, keys = index
    key = np.arange(self.size)[keys][None]
    inside = ((first[queries, None] <= key) & (key < end[queries, None]) for first, end in self.spans)
    return functools.reduce(np.logical_or, inside)


def live_blocks(mask: TreeMask, bq: int, bkv: int) -> int:
  """How many blocks of bq queries x bkv keys have a score that the mask keeps: those that the kernel computes."""
  hits, row = np.zeros((mask.size // bq, mask.size // bkv + 1), int), np.arange(mask.size) // bq
  for first, end in mask.spans:
    some = first < end
    np.add.at(hits, (row[some], first[some] // bkv), 1)
    np.add.at(hits, (row[some], (end[some] - 1) // bkv + 1), -1)
  return int((hits.cumsum(axis=1) > 0).sum())


def up(length: int, multiple: int) -> int:
  return -(-length // multiple) * multiple


def padded(P: int, G: int, T: int, window: int, block: int) -> TreeMask:
  """P and G * T in whole lanes, the sum in whole blocks. A window that reaches over everything is none."""
  size = up(up(P, LANES) + up(G * T, LANES), block)
  return TreeMask(up(P, LANES), G, T, size, window if window < P + T else 0)


@functools.cache
def layout(P: int, G: int, T: int, windows: tuple[int, ...]) -> tuple[int, tuple[TreeMask, ...], int]:
  """(block, mask of each layer, mean number of live blocks): blocks of the edge that is likely fastest."""

  def at(block):
    masks = tuple(padded(P, G, T, window, block) for window in windows)
    live = {mask: live_blocks(mask, block, block) for mask in set(masks)}
    return block, masks, round(sum(live[mask] for mask in masks) / len(masks))

  return min(map(at, BLOCKS), key=lambda found: found[2] * (found[0] ** 2 + STEP))


def table(shapes: Sequence[tuple[int, int, int]]) -> str:
  """Markdown: what is computed of trees (P, G, T) of full length, against G rows of P + T. docs/models.md has it."""
  lines = [
    '| P | G | T | blocks | as rows | rows / tree | scores computed / needed | blocks are | their number |',
    '|' + '---|' * 9,
  ]
  for P, G, T in shapes:
    mask, row = padded(P, G, T, 0, LANES), padded(0, 1, P + T, 0, LANES)
    tree, rows = live_blocks(mask, LANES, LANES), G * live_blocks(row, LANES, LANES)
    needed = sum((end - first).sum() for first, end in TreeMask(P, G, T, P + G * T).spans)
    block, _, live = layout(P, G, T, (0,))
    cells = P, G, T, tree, rows, f'{rows / tree:.1f}', f'{tree * LANES**2 / needed:.2f}', block, live
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  return '\n'.join(lines) + '\n'


@functools.cache
def mask_infos(masks: tuple[TreeMask, ...], block: int):
  """(of queries, of keys): the kernel's `MaskInfo`s, those of all `masks` stacked."""

  def stacked(process):
    infos = [process(mask_lib.MultiHeadMask([mask]), (block, block))[0]._asdict() for mask in masks]

    def stack(name):
      arrays = [info[name] for info in infos]
      if arrays[0] is None:
        return None
      shape = np.max([x.shape for x in arrays], axis=0)
      mode = 'edge' if name.endswith('next') else 'constant'  # a step without work fetches what is there already
      return np.stack([np.pad(x, [(0, n - m) for m, n in zip(x.shape, shape)], mode) for x in arrays])

    return info_lib.MaskInfo(**{name: stack(name) for name in infos[0]})

  return stacked(info_lib.process_mask), stacked(info_lib.process_mask_dkv)


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is static of a call."""

  masks: tuple[TreeMask, ...]
  block: int
  live: int
  cap: float
  interpret: bool

  def options(self):
    b = self.block
    return dict(
      mask_value=kernel.DEFAULT_MASK_VALUE,
      is_mqa=False,
      block_sizes=kernel.BlockSizes(b, b, b, b, b, b, b, b),
      residual_checkpoint_name=None,
      mask_function=None,
      attn_logits_soft_cap=self.cap or None,
      interpret=self.interpret,
    )

  @contextlib.contextmanager
  def context(self, dtype):
    """Names the call for who counts its work, and makes float32 mean float32 (see `exact`), also in its derivative."""
    with jax.named_scope(f'splash_{self.live}x{self.block}x{self.block}'), jax.default_matmul_precision(exact(dtype)):
      yield

  def infos(self, which):
    infos = mask_infos(self.masks, self.block)
    pick = lambda x: x[0] if len(self.masks) == 1 else jnp.take(x, which, axis=0)
    return jax.tree.map(pick, infos)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(setting: Setting, which, q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_BxS):
  """softmax(q k') v under the mask number `which` -> out like q; tokens see their own segment only (None: all).

  The kernel has a derivative, but it would keep the arrays of a mask for every layer, and would lose the precision.
  """
  return _attend(setting, which, q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_BxS, False)


def _attend(setting, which, q, k, v, segment, residuals):
  of_queries, _ = setting.infos(which)

  def one(q, k, v, segment):
    segments = None if segment is None else kernel.SegmentIds(segment, segment)
    options = setting.options() | {'save_residuals': residuals}
    return kernel._splash_attention_forward(of_queries, q, k, v, segments, None, **options)

  with setting.context(q.dtype):
    return jax.vmap(one)(q, k, v, segment)


def _forward(setting, which, q, k, v, segment):
  out, (normaliser,) = _attend(setting, which, q, k, v, segment, True)
  out, normaliser = checkpoint_name((out, normaliser), 'attended')
  return out, (which, q, k, v, segment, out, normaliser)


def _backward(setting, kept, d_out):
  which, *arrays = kept
  of_queries, of_keys = setting.infos(which)

  def one(q, k, v, segment, out, normaliser, d_out):
    segments = None if segment is None else kernel.SegmentIds(segment, segment)
    kept = (q, k, v, segments, None, out, normaliser, of_queries, of_keys)
    return kernel._splash_attention_bwd(res=kept, do=d_out, save_residuals=False, **setting.options())[3:6]

  with setting.context(d_out.dtype):
    return None, *jax.vmap(one)(*arrays, d_out), None


attend.defvjp(_forward, _backward)


def tree_attention(
  q_BxSxHxD,
  k_BxSxKxD,
  v_BxSxKxD,
  valid_BxP,
  T: int,
  kind,
  *,
  windows: Sequence[int],
  pattern: Sequence[int],
  scale: float,
  cap: float,
):
  """`attention.tree_attention` by the kernel, each shard its own rows and heads: out_BxSxHxD.

  Args:
    valid_BxP: which prompt tokens are real.
    T: tokens of a completion.
    kind: which of `windows` this layer has, an int scalar.
    windows: of the kinds of layers; 0: none.
    pattern: the kind of each layer of the model.
  """
  (B, S), P = q_BxSxHxD.shape[:2], valid_BxP.shape[1]
  G = (S - P) // T if T else 0
  block, masks, live = layout(P, G, T, tuple(windows[kind] for kind in pattern))
  of_kind = [padded(P, G, T, window, block) for window in windows]
  unique = tuple(dict.fromkeys(of_kind))
  which = jnp.array([unique.index(mask) for mask in of_kind])[kind]
  setting = Setting(unique, block, live, cap, interpret=mesh_lib.platform() != 'tpu')
  mesh, size = jax.sharding.get_abstract_mesh(), masks[0].size
  left, rows = up(P, LANES) - P, 0 if mesh.empty else -B % mesh_lib.batch_ways(mesh)
  q_BxSxHxD = (q_BxSxHxD.astype(jnp.float32) * scale).astype(q_BxSxHxD.dtype)
  pad = lambda x, value=0: jnp.pad(
    x, [(0, rows), (left, size - S - left)] + [(0, 0)] * (x.ndim - 2), constant_values=value
  )
  segment = jnp.pad(valid_BxP.astype(jnp.int32), [(0, rows), (left, 0)])
  segment = jnp.pad(segment, [(0, 0), (0, size - P - left)], constant_values=1) if P else None

  def shard(which, q, k, v, segment):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(attend(setting, which, q, k, v, segment), 1, 2)

  if not mesh.empty:
    batch, heads = PartitionSpec(mesh_lib.BATCH), PartitionSpec(mesh_lib.BATCH, None, 'tensor')
    specs = (PartitionSpec(), heads, heads, heads, batch)
    shard = jax.shard_map(shard, in_specs=specs, out_specs=heads, check_vma=False)
  out = shard(which, *map(pad, (q_BxSxHxD, k_BxSxKxD, v_BxSxKxD)), segment)
  return out[:B, left : left + S]
