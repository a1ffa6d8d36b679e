"""The TPU's attention kernel, interpreted, against einsums and against a loop in float64."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType
from paths import by_decode, by_group, by_rows, ragged

from past_jax import mesh as mesh_lib
from past_jax.logps import group_logps
from past_jax.models import RULES, attention, splash
from past_jax.models.config import TINY
from past_jax.models.transformer import transformer

WINDOWS = dataclasses.replace(  # a window over less than a completion, none, one over more than a completion
  TINY,
  kinds=tuple(dataclasses.replace(TINY.kinds[0], window=w) for w in (5, 0, 90)),
  pattern=(2, 0, 1),
  attention_cap=2.0,
)


def keys_of(s: int, P: int, G: int, T: int, window: int) -> list[int]:
  """What token s sees, told one token at a time."""
  if s >= P + G * T:
    return [s]
  g, t = divmod(s - P, T) if s >= P else (0, -1)
  own = list(range(P + g * T, P + g * T + t + 1))
  return (list(range(min(s + 1, P))) + own)[-(window or 10**9) :]


@pytest.mark.parametrize('P,G,T', [(128, 3, 40), (256, 2, 64), (0, 1, 250), (128, 0, 0)])
@pytest.mark.parametrize('window', [0, 1, 7, 130])
def test_the_mask_is_that_of_a_tree(P, G, T, window):
  mask = splash.TreeMask(P, G, T, splash.up(P + G * T, 128) + 128, window)
  expected = np.zeros(mask.shape, bool)
  for s in range(mask.size):
    expected[s, keys_of(s, P, G, T, window)] = True
  np.testing.assert_array_equal(mask[:, :], expected)
  np.testing.assert_array_equal(mask[5:77, 100:], expected[5:77, 100:])
  for bq, bkv in [(128, 128), (128, 64), (64, 128)]:
    tiles = expected.reshape(mask.size // bq, bq, mask.size // bkv, bkv).any(axis=(1, 3))
    assert splash.live_blocks(mask, bq, bkv) == tiles.sum()


def loop(q, k, v, P, G, T, lengths, window, scale, cap):
  """One query, one head at a time, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out, ratio = np.zeros_like(q), q.shape[2] // k.shape[2]
  for b, s, h in np.ndindex(q.shape[:3]):
    keys = [j for j in keys_of(s, P, G, T, window) if j >= P - lengths[b]]
    if not keys:
      continue  # a pad
    scores = scale * k[b, keys, h // ratio] @ q[b, s, h]
    scores = cap * np.tanh(scores / cap) if cap else scores
    weights = np.exp(scores - scores.max())
    out[b, s, h] = weights @ v[b, keys, h // ratio] / weights.sum()
  return out


def test_it_is_a_softmax_over_what_is_seen():
  B, P, G, T, H, K, D = 2, 37, 3, 50, 4, 2, 8
  lengths, windows = np.array([37, 4]), (0, 33)
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (B, P + G * T, H, D))
  k, v = (jax.random.normal(key, (B, P + G * T, K, D)) for key in keys[1:])
  valid = jnp.arange(P)[None] >= P - lengths[:, None]
  real = np.concatenate([valid, np.ones((B, G * T), bool)], axis=1)[:, :, None, None]
  options = dict(windows=windows, pattern=(0, 1, 1), scale=0.4, cap=1.5)
  run = jax.jit(lambda kind: splash.tree_attention(q, k, v, valid, T, kind, **options))
  for kind in (0, 1):
    expected = loop(q, k, v, P, G, T, lengths, windows[kind], 0.4, 1.5)
    np.testing.assert_allclose(np.where(real, run(kind), 0), expected, atol=2e-6)


def compared(monkeypatch, block, dtype, windows, kind, P, cap=0.0, lengths=(37, 0)):
  """[(values, gradients of q, k and v) by the kernel, by einsums], where tokens are real."""
  monkeypatch.setattr(splash, 'BLOCKS', (block,))
  splash.layout.cache_clear()
  B, G, T, H, K, D = 2, 3, 50, 4, 2, 32
  keys = jax.random.split(jax.random.key(0), 4)
  q, d_out = (jax.random.normal(key, (B, P + G * T, H, D)).astype(dtype) for key in keys[:2])
  k, v = (jax.random.normal(key, (B, P + G * T, K, D)).astype(dtype) for key in keys[2:])
  valid = jnp.arange(P)[None] >= P - jnp.array(lengths)[:, None]
  real = jnp.concatenate([valid, jnp.ones((B, G * T), bool)], axis=1)[:, :, None, None]
  options = dict(scale=D**-0.5, cap=cap)

  def by_kernel(kind, q, k, v):
    return splash.tree_attention(q, k, v, valid, T, kind, windows=windows, pattern=(0, 1, 1), **options)

  def by_einsums(kind, q, k, v):
    window = jnp.array([w or 1 << 30 for w in windows])[kind]
    return attention.tree_attention(q, k, v, valid, P + jnp.arange(T), window, **options)

  def both(attend):
    value, pull = jax.vjp(functools.partial(jax.jit(attend), kind), q, k, v)
    return jnp.where(real, value, 0), *pull(jnp.where(real, d_out, 0))

  found = [both(by_kernel), both(by_einsums)]
  splash.layout.cache_clear()
  return found


@pytest.mark.parametrize('block,windows,kind,P,cap', [(128, (0, 40), 1, 37, 0.0), (256, (0, 0), 0, 0, 1.5)])
def test_in_float32_values_and_gradients_are_those_of_einsums(monkeypatch, block, windows, kind, P, cap):
  for got, want in zip(*compared(monkeypatch, block, 'float32', windows, kind, P, cap)):
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want).max() > 0.1


def test_in_bfloat16_it_is_as_near_to_float32_as_einsums_are(monkeypatch):
  """Both round weights and gradients of scores to bfloat16; the kernel also its scaled queries."""
  arguments = (0, 40), 1, 37
  exact, _ = compared(monkeypatch, 128, 'float32', *arguments)
  for ours, theirs, true in zip(*compared(monkeypatch, 128, 'bfloat16', *arguments), exact):
    assert ours.dtype == jnp.bfloat16
    error = lambda x, true=true: np.linalg.norm(np.asarray(x, np.float64) - true) / np.linalg.norm(true)
    assert error(ours) < 0.01 and error(ours) < 1.5 * error(theirs)


def test_log_probs_and_gradients_on_eight_devices():
  """Ragged prompts (one empty) and completions, six rows over four shards, heads over two, three kinds of layers."""
  rows = ragged(0, [30, 7, 0, 13, 1, 30], np.random.default_rng(0).integers(0, 41, (6, 2)), P=30, T=40)
  params = jax.jit(transformer(WINDOWS).init)(jax.random.key(0))
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, params)  # far from uniform
  weights = jax.random.normal(jax.random.key(1), rows[1].shape)

  def found(pallas):
    policy = transformer(WINDOWS, remat='dots', pallas=pallas)

    def total(params):
      logps = group_logps(policy, params, *rows)
      return (weights * logps).sum(), logps

    (_, logps), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return logps, grads

  expected, expected_grads = found(False)
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  with jax.set_mesh(mesh):
    params = jax.device_put(params, mesh_lib.shardings(mesh, params, RULES))
    logps, grads = found(True)
  np.testing.assert_allclose(logps, expected, atol=1e-5)
  for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert np.abs(want).max() > 0.1


def test_rows_and_prefill_are_those_of_the_group(params):
  rows = ragged(1, [9, 3], [[20, 4], [0, 17]], P=9, T=20)
  run = lambda path, pallas: jax.jit(functools.partial(path, transformer(TINY, pallas=pallas)))(params, *rows)
  expected = run(by_group, False)
  np.testing.assert_allclose(run(by_rows, True), expected, atol=2e-5)
  np.testing.assert_allclose(run(by_decode, True), expected, atol=2e-5)


def program(policy, platform: str):
  """What is traced for the devices of a mesh that is only described."""
  device = jax.sharding.AbstractDevice(device_kind='any', num_cores=1, platform=platform)
  mesh = jax.sharding.AbstractMesh((1, 2, 2), mesh_lib.AXES, (AxisType.Auto,) * 3, abstract_device=device)
  rows = jax.eval_shape(lambda: ragged(0, [2, 2], [[3], [3]], P=4, T=4))
  shapes = jax.eval_shape(transformer(TINY).init, jax.random.key(0))
  with jax.sharding.use_abstract_mesh(mesh):
    total = lambda params, rows: group_logps(policy, params, *rows).sum()
    return jax.make_jaxpr(jax.grad(total))(shapes, rows).jaxpr


def equations(jaxpr, inside: bool = False):
  """Of a program, with whether they are in a kernel."""
  for equation in jaxpr.eqns:
    yield equation, inside
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner, inside or equation.primitive.name == 'pallas_call')


def test_the_devices_of_the_mesh_decide():
  kernels = lambda policy, platform: sum(
    e.primitive.name == 'pallas_call' for e, _ in equations(program(policy, platform))
  )
  assert kernels(transformer(TINY), 'tpu') == 3  # forward, and the gradients of queries and of keys
  assert kernels(transformer(TINY), 'cpu') == kernels(transformer(TINY), 'gpu') == 0
  assert kernels(transformer(TINY, pallas=False), 'tpu') == 0
  assert kernels(transformer(TINY, pallas=True), 'cpu') == 3


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_float32_is_exact_in_the_kernel_and_its_derivative(dtype):
  found = equations(program(transformer(TINY, dtype=dtype), 'tpu'))
  products = [e.params['precision'] for e, inside in found if inside and e.primitive.name == 'dot_general']
  highest = (jax.lax.Precision.HIGHEST,) * 2
  assert len(products) == 9 and set(products) == {highest if dtype == 'float32' else None}


def test_counters_find_the_number_of_live_blocks():
  """Each kernel is named by it: what a kernel costs stands nowhere else in a program."""
  block, masks, live = splash.layout(4, 1, 4, (0,) * TINY.layers)
  names = {
    str(e.source_info.name_stack)
    for e, _ in equations(program(transformer(TINY), 'tpu'))
    if 'pallas' in e.primitive.name
  }
  assert names and all(f'splash_{live}x{block}x{block}' in name for name in names)
  assert live == splash.live_blocks(masks[0], block, block)


def test_the_mean_over_layers_is_counted():
  block, masks, live = splash.layout(2048, 4, 128, (300, 300, 0))
  each = [splash.live_blocks(mask, block, block) for mask in masks]
  assert each[0] == each[1] < each[2] and live == round(sum(each) / 3)


SHAPES = [(3072, 8, 1024), (2048, 8, 256), (512, 8, 512), (512, 8, 128), (512, 8, 64), (512, 8, 16), (512, 2, 16)]
SHAPES += [(128, 64, 16), (2048, 64, 64)]


def test_the_table_in_the_docs():
  assert splash.table(SHAPES) in (Path(__file__).parent.parent / 'docs' / 'models.md').read_text()
