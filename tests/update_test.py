"""The update: a batch in parts is the whole batch, statistics of tokens, optimizers, schedules."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import SMALL, assert_same, random_params

from past_jax import logps, losses, update
from past_jax import mesh as mesh_lib
from past_jax.buckets import cut_batch
from past_jax.checkpoint import Checkpoints
from past_jax.models import RULES
from past_jax.models.config import TINY
from past_jax.models.transformer import INPUT_AXES
from past_jax.types import Batch, Loss, Policy, Prompts, Selection, TrainState

RATE = optax.constant_schedule(1e-2)


def select(rng, B, G):
  pairs = lambda: rng.integers(0, G, (B, 2)).astype(np.int32)
  weights = lambda *shape: rng.uniform(0, 1, shape).astype(np.float32).round(1)  # some are 0
  members = np.broadcast_to(np.arange(G, dtype=np.int32), (B, G))
  return Selection(pairs(), pairs(), weights(B, 2), weights(B, G), weights(B, G), members)


@pytest.fixture(scope='module')
def batches(ragged):
  """Terms of 8, 8 and 4 prompts, lengths from 0; the reference of `group` is off the policy, `own` is its own."""
  rng = np.random.default_rng(3)
  prompts, ids, length = ragged
  B, G = length.shape
  ref = np.where(logps.token_mask(prompts, length, ids.shape[2]), rng.normal(-5, 1, ids.shape), 0).astype(np.float32)
  source = np.zeros((B, G), np.int32)
  group = Batch(prompts, ids, length, ref, None, source, select(rng, B, G))
  own = dataclasses.replace(group, ref_logps_BxGxT=None, selection=select(rng, B, G))
  prompts = Prompts(prompts.ids_BxP[4:], prompts.length_B[4:])
  text = Batch(prompts, ids[4:, :1], length[4:, :1], None, None, source[4:, :1], select(rng, 4, 1))
  return {'group': group, 'own': own, 'text': text}


def sorted_ratios(outputs, batch):
  """The k-th largest log-ratio of the chosen against that of the rejected: no mean over rows, all rows see all."""
  ratio = (outputs['logps_BxGxT'] - batch.ref_logps_BxGxT).sum(-1)
  ordered = lambda index: jnp.sort(jnp.take_along_axis(ratio, index, axis=1).ravel())
  gaps = ordered(batch.selection.chosen_BxJ) - ordered(batch.selection.rejected_BxJ)
  loss = -jax.nn.log_sigmoid(0.1 * gaps).mean()
  return loss, {'loss': loss}


def doubtful(outputs, batch):
  """DPO against itself, and two statistics of all tokens under a root."""
  entropy, squares = (outputs[f'{name}_BxGxT'].sum() for name in STATISTICS)
  loss, metrics = losses.pairs.dpo()(outputs, batch)
  return loss + jnp.sqrt(entropy) + 0.1 * jnp.sqrt(-squares), metrics | {'entropy': entropy, 'squares': squares}


STATISTICS = ('entropy', 'log_sum_sq')
LOSSES = {
  'group': (
    1.0,
    losses.add([(1.0, 'dpo', losses.pairs.dpo()), (0.5, 'nll', losses.nll()), (2.0, 'sorted', Loss(sorted_ratios))]),
  ),
  'own': (0.3, Loss(doubtful, statistics=STATISTICS)),
  'text': (0.7, losses.nll()),
}


def bag_of_words():
  """A policy of `group` and `head` alone that compiles at once, and its parameters."""

  def group(params, prompts, ids_BxGxT, length_BxG):
    P = prompts.ids_BxP.shape[1]
    real = jnp.arange(P)[None] >= P - prompts.length_B[:, None]
    said = jnp.where(real[..., None], params['embed'][prompts.ids_BxP], 0).sum(1)
    own = jnp.cumsum(params['embed'][ids_BxGxT], axis=2)
    before = jnp.pad(own[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    return jnp.tanh((said[:, None, None] + before) @ params['mix'])

  rng = np.random.default_rng(0)
  params = {'embed': rng.normal(size=(256, 6)).astype(np.float32), 'mix': rng.normal(size=(6, 6)).astype(np.float32)}
  head = lambda params, hidden: hidden @ params['embed'].T
  groups = lambda params, batches: [group(params, *batch) for batch in batches]
  return Policy(None, None, groups, head, *[None] * 4), params


def made(policy, terms=LOSSES, **options):
  """An update whose only moment is the gradient itself."""
  return update.gradient(policy=policy, losses=terms, optimizer=optax.trace(0.0), learning_rate=RATE, **options)


def stepped(update_, params, batches, weights=None):
  """(metrics, gradient) of one step."""
  state, metrics = jax.jit(update_.step)(update_.init(params), weights or {}, batches)
  return jax.device_get((metrics, state.opt_state.trace))


def assert_close(found, wanted, size=1e-5):
  """Metrics, and gradients within `size` of the largest entry of each array."""
  assert found[0].keys() == wanted[0].keys()
  for name, value in wanted[0].items():
    np.testing.assert_allclose(found[0][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(wanted[1]), jax.tree.leaves(found[1]), strict=True):
    assert np.abs(a).max() > 0
    np.testing.assert_allclose(b, a, rtol=0, atol=size * np.abs(a).max(), err_msg=mesh_lib.path_string(path))


# --- micro-batches ------------------------------------------------------------------------------------------------

BAG, WORDS = bag_of_words()


@pytest.fixture(scope='module')
def whole(batches):
  return stepped(made(BAG), WORDS, batches)


@pytest.mark.parametrize('micro', [1, 2, 4])
def test_a_batch_in_parts_is_the_whole_batch(batches, whole, micro):
  """P18: unequal lengths, three terms of which one has fewer prompts, losses that are no mean over rows."""
  assert_close(stepped(made(BAG, micro=micro), WORDS, batches), whole)


def test_the_gradient_is_that_of_the_plain_objective(batches, whole):
  """Without the two passes: one function of the parameters, differentiated."""

  def objective(params):
    total = 0
    for term, (weight, loss) in LOSSES.items():
      b = batches[term]
      rows, names = (b.prompts, b.ids_BxGxT, b.length_BxG), getattr(loss, 'statistics', ())
      total += weight * loss(logps.group_outputs(BAG, params, *rows, statistics=names), b)[0]
    return total

  loss, grads = jax.jit(jax.value_and_grad(objective))(WORDS)
  assert_close(({'loss': loss}, grads), ({'loss': whole[0]['loss']}, whole[1]))


def test_a_reference_of_none_stays_exact_in_parts(batches):
  metrics, grads = stepped(made(BAG, {'own': (1.0, losses.pairs.dpo())}, micro=2), WORDS, batches)
  assert metrics['own/loss'] == np.float32(np.log(2)) and metrics['own/rewards/margins'] == 0
  assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 0


def test_what_is_trained_may_be_a_part_of_the_model(batches, whole):
  """As adapters are: what else there is comes as a frozen role, and has no gradient."""
  join = lambda weights, trained: weights['base'] | trained
  metrics, grads = stepped(made(BAG, whole=join, micro=2), {'mix': WORDS['mix']}, batches, {'base': WORDS})
  norms = {name: metrics[name] for name in ('param_norm', 'grad_norm')}  # of what is trained
  assert_close((metrics, grads), (whole[0] | norms, {'mix': whole[1]['mix']}))


def test_a_batch_cut_to_its_bucket_is_the_same_step(batches):
  """Room for three times the lengths, and what is left of it in the smallest bucket; members and weights stay."""

  def wide(batch):
    more = lambda x: None if x is None else np.pad(x, ((0, 0), (0, 0), (0, 18)), constant_values=7)
    prompts = Prompts(np.pad(batch.prompts.ids_BxP, ((0, 0), (16, 0)), constant_values=7), batch.prompts.length_B)
    ref = more(batch.ref_logps_BxGxT)
    return dataclasses.replace(batch, prompts=prompts, ids_BxGxT=more(batch.ids_BxGxT), ref_logps_BxGxT=ref)

  roomy = {term: wide(batch) for term, batch in batches.items()}
  short = {term: cut_batch(batch, 0.25) for term, batch in roomy.items()}
  assert (short['group'].prompts.ids_BxP.shape[1], short['group'].ids_BxGxT.shape[2]) == (8, 8)
  assert_close(stepped(made(BAG), WORDS, short), stepped(made(BAG), WORDS, roomy))


def test_parts_move_nothing_between_devices_but_sums(batches, whole):
  mesh = mesh_lib.make({'data': 4, 'fsdp': 1, 'tensor': 1})
  with jax.set_mesh(mesh):
    update_ = made(BAG, {'own': (1.0, losses.pairs.dpo())}, micro=4)
    args = update_.init(WORDS), {}, mesh_lib.put_batch(mesh, {'own': batches['own']})
    text = jax.jit(update_.step).lower(*args).compile().as_text()
  found = set(re.findall(r' (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(', text))
  assert found == {'all-reduce'}


def test_the_model_on_eight_devices_in_parts(policy, params, batches):
  terms, batch = {'group': LOSSES['group']}, {'group': batches['group']}
  one = stepped(made(policy, terms), params, batch)
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  update_ = made(policy, terms, micro=4)
  with jax.set_mesh(mesh):
    state = update_.init(params)
    placed = mesh_lib.shardings(mesh, state, RULES)
    step = jax.jit(update_.step, out_shardings=(placed, None))
    state, metrics = step(jax.device_put(state, placed), {}, mesh_lib.put_batch(mesh, batch))
  assert_close(jax.device_get((metrics, state.opt_state.trace)), one)


# --- statistics of tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('chunk', [logps.CHUNK, 24])
def test_statistics_are_those_of_the_distribution(ragged, chunk):
  """Against loops in float64, and their gradients against those of the formulas on whole logits."""
  prompts, ids, length = ragged
  names = ('entropy', 'log_sum_sq')
  read = lambda params: logps.group_outputs(BAG, params, *ragged, statistics=names, chunk=chunk)
  found = jax.device_get(jax.jit(read)(WORDS))
  assert sorted(found) == ['entropy_BxGxT', 'log_sum_sq_BxGxT', 'logps_BxGxT']
  logits = np.asarray(BAG.head(WORDS, BAG.groups(WORDS, [ragged])[0]), np.float64)
  for b, g, t in np.ndindex(ids.shape):
    p = np.exp(logits[b, g, t] - logits[b, g, t].max())
    p /= p.sum()
    real = t < length[b, g] and (t or prompts.length_B[b])
    expected = -(p * np.log(p)).sum(), np.log((p * p).sum()), np.log(p[ids[b, g, t]])
    for name, value in zip((*names, 'logps'), expected):
      np.testing.assert_allclose(found[f'{name}_BxGxT'][b, g, t], value if real else 0, atol=2e-5)
  mask = logps.token_mask(prompts, length, ids.shape[2])

  def naive(params):
    logp = jax.nn.log_softmax(BAG.head(params, BAG.groups(params, [ragged])[0]))
    entropy, squares = -(jnp.exp(logp) * logp).sum(-1), jnp.log(jnp.exp(2 * logp).sum(-1))
    return jnp.where(mask, entropy + 0.3 * squares, 0).sum()

  total = lambda o: (o['entropy_BxGxT'] + 0.3 * o['log_sum_sq_BxGxT']).sum()
  grads = jax.jit(jax.grad(lambda params: total(read(params))))(WORDS)
  for name, wanted in jax.grad(naive)(WORDS).items():
    np.testing.assert_allclose(grads[name], wanted, atol=1e-5 * np.abs(wanted).max())


# --- optimizers ---------------------------------------------------------------------------------------------------

RESOURCES = {'muon': {'input_axes': INPUT_AXES}}
WIDE = dataclasses.replace(TINY, width=128, ffn=256)  # matrices that adafactor factors


def optimizer_of(name, learning_rate=1e-2, **keys):
  return update.OPTIMIZERS[name](learning_rate=learning_rate, **keys, **RESOURCES.get(name, {}))


def one_step(optimizer, state, grads):
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


@pytest.mark.parametrize('name', update.OPTIMIZERS)
def test_state_has_a_place_on_a_mesh_and_in_a_checkpoint(name, tmp_path):
  """Moments lie as their parameters do, eight devices step as one, and a checkpoint brings the state back."""
  keys = {'momentum': 0.9} if name == 'sgd' else {}
  optimizer = optimizer_of(name, **keys)
  params, grads = random_params(WIDE), random_params(WIDE, seed=1)
  state = TrainState(jnp.int32(0), params, optimizer.init(params))
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  placed = mesh_lib.shardings(mesh, state, RULES)
  specs = {mesh_lib.path_string(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(placed)}
  sizes = {mesh_lib.path_string(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state)}
  for kernel in ('layers/q/kernel', 'layers/gate/kernel'):
    moments = [path for path in specs if path.startswith('opt_state/') and path.endswith(kernel)]
    full = [path for path in moments if sizes[path] == sizes[f'params/{kernel}']]
    assert moments and all(specs[path] == specs[f'params/{kernel}'] for path in full)
    factored = name == 'adafactor' and kernel == 'layers/gate/kernel'  # both sides at least 128
    assert bool(full) != factored and ((2, 128) in [sizes[path] for path in moments]) == factored
  step = jax.jit(functools.partial(one_step, optimizer), donate_argnums=0, out_shardings=placed)
  one = jax.jit(functools.partial(one_step, optimizer))(state, grads)
  spread = jax.device_put(grads, mesh_lib.shardings(mesh, grads, RULES))
  eight = step(jax.device_put(state, placed), spread)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eight, one)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {'state': eight}, {})
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), eight, placed)
  assert_same(checkpoints.restore({'state': abstract}).tree['state'], eight)


def test_adafactors_decay_follows_the_learning_rate():
  """Else its steps are optax's, whose own decay takes the same share of the weights at any learning rate."""
  params, grads = random_params(SMALL), random_params(SMALL, seed=1)
  step = lambda optimizer: optimizer.update(grads, optimizer.init(params), params)[0]
  for rate in (1e-2, 1e-4):
    found = step(optimizer_of('adafactor', rate, weight_decay=0.3, clip=0.0))
    expected = jax.tree.map(lambda u, p, rate=rate: u - 0.3 * rate * p, step(optax.adafactor(rate)), params)
    jax.tree.map(lambda a, b, rate=rate: np.testing.assert_allclose(a, b, atol=1e-4 * rate), found, expected)


def test_clipping_is_of_the_global_norm():
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  step = lambda clip: (lambda o: o.update(grads, o.init(grads))[0])(optimizer_of('sgd', learning_rate=1.0, clip=clip))
  for clip, a, b in ((0.0, -3, -4), (10.0, -3, -4), (1.0, -0.6, -0.8)):
    np.testing.assert_allclose([step(clip)['a'][0], step(clip)['b'][0]], [a, b], rtol=1e-6)


def test_first_steps_of_lion_and_adamw_are_signs():
  params, grads = random_params(SMALL), random_params(SMALL, seed=1)
  for name in ('adamw', 'lion'):
    optimizer = optimizer_of(name, weight_decay=0.1, clip=0.0)
    found, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = jax.tree.map(lambda g, p: -1e-2 * (np.sign(g) + 0.1 * p), grads, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_muon_orthogonalizes_every_layers_matrices():
  """As inputs x outputs, whatever axes they are kept in: singular values of a step are alike. The rest is Adam's."""
  params, grads = random_params(SMALL), random_params(SMALL, seed=1)
  optimizer, adam = optimizer_of('muon', clip=0.0), optimizer_of('adamw', b2=0.99, clip=0.0)
  found, _ = optimizer.update(grads, optimizer.init(params), params)
  first, _ = adam.update(grads, adam.init(params), params)
  inputs_of = {'q': SMALL.width, 'v': SMALL.width, 'o': SMALL.heads * SMALL.head_dim, 'down': SMALL.ffn}
  for layer, inputs in inputs_of.items():
    for step, grad in zip(found['layers'][layer]['kernel'], grads['layers'][layer]['kernel']):
      step, grad = (x.reshape(inputs, -1) for x in (np.asarray(step, np.float64), grad.astype(np.float64)))
      u, _, v = np.linalg.svd(grad, full_matrices=False)
      size = 1e-2 * 0.2 * np.sqrt(max(step.shape))  # arXiv 2502.16982, equation 4
      inner = -u.T @ step @ v.T / size  # the step in the gradient's own singular directions
      along = np.diag(inner)
      assert (along > 0.5).all() and (along < 1.3).all(), (layer, along)
      assert np.abs(inner - np.diag(along)).max() < 1e-3
  for path in (('embed', 'embedding'), ('layers', 'attention_norm', 'scale')):
    pick = lambda tree, path=path: np.asarray(functools.reduce(lambda t, k: t[k], path, tree))
    # Nesterov's form of Adam, whose first step is larger by the same factor everywhere.
    ratio = pick(found) / pick(first)
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-3)


@pytest.mark.parametrize(
  'kind, expected',
  [
    ('constant', [0.5, 1, 1, 1, 1, 1]),
    ('linear', [0.5, 1, 0.84, 0.68, 0.52, 0.36]),  # 0.2 after the last one
    ('cosine', [0.5, 1, *(0.2 + 0.8 * (1 + np.cos(np.pi * k / 5)) / 2 for k in (1, 2, 3, 4))]),
  ],
)
def test_schedules(kind, expected):
  rate = update.schedule(lr=2.0, warmup=0.25, total=6, schedule=kind, end=0.2)
  np.testing.assert_allclose([rate(i) for i in range(6)], 2 * np.array(expected), rtol=1e-6)
  at_once = update.schedule(lr=2.0, warmup=0.0, total=6, schedule=kind, end=0.2)
  assert at_once(0) == 2.0


@pytest.mark.parametrize('scale', [np.nan, np.inf, 1.0])
def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was(policy, params, batches, scale):
  broken = Loss(lambda outputs, batch: (scale * outputs['logps_BxGxT'].sum(), {}))
  options = dict(optimizer=update.adamw(learning_rate=RATE), learning_rate=RATE)
  step = update.gradient(policy=policy, losses={'text': (1.0, broken)}, **options)
  state = step.init(params)
  new, metrics = jax.jit(step.step)(state, {}, {'text': batches['text']})
  same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True)]
  assert metrics['finite'] == (scale == 1) and (not any(same[:1]) if scale == 1 else all(same))
