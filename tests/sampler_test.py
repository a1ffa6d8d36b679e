"""The sampler: what it draws, that slots, batch mates and devices change none of it, and what its programs hold."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax import hlo, lora
from past_jax import mesh as mesh_lib
from past_jax.models import RULES
from past_jax.models.config import TINY
from past_jax.models.transformer import INPUT_AXES, transformer
from past_jax.sampler import BLOCK, draw, filtered, layout, least_kept, sample
from past_jax.types import Prompts, UserError

B, P, G, T = 8, 9, 6, 11  # no two sizes alike, so that shapes in programs tell what they are of
CLOSE = 1e-4  # of two perturbed logits: which one wins may depend on rounding
OFF = {'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
STOP = np.array([*range(0, 256, 13), -1], np.int32)  # 0, too, which fills the arrays up


@functools.cache
def program(policy, slots):
  def run(params, keys_B, prompts, limit_BxG, temperature, stop_ids, filters):
    options = {'group': G, 'length': T, 'slots': slots, 'limit_BxG': limit_BxG, **filters}
    return sample(policy, params, keys_B, prompts, temperature, stop_ids, **options)

  return jax.jit(run)


@pytest.fixture(scope='module')
def batch():
  """(keys_B, prompts, limit_BxG): limits from none at all to all of T, most of them short, one prompt's all long."""
  rng = np.random.default_rng(0)
  prompts = Prompts(rng.integers(1, 256, (B, P)).astype(np.int32), np.array([9, 3, 1, 1, 2, 8, 5, 4], np.int32))
  limit_BxG = rng.choice(np.array([0, 1, 2, 3, 9, T], np.int32), (B, G), p=[0.1, 0.2, 0.2, 0.2, 0.1, 0.2])
  limit_BxG[5] = T
  return jax.random.split(jax.random.key(1), B), prompts, limit_BxG


@pytest.fixture(scope='module')
def whole(policy, params, batch):
  """All completions at once, drawn with neither filters nor temperature."""
  return jax.device_get(program(policy, 0)(params, *batch, 1.0, STOP, OFF))


def close_calls(policy, params, keys_B, group):
  """Gumbel-max in float64 on the trainer's logits: asserts every token, and counts those that rounding decides."""
  args = group.prompts, group.ids_BxGxT, group.length_BxG
  logits = np.asarray(policy.head(params, jax.jit(policy.groups)(params, [args])[0]), np.float64)
  blocks = -(-logits.shape[-1] // BLOCK)
  logits = np.pad(logits, [(0, 0)] * 3 + [(0, blocks * BLOCK - logits.shape[-1])], constant_values=-np.inf)
  mass = np.log(np.exp(logits.reshape(*logits.shape[:-1], blocks, BLOCK)).sum(-1))
  close = 0
  for b, g in np.ndindex(*group.length_BxG.shape):
    key = jax.random.fold_in(keys_B[b], g)
    for t in range(group.length_BxG[b, g]):
      noise = np.asarray(jax.random.gumbel(jax.random.fold_in(key, t), (blocks + BLOCK,)), np.float64)
      first = mass[b, g, t] + noise[:blocks]
      block = first.argmax()
      second = logits[b, g, t, block * BLOCK : (block + 1) * BLOCK] + noise[blocks:]
      if min(np.diff(np.sort(x)[-2:])[0] for x in (first, second)) < CLOSE:
        close += 1
      else:
        assert group.ids_BxGxT[b, g, t] == block * BLOCK + second.argmax(), (b, g, t)
  return close


def test_every_token_is_the_argmax_of_its_own_noise(policy, params, batch, whole):
  """The noise is a function of (prompt's key, member, position), and the logits are the trainer's."""
  keys_B, _, limit_BxG = batch
  assert close_calls(policy, params, keys_B, whole) == 0  # with these keys; so the tests below compare all tokens
  assert (whole.length_BxG <= limit_BxG).all()
  t = np.arange(T)[None, None]
  stops = np.isin(whole.ids_BxGxT, STOP) & (t < whole.length_BxG[..., None])
  np.testing.assert_array_equal(stops.any(-1), whole.finished_BxG)
  assert (stops.argmax(-1) == whole.length_BxG - 1)[whole.finished_BxG].all()  # the first stop is the last token
  np.testing.assert_array_equal(whole.length_BxG[~whole.finished_BxG], limit_BxG[~whole.finished_BxG])
  assert whole.finished_BxG.any() and (~whole.finished_BxG & (limit_BxG > 1)).any()
  for x in (whole.ids_BxGxT, whole.logps_BxGxT, whole.behaviour_logps_BxGxT):
    assert not x[np.broadcast_to(t >= whole.length_BxG[..., None], x.shape)].any()


def assert_same_group(a, b):
  for name in ('ids_BxGxT', 'length_BxG', 'finished_BxG'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
  np.testing.assert_allclose(a.logps_BxGxT, b.logps_BxGxT, atol=1e-5)
  np.testing.assert_allclose(a.behaviour_logps_BxGxT, b.behaviour_logps_BxGxT, atol=1e-5)


@pytest.mark.parametrize('slots', [3, 24])  # 3 rows of one slot, 8 of three
def test_slots_change_no_token(policy, params, batch, whole, slots):
  assert_same_group(program(policy, slots)(params, *batch, 1.0, STOP, OFF), whole)


def test_slots_change_no_token_under_filters_and_other_limits(policy, params, batch):
  keys_B, prompts, _ = batch
  for seed, filters in enumerate([{'top_k': 5, 'top_p': 0.9, 'min_p': 0.01}, OFF]):
    limit_BxG = np.random.default_rng(seed).integers(0, T + 1, (B, G)).astype(np.int32)
    args = params, keys_B, prompts, limit_BxG, 0.7, STOP, filters
    assert_same_group(program(policy, 24)(*args), program(policy, 0)(*args))


def test_a_prompt_alone_gets_the_tokens_that_it_gets_in_a_batch(policy, params, batch, whole):
  keys_B, prompts, limit_BxG = batch
  for b in (1, 5):
    others = np.full(B, b)  # the one prompt, with one key, as a whole batch: one program serves both
    alone = Prompts(prompts.ids_BxP[others], prompts.length_B[others])
    group = program(policy, 24)(params, keys_B[others], alone, limit_BxG[others], 1.0, STOP, OFF)
    for x, y in zip(jax.tree.leaves(group), jax.tree.leaves(whole)):
      np.testing.assert_allclose(x[0], y[b], atol=1e-5)


def placed_run(policy, params, batch, slots, shape):
  """(the group as 8 devices sample it, its program): of a mesh of this shape."""
  mesh = mesh_lib.make(dict(zip(mesh_lib.AXES, shape)))
  with jax.set_mesh(mesh):
    args = jax.device_put(params, mesh_lib.shardings(mesh, params, RULES)), *mesh_lib.put_batch(mesh, batch)
    compiled = program(policy, slots).lower(*args, 1.0, STOP, OFF).compile()
    return compiled(*args, 1.0, STOP, OFF), compiled.as_text()


@pytest.mark.parametrize('slots, shape', [(16, (2, 2, 2)), (8, (8, 1, 1)), (8, (1, 8, 1))])
def test_devices_change_no_token_and_caches_stay_where_they_are(policy, params, batch, whole, slots, shape):
  group, text = placed_run(policy, params, batch, slots, shape)
  assert_same_group(jax.device_get(group), whole)
  assert group.ids_BxGxT.sharding.is_equivalent_to(mesh_lib.batch_sharding(group.ids_BxGxT.sharding.mesh), 3)
  moved = re.findall(r'= \(?(\w+\[[\d,]*\])\S* (?:all-gather|all-to-all|collective-permute)', text)
  sizes = [[int(n) for n in re.findall(r'\d+', shape.partition('[')[2])] for shape in moved]
  # What is gathered are parameters, logits, and the prompts' ids, which every device looks up in its part of the table.
  ids = [[len(batch[1].ids_BxP) // shape[0], P]] * any(n > 1 for n in shape[1:])
  assert not [size for size in sizes if {P, T} & set(size) and size not in ids], moved
  assert moved or shape == (8, 1, 1)  # one model on every device: nothing at all
  sent = hlo.total(cost for cost in hlo.costs(text) if cost.loop).sent
  kernels = sum(
    x.nbytes for path, x in jax.tree_util.tree_leaves_with_path(params['layers']) if path[-1].key == 'kernel'
  )
  assert sent < kernels / 6  # of a turn of the loop: activations move, and no kernel does


@pytest.mark.slow
def test_adapters_biases_and_heads_that_no_axis_divides_decode_on_a_mesh(batch):
  """A head of 12 is whole on all of 8 devices, and in parts on 4."""
  names = 'q', 'k', 'v', 'o', 'gate', 'up', 'down'
  kinds = (dataclasses.replace(TINY.kinds[0], frequencies=TINY.kinds[0].frequencies[:6]),)
  config = dataclasses.replace(TINY, head_dim=12, kinds=kinds, pattern=(0,), biased=names, post_norms=True, tied=False)
  policy, rng = transformer(config), np.random.default_rng(0)
  noisy = lambda tree: jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), tree)
  params = noisy(policy.init(jax.random.key(0)))
  adapters = lora.init(jax.random.key(1), params, targets=(), rank=2, input_axes=INPUT_AXES)
  params = lora.attach(params, noisy(adapters), 1.0)
  one = jax.device_get(program(policy, 8)(params, *batch, 1.0, STOP, OFF))
  for shape in ((1, 8, 1), (1, 4, 2)):
    assert_same_group(jax.device_get(placed_run(policy, params, batch, 8, shape)[0]), one)


def test_nothing_compiles_over_what_is_traced(policy, params, batch):
  keys_B, prompts, limit_BxG = batch
  run = program(policy, 24)
  run(params, keys_B, prompts, limit_BxG, 1.0, STOP, OFF)
  before = run._cache_size()
  other = jax.random.split(jax.random.key(2), B)
  changes = [{'top_k': 7}, {'top_p': 0.5}, {'min_p': 0.2}]
  groups = [run(params, other, prompts, limit_BxG // 2, 0.0, STOP, OFF)]
  groups += [run(params, keys_B, prompts, limit_BxG, 1.0, STOP + 5, OFF)]
  groups += [run(params, keys_B, prompts, limit_BxG, 0.5, STOP, OFF | change) for change in changes]
  assert run._cache_size() == before
  assert len({np.asarray(group.ids_BxGxT).tobytes() for group in groups}) == len(groups)


# --- drawing ------------------------------------------------------------------------------------------------------


def by_sorting(logits, top_k, top_p, min_p):
  """Which of a row's logits stay, in float64, one token after the other from the likeliest."""
  kept, order = np.zeros(len(logits), bool), np.argsort(-logits, kind='stable')
  order = order[: top_k or len(order)]
  p = np.exp(logits[order].astype(np.float64) - logits.max())
  before = np.cumsum(p) - p
  kept[order[(before < top_p * p.sum()) | (before == 0)]] = True
  return kept & (np.exp(logits.astype(np.float64) - logits.max()) >= min_p)


@pytest.mark.parametrize('top_k', [0, 1, 37, 700, 5000])
@pytest.mark.parametrize('top_p', [0.0, 0.35, 0.93, 1.0])
def test_filters_keep_what_sorting_keeps(top_k, top_p):
  logits = np.random.default_rng(0).normal(size=(6, 700)).astype(np.float32) * np.float32(3)
  for min_p in (0.0, 0.05):
    found = jax.jit(filtered)(logits, jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))
    expected = [by_sorting(row, top_k, top_p, min_p) for row in logits]
    np.testing.assert_array_equal(np.isfinite(found), expected)
    np.testing.assert_array_equal(np.asarray(found)[np.isfinite(found)], logits[np.array(expected)])


def test_ties_stay_and_signs_are_no_trouble():
  logits = jnp.array([[2.0, 1.0, 1.0, 1.0, -1.0], [0.0, -0.0, -1e-30, -3.0, -jnp.inf], [-1.0, -2.0, -3.0, -4.0, -5.0]])
  count = lambda k: least_kept(logits, jnp.ones_like(logits), jnp.full(3, k, jnp.float32))
  np.testing.assert_array_equal((logits >= count(2)[:, None]).sum(-1), [4, 2, 2])
  np.testing.assert_array_equal((logits >= count(4)[:, None]).sum(-1), [4, 4, 4])
  np.testing.assert_array_equal(count(6), [-np.inf] * 3)


def test_draws_follow_the_distribution_and_report_it():
  """40,000 draws over 5 blocks, a part of the vocabulary left out: frequencies within 5 sigma, log-probs in float64."""
  V, n = 4 * BLOCK + 100, 40_000
  logits = np.random.default_rng(1).normal(size=V).astype(np.float32) * np.float32(2)
  keys = jax.random.split(jax.random.key(0), (1, n))
  run = jax.jit(lambda t, k: draw(logits[None], keys, t, k, jnp.float32(1), jnp.float32(0)))
  raw = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
  for temperature, top_k in ((1.0, 0), (1.5, 60)):
    found = jax.device_get(run(jnp.float32(temperature), jnp.int32(top_k)))
    ids, kept = found['ids'][0], by_sorting(logits, top_k, 1.0, 0.0)
    p = np.where(kept, np.exp(logits.astype(np.float64) / temperature), 0)
    p /= p.sum()
    frequency = np.bincount(ids, minlength=V) / n
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1 / n).all()
    np.testing.assert_allclose(found['logps'][0], raw[ids], atol=2e-6)
    np.testing.assert_allclose(found['behaviour'][0], np.log(p[ids]), atol=5e-6)


def test_greedy_takes_the_first_of_the_best():
  logits = np.zeros((1, 3 * BLOCK), np.float32)
  logits[0, [BLOCK + 5, BLOCK + 9, 2 * BLOCK]] = 2.0
  keys = jax.random.split(jax.random.key(0), (1, 4))
  found = draw(jnp.array(logits), keys, jnp.float32(0), jnp.int32(0), jnp.float32(1), jnp.float32(0))
  np.testing.assert_array_equal(found['ids'], BLOCK + 5)
  np.testing.assert_array_equal(found['behaviour'], 0)


# --- programs -----------------------------------------------------------------------------------------------------


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def test_nothing_sorts_the_vocabulary_or_draws_noise_for_all_of_it():
  V = 20 * BLOCK
  keys = jax.random.split(jax.random.key(0), (2, 1))
  args = jnp.zeros((2, V)), keys, jnp.float32(1), jnp.int32(0), jnp.float32(1), jnp.float32(0)
  found = [(e.primitive.name, [v.aval.shape for v in e.outvars]) for e in equations(jax.make_jaxpr(draw)(*args).jaxpr)]
  names = {name for name, _ in found}
  assert {'cond', 'while', 'random_bits', 'exp'} <= names  # the walk sees the filters, too
  assert not {'sort', 'top_k', 'approx_top_k', 'cumsum'} & names
  assert max(np.prod(s) for name, shapes in found if name == 'random_bits' for s in shapes) == 2 * (V // BLOCK + BLOCK)


def test_a_step_copies_neither_caches_nor_kernels(policy, params, batch):
  text = program(policy, 24).lower(params, *batch, 1.0, STOP, OFF).compile().as_text()
  computations = {c.split(maxsplit=1)[0].lstrip('%'): c for c in re.split(r'\n(?=%|ENTRY)', text)}
  bodies = [computations[name] for name in re.findall(r'body=%?([\w.\-]+)', text)]
  (step,) = [body for body in bodies if ' conditional(' in body]  # the one that draws
  made = collections.defaultdict(set)  # shape -> the instructions of a step that compute an array of it
  for name, shape, op in re.findall(r'%([\w.\-]+) = \w+\[([\d,]*)\]\S* ([\w\-]+)\(', step):
    if op not in ('get-tuple-element', 'parameter', 'bitcast'):
      made[shape].add(name)
  K, D = 2, 16  # of the tiny model
  assert made[f'8,3,{K},{T},{D}'] and all('dynamic-update-slice' in name for name in made[f'8,3,{K},{T},{D}'])
  for shape in (f'8,{K},{P},{D}', '64,128', '128,64', '64,4,16', '64,2,16', '4,16,64'):
    assert not made[shape], shape


def test_layout():
  assert layout(0, 8, 6) == (8, 6) and layout(48, 8, 6, 8) == (8, 6) and layout(1000, 8, 6) == (8, 6)
  assert layout(16, 8, 6) == (8, 2) and layout(64, 16, 16, 2) == (16, 4)
  assert layout(12, 8, 6) == (6, 2) and layout(4, 8, 6, 4) == (4, 1) and layout(12, 8, 6, 4) == (4, 3)
  with pytest.raises(UserError, match='slots=13 must be R x C, .* 12 is near'):
    layout(13, 8, 6)
  with pytest.raises(UserError, match='a multiple of the 8 devices.* 8 is near'):
    layout(4, 8, 6, 8)
