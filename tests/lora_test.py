"""Adapters: where they go, the identity at first, gradients and merges by hand, many at once, what peft computes."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from past_jax import lora, losses, models, update
from past_jax import mesh as mesh_lib
from past_jax.logps import group_logps
from past_jax.models import peft as export
from past_jax.models import weights
from past_jax.models.config import TINY, Kind, ModelConfig
from past_jax.models.transformer import INPUT_AXES, RULES, transformer
from past_jax.types import Batch, Prompts, Selection, UserError

RANK, SCALE = 3, 1.25
# Name -> axes of the kernel in (i), out (o), layer (n) and rank (r) letters, for the loops below.
AXES = {'q': 'niho', 'k': 'niho', 'v': 'niho', 'o': 'nhio', 'gate': 'nio', 'up': 'nio', 'down': 'nio'}


def new(params, *targets, rank=RANK):
  return lora.init(jax.random.key(7), params, targets=targets, rank=rank, input_axes=INPUT_AXES)


def noisy(adapters, size=0.1):
  """Both factors away from zero, as after training."""
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(8), len(leaves))
  return jax.tree.unflatten(tree, [size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def largest(a, b) -> float:
  return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b)))


@pytest.fixture(scope='module')
def adapters(params):
  return noisy(new(params))


@pytest.fixture(scope='module')
def logps_of(policy, ragged):
  return jax.jit(lambda params: group_logps(policy, params, *ragged))


# --- where adapters go --------------------------------------------------------------------------------------------


def test_targets_are_patterns_on_paths(params):
  every = [f'layers/{name}' for name in ('down', 'gate', 'k', 'o', 'q', 'up', 'v')]
  assert lora.choose(params, ()) == every
  assert lora.choose(params, ('layers/(q|v)$', 'down')) == ['layers/down', 'layers/q', 'layers/v']
  assert lora.choose({**params, 'head': {'kernel': jnp.zeros((64, 264))}}, ('',)) == ['head', *every]
  with pytest.raises(UserError, match=r"'layers/qu\$' is found in no linear layer; .*, layers/v. Did you mean"):
    lora.choose(params, ('layers/q$', 'layers/qu$'))
  with pytest.raises(UserError, match=r"'\(' is not a regular expression: "):
    lora.choose(params, ('(',))


def test_one_factor_is_zero_and_the_other_gaussian(params):
  params = {**params, 'head': {'kernel': jnp.zeros((64, 264), jnp.bfloat16)}}
  adapters = new(params, '', rank=16)
  shapes = jax.tree.map(jnp.shape, adapters)
  assert shapes['layers']['q'] == {'lora_a': (2, 64, 16), 'lora_b': (2, 16, 4, 16)}
  assert shapes['layers']['o'] == {'lora_a': (2, 4, 16, 16), 'lora_b': (2, 16, 64)}
  assert shapes['head'] == {'lora_a': (64, 16), 'lora_b': (16, 264)}
  assert {x.dtype.name for x in jax.tree.leaves(adapters['head'])} == {'bfloat16'}
  for name, pair in adapters['layers'].items():
    assert not pair['lora_a'].any(), name
    b = np.asarray(pair['lora_b'])
    assert abs(b.mean()) < 0.03 and b.std() == pytest.approx(0.25, rel=0.06), name
  flat = [np.asarray(adapters['layers'][name]['lora_b']).ravel()[:999] for name in adapters['layers']]
  assert np.abs(np.corrcoef(flat) - np.eye(7)).max() < 0.15  # every layer has its own draw
  alone = new(params, 'layers/q$', rank=16)
  assert largest(alone['layers']['q'], adapters['layers']['q']) == 0  # whatever else is adapted


# --- what they compute --------------------------------------------------------------------------------------------


def test_new_adapters_change_no_bit(params, logps_of):
  before = np.asarray(logps_of(params))
  assert np.array_equal(before, np.asarray(logps_of(lora.attach(params, new(params), SCALE))))
  assert before.std() > 1


def test_attach_copies_nothing_and_merge_leaves_the_rest(params, adapters):
  some = {'layers': {'q': adapters['layers']['q']}}
  attached, merged = lora.attach(params, some, SCALE), lora.merge(params, some, SCALE)
  for tree in (attached, merged):
    q = tree['layers'].pop('q')
    rest = {**params, 'layers': {name: leaf for name, leaf in params['layers'].items() if name != 'q'}}
    assert jax.tree.all(jax.tree.map(lambda x, y: x is y, tree, rest))
  assert attached['layers'].get('q') is None and q.keys() == params['layers']['q'].keys()
  again = lora.attach(params, some, SCALE)['layers']['q']
  assert again['kernel'] is params['layers']['q']['kernel'] and again['lora_a'] is some['layers']['q']['lora_a']
  assert 'lora_a' not in params['layers']['q']


def test_merge_is_the_sum_by_loops(params, adapters):
  """float64 loops over the layers, every kernel as a matrix."""
  merged = lora.merge(params, adapters, SCALE)
  for name, pair in adapters['layers'].items():
    kernel = np.asarray(params['layers'][name]['kernel'], np.float64)
    for layer in range(2):
      a, b = (np.asarray(pair[leaf][layer], np.float64) for leaf in ('lora_a', 'lora_b'))
      product = a.reshape(-1, RANK) @ b.reshape(RANK, -1)
      wanted = kernel[layer] + SCALE * product.reshape(kernel[layer].shape)
      np.testing.assert_allclose(merged['layers'][name]['kernel'][layer], wanted, atol=1e-6, err_msg=name)


def test_attached_equals_merged_and_unmerge_undoes_it(params, adapters, logps_of):
  merged = lora.merge(params, adapters, SCALE)
  attached = np.asarray(logps_of(lora.attach(params, adapters, SCALE)))
  np.testing.assert_allclose(attached, logps_of(merged), atol=2e-5)
  assert np.abs(attached - logps_of(params)).max() > 0.1
  assert largest(lora.unmerge(merged, adapters, SCALE), params) < 1e-6


def test_a_merge_keeps_the_dtype_of_the_kernel(params, adapters):
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  merged = lora.merge(low, adapters, SCALE)
  assert {x.dtype.name for x in jax.tree.leaves(merged)} == {'bfloat16'}
  q = lambda tree: np.asarray(tree['layers']['q']['kernel'], np.float32)
  wanted = lora.merge(jax.tree.map(lambda x: x.astype(jnp.float32), low), adapters, SCALE)
  np.testing.assert_array_equal(q(merged), q(wanted).astype(jnp.bfloat16).astype(np.float32))


def test_gradients_are_the_kernels_contracted_with_the_factors(params, adapters, logps_of):
  """With W = kernel + s A B: dL/dA = s (dL/dW) B^T and dL/dB = s A^T (dL/dW), by float64 matrices."""
  total = lambda p: logps_of(p).sum()
  kernels = jax.grad(total)(lora.merge(params, adapters, SCALE))
  ours = jax.grad(lambda a: total(lora.attach(params, a, SCALE)))(adapters)
  for name, pair in adapters['layers'].items():
    for layer in range(2):
      a, b = (np.asarray(pair[leaf][layer], np.float64) for leaf in ('lora_a', 'lora_b'))
      a, b = a.reshape(-1, RANK), b.reshape(RANK, -1)
      g = np.asarray(kernels['layers'][name]['kernel'][layer], np.float64).reshape(len(a), -1)
      for leaf, wanted in {'lora_a': SCALE * g @ b.T, 'lora_b': SCALE * a.T @ g}.items():
        got = np.asarray(ours['layers'][name][leaf][layer]).reshape(wanted.shape)
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=f'{name} {leaf}')


def test_a_fingerprint_tells_bases_apart_and_not_meshes(params):
  plain = int(lora.fingerprint(params))
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  assert int(lora.fingerprint(jax.device_put(params, mesh_lib.shardings(mesh, params, RULES)))) == plain
  layers, up = params['layers'], params['layers']['up']['kernel']
  nearly = up.at[1, 2, 3].set(jnp.nextafter(up[1, 2, 3], jnp.float32(9)))
  swapped = {**layers, 'up': layers['gate'], 'gate': layers['up']}
  turned = {**layers, 'q': {'kernel': layers['q']['kernel'][..., ::-1]}}  # as by a rotary layout misread
  backwards, negated = jax.tree.map(lambda x: x[::-1], layers), jax.tree.map(lambda x: -x, layers)
  for other in ({**layers, 'up': {'kernel': nearly}}, swapped, turned, backwards, negated):
    assert int(lora.fingerprint({**params, 'layers': other})) != plain


# --- many at once -------------------------------------------------------------------------------------------------

WIDE = ModelConfig(
  vocab=64,
  width=512,
  heads=8,
  kv_heads=8,
  head_dim=64,
  ffn=1024,
  context=64,
  kinds=(Kind(),),
  pattern=(0,) * 4,
  scale=0.125,
)


def stacked(params, m):
  each = [noisy(new(params, 'layers/(q|o|down)$'), 0.05 * (i + 1)) for i in range(m)]
  return jax.tree.map(lambda *xs: jnp.stack(xs), *each)


def test_vmap_over_adapters_is_the_loop(policy, params, ragged):
  many = stacked(params, 3)
  loss = lambda a: group_logps(policy, lora.attach(params, a, SCALE), *ragged).mean()
  step = jax.value_and_grad(loss)
  one = jax.jit(step)
  together = jax.jit(jax.vmap(step))(many)
  for i in range(3):
    alone = one(jax.tree.map(lambda x, i=i: x[i], many))
    assert largest(alone, jax.tree.map(lambda x, i=i: x[i], together)) < 1e-6
  assert np.ptp(together[0]) > 1e-3


@pytest.mark.parametrize('what', ['forward', pytest.param('gradient', marks=pytest.mark.slow)])
def test_a_further_adapter_costs_less_than_a_copy_of_the_base(what):
  """Temporaries of the compiled program; a kernel + A @ B for each adapter would cost a copy of every kernel."""
  policy = transformer(WIDE)
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  base = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  ids = jax.ShapeDtypeStruct((1, 2, 8), jnp.int32)
  prompts = Prompts(jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32))

  def loss(adapters, params, prompts, ids, length):
    return group_logps(policy, lora.attach(params, adapters, SCALE), prompts, ids, length).sum()

  call = loss if what == 'forward' else jax.value_and_grad(loss)

  def temporaries(m):
    many = jax.eval_shape(lambda p: jax.tree.map(lambda x: jnp.broadcast_to(x, (m, *x.shape)), new(p)), shapes)
    program = jax.jit(jax.vmap(call, in_axes=(0, None, None, None, None)))
    length = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return program.lower(many, shapes, prompts, ids, length).compile().memory_analysis().temp_size_in_bytes

  one, two, eight = (temporaries(m) for m in (1, 2, 8))
  assert base > 30e6
  assert two - one < base / 4 and (eight - one) / 7 < base / 4


# --- training -----------------------------------------------------------------------------------------------------


def batch_of(ragged):
  prompts, ids, length = ragged
  B, G = length.shape
  rows, none = np.ones((B, G), np.float32), np.zeros((B, 0), np.int32)
  members = np.broadcast_to(np.arange(G, dtype=np.int32), (B, G))
  selection = Selection(none, none, none.astype(np.float32), rows, rows, members)
  return Batch(prompts, ids, length, None, None, np.zeros((B, G), np.int32), selection)


@pytest.fixture(scope='module')
def three_steps(policy, params, ragged):
  """shape of a mesh -> (loss and gradient norm of three updates, the base there after them, the adapters)."""
  rate = optax.constant_schedule(3e-2)
  made = update.gradient(
    policy=policy,
    losses={'group': (1.0, losses.add([(1.0, 'nll', losses.nll())]))},
    optimizer=optax.sgd(rate),  # Adam divides by the gradient, which makes a difference of rounding as large as a step
    learning_rate=rate,
    whole=lambda weights, trained: lora.attach(weights['base'], trained, SCALE),
  )

  @functools.cache
  def run(*shape):
    mesh = mesh_lib.make(dict(zip(mesh_lib.AXES, shape)))
    with jax.set_mesh(mesh):
      base = jax.device_put(params, mesh_lib.shardings(mesh, params, RULES))
      state = made.init(new(params, 'layers/(q|o|down)$'))
      placed = mesh_lib.shardings(mesh, state, RULES)
      state, batch = jax.device_put(state, placed), {'group': mesh_lib.put_batch(mesh, batch_of(ragged))}
      step, told = jax.jit(made.step, donate_argnums=0, out_shardings=(placed, None)), []
      for _ in range(3):
        state, metrics = step(state, {'base': base}, batch)
        told.append([float(metrics[name]) for name in ('loss', 'grad_norm')])
    return np.array(told), base, jax.device_get(state.params)

  return run


def test_the_loss_moves_by_step_two(three_steps, params):
  """Were both factors zero it never would. The base is an argument that is not donated, and keeps its bits."""
  told, base, adapters = three_steps(1, 1, 1)
  loss, norm = told.T
  assert loss[1] < loss[0] - 1e-3 and loss[2] < loss[1] and norm[0] > 0.1
  assert all(pair['lora_a'].any() for pair in adapters['layers'].values())
  assert largest(base, params) == 0


MORE = [(8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 4, 2), (2, 4, 1)]


@pytest.mark.parametrize('shape', [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in MORE)])
def test_every_mesh_takes_the_same_steps(three_steps, params, shape):
  told, _, adapters = three_steps(1, 1, 1)
  there, base, adapters_there = three_steps(*shape)
  np.testing.assert_allclose(there, told, rtol=1e-4)
  assert largest(adapters_there, adapters) < 1e-5
  assert largest(base, params) == 0 and len(base['layers']['q']['kernel'].sharding.device_set) == 8


def test_only_adapters_have_moments(params):
  adapters = new(params, 'layers/q$')
  state = jax.eval_shape(update.adamw(learning_rate=1e-3).init, adapters)
  shapes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree) if x.ndim)
  assert shapes(state) == sorted(2 * shapes(adapters))


# --- peft ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def families():
  pytest.importorskip('torch')
  pytest.importorskip('peft')
  return importlib.import_module('families')


NAMES = ['llama', 'smollm3', 'mistral', 'qwen2', 'qwen3', 'phi3', 'gemma2', 'gemma3', 'gpt2', 'gptneox']


@pytest.mark.slow
# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing` is deprecated:FutureWarning')
@pytest.mark.parametrize('name', NAMES)
def test_peft_computes_the_same(families, tmp_path, name, mesh):
  """Logits and gradients of an exported adapter on torch's base, and logits of the merged model."""
  import peft
  import torch

  families.make(name, tmp_path / 'base')
  model = models.load(str(tmp_path / 'base'))
  params = model.read(mesh)
  adapters = noisy(new(params, ''))  # the head too, where it is its own
  ids = np.random.default_rng(0).integers(1, 250, (2, 12))
  lengths = np.full(2, 12, np.int32)
  rows = lambda p: model.policy.head(p, model.policy.rows(p, ids, lengths))
  logits = lambda a: rows(lora.attach(params, a, SCALE))
  ours = np.asarray(logits(adapters))
  export.write(tmp_path / 'a', adapters, model.config, base='base', rank=RANK, alpha=SCALE * RANK, dtype=np.float32)
  weights.write(tmp_path / 'm', lora.merge(params, adapters, SCALE), model.config, model.tokenizer)
  on_torch = lambda m: m(input_ids=torch.tensor(ids), use_cache=False).logits
  merged = on_torch(families.oracle(tmp_path / 'm')).detach().numpy()
  wrapped = peft.PeftModel.from_pretrained(families.oracle(tmp_path / 'base'), str(tmp_path / 'a'), is_trainable=True)
  theirs = on_torch(wrapped)
  np.testing.assert_allclose(theirs.detach().numpy(), ours, atol=1e-5)
  np.testing.assert_allclose(merged, ours, atol=2e-5)

  # An adapter's gradient is itself adapter-shaped: exported like one, it has the names and layouts of torch's.
  torch.log_softmax(theirs, -1).gather(2, torch.tensor(ids)[..., None]).sum().backward()
  logps = lambda a: jnp.take_along_axis(jax.nn.log_softmax(logits(a)), ids[..., None], 2).sum()
  export.write(tmp_path / 'g', jax.grad(logps)(adapters), model.config, base='', rank=RANK, alpha=1.0, dtype=np.float32)
  gradients = load_file(tmp_path / 'g' / 'adapter_model.safetensors')
  found = {n.replace('.default', ''): p.grad.numpy() for n, p in wrapped.named_parameters() if p.requires_grad}
  assert gradients.keys() == found.keys()
  for n, ours in gradients.items():
    inside = ours != 0  # off the blocks of a fused layer torch has gradients that no adapter of ours has
    assert inside.any() and np.abs(ours - found[n])[inside].max() < 1e-4 * np.abs(found[n]).max(), n


@pytest.mark.slow
def test_an_adapter_names_its_base(families, params, tmp_path):
  adapters = new(params, 'layers/(q|v)$')
  for base, wanted in {'hf:org/name@main': ('org/name', 'main'), 'pypi:a==1': ('pypi:a==1', None)}.items():
    export.write(tmp_path / wanted[0][:2], adapters, TINY, base=base, rank=RANK, alpha=6.0, dtype=jnp.bfloat16)
    config = json.loads((tmp_path / wanted[0][:2] / 'adapter_config.json').read_text())
    assert (config['base_model_name_or_path'], config['revision']) == wanted
    assert config['target_modules'] == ['self_attn.q_proj', 'self_attn.v_proj'] and config['lora_alpha'] == 6.0
