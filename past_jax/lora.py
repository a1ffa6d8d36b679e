"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x @ kernel + scale * (x @ lora_a) @ lora_b, the kernel frozen.

Adapters are a tree with the paths of the layers they belong to. The model computes with what `attach` returns: the
base's own arrays, with the two factors beside the kernels. Nothing of the base is copied, so a base serves any number
of adapters: stack them on a leading axis and `jax.vmap` over it.

Shapes: a kernel is [N, ins..., outs...] in the stacked layers, [ins..., outs...] elsewhere; lora_a is [N, ins..., r]
and lora_b [N, r, outs...].
"""

import difflib
import math
import re
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from past_jax.types import Array, Key, Params, UserError

STACKED = 'layers/'  # kernels below it have the leading axis of layers


def linears(params: Params, path: str = '') -> dict[str, Params]:
  """{path: leaves} of every linear layer: what has a kernel."""
  if 'kernel' in params:
    return {path: params}
  below = {f'{path}/{name}' if path else name: sub for name, sub in params.items() if isinstance(sub, Mapping)}
  return {p: leaves for name, sub in below.items() for p, leaves in linears(sub, name).items()}


def choose(params: Params, targets: Sequence[str]) -> list[str]:
  """Paths of the linear layers that some regex of `targets` is found in; no targets: all within the stacked layers.

  Raises:
    UserError: a pattern is no regex, or is found in none.
  """
  paths, chosen = sorted(linears(params)), set()
  for target in targets or (f'^{STACKED}',):
    try:
      found = [path for path in paths if re.search(target, path)]
    except re.error as error:
      raise UserError(f'{target!r} is not a regular expression: {error}.') from error
    if not found:
      near = difflib.get_close_matches(target, paths, 1)
      hint = f' Did you mean {near[0]!r}?' if near else ''
      raise UserError(f'{target!r} is found in no linear layer; there are {", ".join(paths)}.{hint}')
    chosen |= set(found)
  return sorted(chosen)


def init(key: Key, params: Params, *, targets: Sequence[str], rank: int, input_axes: Mapping[str, int]) -> Params:
  """New adapters, under which the model computes what it did before: lora_a = 0, lora_b Gaussian of variance 1 / rank.

  One factor must be zero, and only one: with both zero no gradient would ever arrive. With this variance
  E[lora_b^T lora_b] = 1, so a first step of lora_a moves the kernel by its own step, projected on a random subspace and
  as large at any rank: at alpha = rank the learning rates of full training suit.

  Args:
    params: of the model, or their shapes.
    targets: as in `choose`.
    input_axes: name of a layer -> how many axes of the kernel its product sums over; 1 for the others.

  Raises:
    UserError: as `choose`.
  """
  layers, adapters = linears(params), {}
  for path in choose(params, targets):
    *parents, name = path.split('/')
    kernel = layers[path]['kernel']
    n = int(path.startswith(STACKED))
    ins = n + (input_axes[name] if name in input_axes else 1)
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))  # the same whatever else is adapted
    b = jax.random.normal(own, (*kernel.shape[:n], rank, *kernel.shape[ins:]), kernel.dtype) / math.sqrt(rank)
    node = adapters
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = {'lora_a': jnp.zeros((*kernel.shape[:ins], rank), kernel.dtype), 'lora_b': b}
  return adapters


def is_adapters(params: Params) -> bool:
  """Whether a tree is one of adapters, rather than of a model's parameters."""
  return any(getattr(path[-1], 'key', None) == 'lora_a' for path, _ in jax.tree_util.tree_leaves_with_path(params))


@jax.jit
def fingerprint(params: Params) -> Array:
  """uint32 of all values and their places, exact and so the same on any mesh: adapters mean nothing on another base."""

  def total(x):
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(x.shape):
      place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D) + place * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)  # odd constants of common integer hashes
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)

  return sum(jnp.uint32(2 * i + 1) * total(x) for i, x in enumerate(jax.tree.leaves(params)))


def change(params: Params, adapters: Params, new) -> Params:
  """`params` with new(leaves, adapter) for the leaves of every adapted layer; the rest is the same arrays."""
  if 'lora_a' in adapters:
    return new(params, adapters)
  return {**params, **{name: change(params[name], below, new) for name, below in adapters.items()}}


def attach(params: Params, adapters: Params, scale: float) -> Params:
  """The model with its adapters, as `Policy` computes with it: both factors beside the kernel, `scale` in lora_b."""
  return change(params, adapters, lambda leaves, a: {**leaves, **a, 'lora_b': a['lora_b'] * scale})


def product(kernel: Array, adapter: Params) -> Array:
  """lora_a @ lora_b, float32, in the shape of its kernel."""
  a, b = (adapter[name].astype(jnp.float32) for name in ('lora_a', 'lora_b'))
  times = lambda a, b: jnp.tensordot(a, b, 1, precision='highest')
  return (jax.vmap(times) if a.ndim + b.ndim - 2 > kernel.ndim else times)(a, b)


def merge(params: Params, adapters: Params, scale: float) -> Params:
  """kernel + scale * lora_a @ lora_b: a model without adapters that computes the same up to rounding.

  The sum is made in float32 and has the dtype of the kernel.
  """
  return merged(attach(params, adapters, scale))


def merged(params: Params) -> Params:
  """`merge` of what `attach` made; a model without adapters as it is."""
  if 'lora_a' in params:
    kernel = params['kernel']
    return {**detach(params), 'kernel': (kernel + product(kernel, params)).astype(kernel.dtype)}
  return {name: merged(x) if isinstance(x, Mapping) else x for name, x in params.items()}


def detach(params: Params) -> Params:
  """What `attach` was given."""
  rest = {name: x for name, x in params.items() if name not in ('lora_a', 'lora_b')}
  return {name: detach(x) if isinstance(x, Mapping) else x for name, x in rest.items()}


def unmerge(params: Params, adapters: Params, scale: float) -> Params:
  """The base of a merged model, up to rounding."""
  return merge(params, adapters, -scale)
