"""Programs for TPUs, compiled without one: update and score by the attention kernel, decoding from a prompt's cache."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from past_jax import logps, losses, update
from past_jax import mesh as mesh_lib
from past_jax.models import RULES, splash
from past_jax.models.config import TINY, Kind
from past_jax.models.transformer import transformer
from past_jax.types import Batch, Prompts, Selection

pytestmark = pytest.mark.slow
B, P, G, T = 2, 128, 2, 64


@pytest.fixture(scope='module')
def mesh():
  from jax.experimental import topologies

  with pytest.MonkeyPatch.context() as patch:  # no machine of Google's, and perhaps another process compiles, too
    patch.setitem(os.environ, 'TPU_SKIP_MDS_QUERY', '1')
    patch.setitem(os.environ, 'ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    devices = topologies.get_topology_desc('v5e:2x2', platform='tpu').devices
    yield mesh_lib.make({'data': 1, 'fsdp': 2, 'tensor': 2}, devices)


def config(head_dim: int, **other):
  kinds = (Kind(frequencies=(0.1,) * (head_dim // 2)),)
  return dataclasses.replace(TINY, head_dim=head_dim, scale=head_dim**-0.5, **({'kinds': kinds} | other))


def placed(mesh, tree, rules=None):
  """Shapes on the mesh: parameters by `rules`, else the batch."""
  shapes = jax.eval_shape(tree) if callable(tree) else jax.eval_shape(lambda: tree)
  leaf = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  batch = mesh_lib.batch_sharding(mesh)
  places = mesh_lib.shardings(mesh, shapes, rules) if rules else jax.tree.map(lambda _: batch, shapes)
  return jax.tree.map(leaf, shapes, places)


def batch(P: int, G: int, T: int) -> Batch:
  zeros = lambda *shape: np.zeros(shape, np.int32)
  ones = lambda *shape: np.ones(shape, np.float32)
  pairs = zeros(B, 1), zeros(B, 1), ones(B, 1)
  selection = Selection(*pairs, ones(B, G), ones(B, G), np.broadcast_to(np.arange(G, dtype=np.int32), (B, G)))
  return Batch(Prompts(zeros(B, P), zeros(B)), zeros(B, G, T), zeros(B, G), ones(B, G, T), None, zeros(B, G), selection)


def kernels(compiled) -> list[str]:
  """Where each Pallas call of a program comes from."""
  calls = compiled.as_text().split('custom_call_target="tpu_custom_call"')[1:]
  return sorted(re.search(r'op_name="([^"]*)"', call)[1] for call in calls)


WINDOWS = dict(
  kinds=tuple(Kind(window=w, frequencies=(0.1,) * 32) for w in (48, 0)), pattern=(0, 1), attention_cap=30.0
)


@pytest.mark.parametrize(
  'head_dim,dtype,other',
  [
    (64, 'float32', {}),
    (64, 'bfloat16', WINDOWS),
    (128, 'float32', {}),
    (128, 'bfloat16', {}),
  ],
)
def test_update_and_score_compile(mesh, head_dim, dtype, other):
  policy = transformer(config(head_dim, **other), dtype=dtype, remat='layer')
  loss = {'group': (1.0, losses.pairs.dpo())}
  rate = optax.constant_schedule(1e-3)
  update_ = update.gradient(policy=policy, losses=loss, optimizer=update.adamw(learning_rate=rate), learning_rate=rate)
  rows = batch(P, G, T)
  with jax.set_mesh(mesh):
    params = placed(mesh, lambda: policy.init(jax.random.key(0)), RULES)
    state = placed(mesh, lambda: update_.init(policy.init(jax.random.key(0))), RULES)
    step = jax.jit(update_.step).lower(state, {}, placed(mesh, {'group': rows})).compile()
    score = jax.jit(lambda *args: logps.group_logps(policy, *args))
    score = score.lower(params, *placed(mesh, (rows.prompts, rows.ids_BxGxT, rows.length_BxG))).compile()
  windows = tuple(kind.window for kind in other['kinds']) if other else (0,) * TINY.layers
  block, _, live = splash.layout(P, G, T, windows)
  scope = f'/splash_{live}x{block}x{block}/'
  names = kernels(step), kernels(score)
  assert all(scope in name for name in sum(names, []))
  phase = lambda name: re.search(r'splash_mha_([a-z]+)_', name)[1]
  assert [sorted(map(phase, of)) for of in names] == [['dkv', 'dq', 'fwd'], ['fwd']]  # remat keeps the kernel's result


def test_a_decode_step_reads_a_prompt_once_for_its_group(mesh):
  """Each cache that comes in is read by one instruction; no array is as large as a copy per completion."""
  P, G, T, D = 2048, 8, 64, 64
  policy = transformer(config(D), dtype='bfloat16')

  def begin():
    params = policy.init(jax.random.key(0))
    _, prompt_cache = policy.prefill(params, Prompts(jnp.zeros((B, P), jnp.int32), jnp.zeros(B, jnp.int32)))
    return policy.unstack(params), prompt_cache, policy.start(prompt_cache, G, T)

  params, prompt_cache, cache = jax.eval_shape(begin)
  spec = jax.sharding.PartitionSpec
  on = lambda *axes: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec(*axes)))
  with jax.set_mesh(mesh):
    prompt_cache = {
      'layers': jax.tree.map(on(mesh_lib.BATCH, 'tensor'), prompt_cache['layers']),
      'length_B': on(mesh_lib.BATCH)(prompt_cache['length_B']),
    }
    cache |= {'layers': jax.tree.map(on(mesh_lib.BATCH, None, 'tensor'), cache['layers'])}
    ids = jax.ShapeDtypeStruct((B, G), jnp.int32, sharding=mesh_lib.batch_sharding(mesh))
    text = jax.jit(policy.decode, donate_argnums=2).lower(params, prompt_cache, cache, ids, ids).compile().as_text()
  entry = text[text.index('\nENTRY ') :]
  caches = re.findall(rf'%(\S+) = bf16\[1,1,(?:{D},{P}|{P},{D})\]\S* parameter', entry)  # a row and a head per device
  assert len(caches) == 2 * TINY.layers
  for name in caches:
    assert len(re.findall(rf'%{re.escape(name)}[,)]', entry)) == 1
  sizes = [np.prod(list(map(int, dims.split(',')))) for dims in re.findall(r'\w\[([\d,]+)\]', text)]
  assert P * D <= max(sizes) < G * P * D


def test_a_mesh_whose_axes_no_side_of_the_slice_has():
  """8x8 chips as 16 x 4: a side is cut."""
  from jax.experimental import topologies

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(os.environ, 'TPU_SKIP_MDS_QUERY', '1')
    patch.setitem(os.environ, 'ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    devices = topologies.get_topology_desc('v6e:8x8', platform='tpu').devices
  found = mesh_lib.make({'data': 1, 'fsdp': -1, 'tensor': 4}, devices)
  assert dict(found.shape) == {'data': 1, 'fsdp': 16, 'tensor': 4}
  assert len({device.id for device in found.devices.flat}) == 64
