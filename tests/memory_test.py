"""What the programs hold: no logits of a whole batch, one micro-batch of activations, one copy of the state."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import shapes

from past_jax import logps, losses, update
from past_jax.collect import collector
from past_jax.models.config import TINY
from past_jax.models.transformer import REMAT, transformer
from past_jax.sampler import sample
from past_jax.types import Batch, Prompts, Selection

B, G, P, T = 4, 2, 8, 48  # 384 tokens of completions
CHUNK = 16  # tokens: shorter than any completion
V = TINY.vocab


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def batch_of(B=B, G=G, P=P, T=T):
  prompts = Prompts(np.ones((B, P), np.int32), np.full(B, P, np.int32))
  pairs, ones = np.zeros((B, 1), np.int32), np.ones((B, G), np.float32)
  members = np.broadcast_to(np.arange(G, dtype=np.int32), (B, G))
  selection = Selection(pairs, pairs + 1, np.ones((B, 1), np.float32), ones, ones, members)
  return Batch(prompts, np.ones((B, G, T), np.int32), np.full((B, G), T, np.int32), None, None, members * 0, selection)


def step_of(policy, **options):
  terms = {'group': (1.0, losses.add([(1.0, 'dpo', losses.pairs.dpo()), (1.0, 'nll', losses.nll())]))}
  optimizer, rate = update.adamw(learning_rate=1e-3), optax.constant_schedule(1e-3)
  return update.gradient(policy=policy, losses=terms, optimizer=optimizer, learning_rate=rate, **options)


# --- logits -------------------------------------------------------------------------------------------------------


def equations(jaxpr):
  """Every equation of a program, those of its loops, branches and calls included."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for item in value if isinstance(value, tuple | list) else (value,):
        item = getattr(item, 'jaxpr', item)  # of a closed one
        if hasattr(item, 'eqns'):
          yield from equations(item)


def wide_arrays(program, *args, tokens=CHUNK):
  """Shapes of arrays with the vocabulary for more than `tokens` tokens, or as large as the logits of all tokens."""
  own = {tuple(sorted(x.shape)) for x in jax.tree.leaves(shapes(TINY))}  # weights, transposed or not, and their moments
  found = {v.aval.shape for e in equations(jax.make_jaxpr(program)(*args).jaxpr) for v in (*e.invars, *e.outvars)}
  found = {shape for shape in found if tuple(sorted(shape)) not in own}
  assert any(V in shape for shape in found), 'the walk saw no logits at all'
  logits = {shape: math.prod(shape) // V for shape in found if math.prod(shape) % V == 0}
  return {shape for shape, rows in logits.items() if rows >= B * G * T or (V in shape and rows > tokens)}


@pytest.mark.parametrize('micro', [0, 2])
def test_no_update_has_logits_of_all_its_tokens(policy, micro):
  made = step_of(policy, micro=micro, chunk=CHUNK)
  state = jax.eval_shape(made.init, shapes(TINY))
  assert wide_arrays(made.step, state, {}, {'group': abstract(batch_of())}) == set()


def test_statistics_are_made_chunk_by_chunk(policy):
  b = batch_of()

  def total(params):
    rows = (b.prompts, b.ids_BxGxT, b.length_BxG)
    out = logps.group_outputs(policy, params, *rows, statistics=tuple(logps.STATISTICS), chunk=CHUNK)
    return sum(x.sum() for x in out.values())

  assert wide_arrays(jax.grad(total), shapes(TINY)) == set()


def test_no_scoring_has_logits_of_all_its_tokens(policy, mesh):
  parts = dict(generate=lambda *_: None, judge=None, select=lambda *_: None)
  score = collector(policy=policy, mesh=mesh, prompts_per_call=1, chunk=CHUNK, **parts).logps
  b = abstract(batch_of())
  assert wide_arrays(score, shapes(TINY), b.prompts, b.ids_BxGxT, b.length_BxG) == set()


def test_no_sampling_has_logits_of_all_its_tokens(policy):
  """One position of every completion at a time; filters included."""

  def draw(params, keys, prompts, temperature, top_p):
    return sample(policy, params, keys, prompts, temperature, jnp.array([3]), group=G, length=T, top_p=top_p)

  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), B))
  assert wide_arrays(draw, shapes(TINY), keys, abstract(batch_of().prompts), 1.0, 0.5, tokens=B * G) == set()


def test_the_walk_finds_logits_of_all_tokens(policy):
  """The control: a log-softmax of everything at once, hidden in a loop, and flattened so that no axis is V."""
  b = batch_of()

  def naive(params):
    logits = policy.head(params, policy.groups(params, [(b.prompts, b.ids_BxGxT, b.length_BxG)])[0])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), b.ids_BxGxT[..., None], axis=-1).sum()

  once = lambda program: lambda params: jax.lax.map(lambda i: program(params) * i, jnp.ones(1))
  flat = lambda params: jnp.exp(jnp.ones((B * G, T * V)) * params['embed']['embedding'][0, 0])
  logits = lambda params: policy.head(params, params['embed']['embedding'])  # some, so that the walk sees them
  assert (B, G, T, V) in wide_arrays(jax.grad(naive), shapes(TINY))
  assert (B, G, T, V) in wide_arrays(once(naive), shapes(TINY))
  assert wide_arrays(lambda p: (flat(p), logits(p)), shapes(TINY)) >= {(B * G, T * V)}


# --- activations --------------------------------------------------------------------------------------------------


def test_memory_falls_with_what_layers_keep():
  """Bounds in units of what the products with kernels alone take: `dots` keeps these, `layer` each layer's input."""
  config, b = dataclasses.replace(TINY, pattern=(0,) * 8), batch_of(B=4, P=32, T=96)
  ids = np.random.default_rng(0).integers(0, 256, b.ids_BxGxT.shape).astype(np.int32)
  params, grads, size = jax.jit(transformer(config).init)(jax.random.key(0)), {}, {}
  for remat in REMAT:
    policy = transformer(config, remat=remat)
    total = lambda p, policy=policy: logps.group_logps(policy, p, b.prompts, ids, b.length_BxG, chunk=256).mean()
    compiled = jax.jit(jax.grad(total)).lower(params).compile()
    size[remat], grads[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled(params)
  q, k, v, o, up, gate, down = 64, 32, 32, 64, 128, 128, 64  # outputs of TINY's products per token
  products = 8 * 4 * (32 + 2 * 96) * (q + k + v + o + up + gate + down) * 4  # layers, prompts, tokens, outputs, bytes
  print({remat: n / products for remat, n in size.items()})
  assert size['none'] < 2.3 * products and size['dots'] < 1.6 * products and size['layer'] < 0.65 * products
  for remat in ('dots', 'layer'):
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    jax.tree.map(close, grads[remat], grads['none'])


@pytest.fixture(scope='module')
def compiled(policy):
  """micro -> the step of 16 prompts, and its state."""

  @functools.cache
  def make(micro):
    made = step_of(policy, micro=micro, chunk=256)
    state = jax.eval_shape(made.init, shapes(TINY))
    batch = {'group': abstract(batch_of(B=16, P=32, T=64))}
    return jax.jit(made.step, donate_argnums=0).lower(state, {}, batch).compile(), state

  return make


def test_memory_falls_with_the_micro_batch(compiled):
  whole, parts = (compiled(micro)[0].memory_analysis().temp_size_in_bytes / 2**20 for micro in (0, 2))
  print(f'MiB: {whole:.1f}, in parts of 2 of 16 prompts {parts:.1f}')
  assert parts < 0.25 * whole


def test_every_buffer_of_the_state_is_donated(compiled):
  """Two copies of parameters and moments never exist. (That a buffer cannot be donated would also be a warning.)"""
  step, state = compiled(2)
  analysis, leaves = step.memory_analysis(), jax.tree.leaves(state)
  assert len(re.findall('(?:may|must)-alias', step.as_text())) == len(leaves)
  assert analysis.alias_size_in_bytes == sum(x.size * x.dtype.itemsize for x in leaves)


def test_under_bfloat16_state_and_sums_of_gradients_are_float32():
  policy = transformer(TINY, dtype='bfloat16')
  made = step_of(policy, micro=2)
  state = jax.eval_shape(made.init, shapes(TINY))
  program = jax.make_jaxpr(made.step)(state, {}, {'group': abstract(batch_of(T=8))})
  floats = lambda avals: {x.dtype.name for x in avals if jnp.issubdtype(x.dtype, jnp.floating)}
  assert floats(jax.tree.leaves(state)) == floats(program.out_avals) == {'float32'}
  assert 'bfloat16' in floats(v.aval for e in equations(program.jaxpr) for v in e.outvars)
  loops = [e for e in program.jaxpr.eqns if e.primitive.name == 'scan']
  sums = [v.aval for e in loops for v in e.outvars[: e.params['num_carry']]]
  assert sorted(x.shape for x in sums) == sorted(x.shape for x in jax.tree.leaves(shapes(TINY)))
  assert floats(sums) == {'float32'}
