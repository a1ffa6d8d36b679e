"""Counts of compiled programs, against arithmetic, XLA's own analysis and the same layers unrolled."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from past_jax import hlo
from past_jax.logps import group_logps
from past_jax.models.config import scratch
from past_jax.models.transformer import REMAT, transformer
from past_jax.types import Prompts

TPU_TEXT = Path(__file__).parent / 'hlo' / 'scan_v5e_2x2.txt'


def compiled(function, *shapes):
  return jax.jit(function).lower(*shapes).compile()


def array(*dims, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def count(function, *shapes) -> hlo.Counts:
  return hlo.total(hlo.costs(compiled(function, *shapes).as_text()))


def test_products_are_counted_as_xla_counts_them():
  def products(a, b, c):
    return jnp.einsum('bij,bkj->bik', a, b), c @ c.T

  shapes = array(3, 5, 7), array(3, 11, 7), array(13, 17)
  assert count(products, *shapes).flops == 2 * (3 * 5 * 11 * 7 + 13 * 13 * 17)
  assert compiled(products, *shapes).cost_analysis()['flops'] == count(products, *shapes).flops


@pytest.mark.parametrize('layers', [1, 4, 7])
def test_a_loop_counts_as_often_as_it_runs(layers):
  scanned = lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
  assert count(scanned, array(layers, 32, 32), array(8, 32)).flops == layers * 2 * 8 * 32 * 32


def loss(policy, params, prompts, ids, length):
  return group_logps(policy, params, prompts, ids, length, chunk=16).sum()


def test_four_layers_scanned_cost_what_they_cost_unrolled(monkeypatch):
  """XLA's own count is of one layer. Unrolled, there is no loop over layers whose runs could be misjudged.

  What is computed again in the backward pass must not be merged with what it repeats: in a loop it cannot be.
  """
  B, P, G, T = 2, 64, 2, 32
  group = Prompts(array(B, P, dtype=jnp.int32), array(B, dtype=jnp.int32)), array(B, G, T, dtype=jnp.int32)

  def counted():
    policy = transformer(scratch(layers=4, width=64), remat='layer')
    params = jax.eval_shape(policy.init, jax.random.key(0))
    gradient = jax.grad(functools.partial(loss, policy))
    program = compiled(gradient, params, *group, array(B, G, dtype=jnp.int32))
    return hlo.total(hlo.costs(program.as_text())).flops, program.cost_analysis()['flops']

  scanned, of_one_layer = counted()
  monkeypatch.setitem(REMAT, 'layer', functools.partial(REMAT['layer'], prevent_cse=True))
  monkeypatch.setattr(nn, 'scan', functools.partial(nn.scan, unroll=4))
  unrolled, _ = counted()
  assert scanned == pytest.approx(unrolled, rel=0.02)
  assert of_one_layer < 0.6 * scanned


def test_a_loop_that_depends_on_data_is_kept_apart():
  def until(w, x):
    body = lambda x: jnp.tanh(x @ w)
    return jax.lax.while_loop(lambda x: x.sum() < 100, body, x @ w)

  costs = hlo.costs(compiled(until, array(32, 32), array(8, 32)).as_text())
  once = 2 * 8 * 32 * 32
  assert sum(cost.flops for cost in costs if not cost.loop) == sum(cost.flops for cost in costs if cost.loop) == once


def test_of_a_conditional_the_dearer_branch_counts():
  branches = lambda a: a @ a, lambda a: a @ a @ a @ a
  choose = lambda i, a: jax.lax.switch(i, branches, a)
  assert count(choose, array(dtype=jnp.int32), array(16, 16)).flops == 3 * 2 * 16**3


LOOP = """HloModule loop, num_partitions=1

%body (p: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {{
  %p = (s32[], f32[8]{{0}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  %by = s32[] constant({step})
  %next = s32[] {op}(%i, %by)
  %y = f32[8]{{0}} negate(%x)
  ROOT %t = (s32[], f32[8]{{0}}, s32[]) tuple(%next, %y, %n)
}}

%condition (q: (s32[], f32[8], s32[])) -> pred[] {{
  %q = (s32[], f32[8]{{0}}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] get-tuple-element(%q), index=2
  ROOT %test = pred[] compare({sides}), direction={order}
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %start = s32[] constant({start})
  %end = s32[] constant({end})
  %state = (s32[], f32[8]{{0}}, s32[]) tuple(%start, %a, %end)
  %loop = (s32[], f32[8]{{0}}, s32[]) while(%state), condition=%condition, body=%body
  ROOT %out = f32[8]{{0}} get-tuple-element(%loop), index=1
}}
"""
UP, DOWN = '%j, %bound', '%bound, %j'


@pytest.mark.parametrize(
  ('start', 'end', 'step', 'op', 'sides', 'order', 'runs'),
  [
    (0, 4, 1, 'add', UP, 'LT', range(0, 4)),
    (3, 20, 4, 'add', UP, 'LE', range(3, 21, 4)),
    (20, 3, 4, 'subtract', UP, 'GT', range(20, 3, -4)),
    (20, 4, -4, 'add', UP, 'GE', range(20, 3, -4)),
    (0, 8, 2, 'add', UP, 'NE', range(0, 8, 2)),
    (0, 5, 1, 'add', DOWN, 'GT', range(0, 5)),
    (5, 0, 1, 'add', UP, 'LT', range(0)),
  ],
)
def test_trip_counts_follow_from_the_condition(start, end, step, op, sides, order, runs):
  """libtpu prints none. The bound is handed on by the loop, as XLA does with what it does not change."""
  text = LOOP.format(start=start, end=end, step=step, op=op, sides=sides, order=order)
  assert sum(cost.times for cost in hlo.costs(text) if cost.what == 'negate') == len(runs)


def test_a_program_of_a_tpu():
  """Four layers of tanh(x @ w) and their gradient on v5e:2x2, each weight split over four devices.

  Products are convolutions, gathers are libtpu's asynchronous fusions (a gather is written up to three times), and a
  reduce-scatter is a fusion of an all-reduce.
  """
  counts = hlo.total(hlo.costs(TPU_TEXT.read_text()))
  product, weight = 2 * (512 // 4) * 1024 * 1024, 2 * 1024 * 1024
  assert counts.flops == 4 * 3 * product
  assert counts.collectives == {
    'all-gather': {'count': 8, 'bytes': 8 * weight * 3 / 4},  # forward, and again backward
    'reduce-scatter': {'count': 4, 'bytes': 4 * weight * 3 / 4},
  }
  # At least every shard and every gathered weight are read, and gradients written; activations stay in VMEM.
  assert 4 * (weight / 4 + 2 * weight) < counts.bytes < 4 * 4 * weight


CONVOLUTIONS = {  # of TPU programs: (lhs, rhs, out, attributes) -> batch * rows * columns * summed
  'heads': ('320,256,1', '256,8,16', '320,8,16', 'window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=bf0_i0o->b0f'),
  'batch': (
    '8,4,2,64,16',
    '8,4,64,16,1',
    '8,4,2,64,64',
    'window={size=8x4x1 stride=7x3x1 lhs_dilate=8x4x1}, dim_labels=012bf_01oi2->012bf',
  ),
}
FMAS = {'heads': 320 * 256 * 8 * 16, 'batch': 8 * 4 * 2 * 64 * 64 * 16}


@pytest.mark.parametrize('name', FMAS)
def test_only_elements_that_exist_count_in_a_convolution(name):
  lhs, rhs, out, attributes = CONVOLUTIONS[name]
  op = hlo.instruction(f'  %c = f32[{out}]{{0}} convolution(%a, %b), {attributes}')
  shapes = [hlo.shapes_of(f'f32[{dims}]')[0] for dims in (lhs, rhs)]
  assert hlo.convolution_flops(op, *shapes) == 2 * FMAS[name]


@pytest.mark.parametrize(
  ('groups', 'n'),
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[4,2]<=[8]', 2),
    ("mesh['a'=4,'b'=2] {'a'}", 4),
    ("mesh['a'=4,'b'=2] {'a','b'}", 8),
    ("mesh['a'=8] {'a':(2)4}", 4),
    ('{}', 8),
  ],
)
def test_devices_of_a_collective(groups, n):
  op = hlo.instruction(f'  %r = f32[8]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add')
  assert hlo.group_size(op, 8) == n


@pytest.mark.parametrize(
  ('text', 'bytes_'),
  [
    ('f32[320,8,16]{2,1,0}', 4 * 320 * 8 * 16),
    ('bf16[320,8,16]{2,1,0:T(8,128)(2,1)}', 2 * 320 * 8 * 128),
    ('bf16[320,8,16]{0,2,1:T(8,128)(2,1)}', 2 * 384 * 8 * 16),
    ('f32[100]{0:T(128)}', 4 * 128),
    ('f32[320,8]{1,0:T(8,128)S(1)}', 0),  # in VMEM
    ('pred[7]{0}', 7),
  ],
)
def test_bytes_are_those_of_whole_tiles_in_hbm(text, bytes_):
  assert hlo.shapes_of(text)[0].hbm == bytes_


def test_slices_are_read_and_written_in_part():
  """A scan reads one layer of its stacked input at a time, and writes one layer of its output."""
  scanned = lambda w, x: jax.lax.scan(lambda x, w: ((y := x * w), y), x, w)
  layers, size = 16, 4096
  bytes_ = count(scanned, array(layers, size), array(size)).bytes
  assert bytes_ < 10 * 4 * layers * size  # whole arrays in every step would be 2 * 16 times as much


@pytest.mark.parametrize(('space', 'bytes_'), [('', 2 * 4 * 8 * 128), ('S(1)', 4 * 8 * 128)])  # HBM; VMEM
def test_a_slice_that_runs_meanwhile_is_read_in_part(space, bytes_):
  text = f"""
ENTRY %main (p: f32[64,128]) -> f32[8,128] {{
  %p = f32[64,128]{{1,0}} parameter(0)
  %start = (f32[64,128]{{1,0}}, f32[8,128]{{1,0:{space}}}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:8], [0:128]}}
  ROOT %done = f32[8,128]{{1,0:{space}}} slice-done(%start)
}}
"""
  assert hlo.total(hlo.costs(text)).bytes == bytes_


def test_collectives_of_this_machine():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
  place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  a = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=place(None, 'x'))
  b = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=place('x', None))
  text = jax.jit(jnp.matmul, out_shardings=place()).lower(a, b).compile().as_text()
  counts = hlo.total(hlo.costs(text))
  assert counts.flops == 2 * 64 * 32 * 16 / 8
  assert counts.collectives == {'all-reduce': {'count': 1, 'bytes': 2 * 4 * 64 * 16 * 7 / 8}}
  assert counts.sent == np.float64(2 * 4 * 64 * 16 * 7 / 8)


def test_text_that_is_no_module():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.Module('nothing')
