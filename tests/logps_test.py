"""The tree forward, the sampler and the mesh agree with scoring every row alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax import mesh as mesh_lib
from past_jax.logps import group_logps, outputs, token_mask
from past_jax.models import RULES
from past_jax.models.config import TINY
from past_jax.models.transformer import transformer
from past_jax.sampler import sample
from past_jax.types import Prompts


def alone(policy, params, prompts, ids, length):
  """Each prompt + completion as one unpadded row, log-softmax in float64 on the host (P7, P8)."""
  rows, out = jax.jit(policy.rows), np.zeros(ids.shape)
  for b in range(ids.shape[0]):
    P = int(prompts.length_B[b])
    prompt = np.asarray(prompts.ids_BxP[b])[prompts.ids_BxP.shape[1] - P :]
    for g in range(ids.shape[1]):
      row = np.concatenate([prompt, ids[b, g, : length[b, g]]])
      if not len(row):
        continue
      fixed = np.zeros((1, 14), np.int32)  # one shape for all rows: what follows a row's end changes nothing
      fixed[0, : len(row)] = row
      logits = np.asarray(policy.head(params, rows(params, fixed, np.array([len(row)]))), np.float64)[0]
      logp = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
      logp -= logits.max(-1, keepdims=True)
      for t in range(length[b, g]):
        if P + t:
          out[b, g, t] = logp[P + t - 1, row[P + t]]
  return out


@pytest.mark.parametrize('chunk', [1024, 48])
def test_a_group_scores_as_its_rows_alone(policy, params, ragged, chunk):
  prompts, ids, length = ragged
  score = jax.jit(lambda *args: group_logps(policy, *args, chunk=chunk))
  np.testing.assert_allclose(score(params, *ragged), alone(policy, params, prompts, ids, length), atol=1e-5)


def several(ragged):
  """Batches of other shapes: 8 groups of 3, 4 texts, 8 groups of 2 without prompts."""
  prompts, ids, length = ragged
  texts = Prompts(prompts.ids_BxP[:4, -1:], np.minimum(prompts.length_B[:4], 1))
  return {
    'group': ragged,
    'text': (texts, ids[4:, :1], length[4:, :1]),
    'bare': (Prompts(prompts.ids_BxP[:, :0], np.zeros(8, np.int32)), ids[:, :2, :4], np.minimum(length[:, :2], 4)),
  }


def test_batches_of_several_shapes_in_one_pass_score_as_rows_alone(policy, params, ragged):
  batches = several(ragged)
  found = jax.jit(lambda params: outputs(policy, params, batches, dict.fromkeys(batches, ()), chunk=48))(params)
  for name, rows in batches.items():
    np.testing.assert_allclose(found[name]['logps_BxGxT'], alone(policy, params, *rows), atol=1e-5)


@pytest.mark.parametrize(
  ('axes', 'pallas', 'tied'), [((2, 2, 1), True, True), ((1, 4, 1), False, False), ((1, 2, 2), False, False)]
)
def test_a_pass_of_several_batches_on_a_mesh_is_a_pass_of_each_alone(ragged, axes, pallas, tied):
  """With its gradients, which are laid out as their parameters."""
  config = dataclasses.replace(TINY, tied=tied)
  batches, policy = several(ragged), transformer(config, remat='layer', pallas=pallas)
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, jax.jit(policy.init)(jax.random.key(0)))
  mesh = mesh_lib.make(dict(zip(mesh_lib.AXES, axes)))

  def together(params):
    out = outputs(policy, params, batches, dict.fromkeys(batches, ()), chunk=8)
    return sum(x['logps_BxGxT'].sum() for x in out.values())

  apart = lambda params: sum(group_logps(transformer(config), params, *rows).sum() for rows in batches.values())
  total, grads = jax.jit(jax.value_and_grad(apart))(params)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, mesh_lib.shardings(mesh, params, RULES))
    batches = mesh_lib.put_batch(mesh, batches)
    total_, grads_ = jax.jit(jax.value_and_grad(together))(placed)
  np.testing.assert_allclose(total_, total, rtol=1e-6)
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), grads_, grads)
  for kernel in ('q', 'o', 'gate', 'down'):
    found, wanted = (x['layers'][kernel]['kernel'] for x in (grads_, placed))
    assert found.sharding.is_equivalent_to(wanted.sharding, wanted.ndim)


def test_padding_and_batch_mates_do_not_matter(policy, params, ragged):
  """P8: on both sides, of any amount; P17, P23: what fills the arrays up has log-prob 0."""
  prompts, ids, length = ragged
  plain = group_logps(policy, params, *ragged)
  rng = np.random.default_rng(1)
  wide = Prompts(np.concatenate([rng.integers(1, 256, (8, 5)), prompts.ids_BxP], 1).astype(np.int32), prompts.length_B)
  longer = np.concatenate([ids, rng.integers(1, 256, (8, 3, 2))], 2).astype(np.int32)
  padded = group_logps(policy, params, wide, longer, length)
  np.testing.assert_allclose(padded[:, :, :6], plain, atol=1e-5)
  assert not np.asarray(padded)[:, :, 6:].any()
  order = rng.permutation(8)
  mates = Prompts(prompts.ids_BxP[order], prompts.length_B[order])
  shuffled = group_logps(policy, params, mates, ids[order], length[order])
  np.testing.assert_allclose(shuffled, np.asarray(plain)[order], atol=1e-5)


def test_the_first_token_after_an_empty_prompt_has_no_log_prob(ragged):
  prompts, _, length = ragged
  mask = np.asarray(token_mask(prompts, jnp.asarray(length), 6))
  empty = np.asarray(prompts.length_B) == 0
  assert mask.sum() == length.sum() - (length[empty] > 0).sum()
  assert not mask[empty][:, :, 0].any()


def sampled(policy, params, prompts, keys, temperature=1.0, **kwargs):
  draw = jax.jit(lambda p, k, pr, t: sample(policy, p, k, pr, t, jnp.array([3, -1]), group=4, length=7, **kwargs))
  return draw(params, keys, prompts, temperature)


@pytest.fixture(scope='module')
def prompts(ragged):
  return Prompts(ragged[0].ids_BxP, np.maximum(ragged[0].length_B, 1))


@pytest.fixture(scope='module')
def keys():
  return jax.random.split(jax.random.key(1), 8)


def test_sampler_log_probs_are_the_trainers(policy, params, prompts, keys):
  """P15 at temperature 1, and P2: one end token, at the end."""
  group = sampled(policy, params, prompts, keys)
  again = group_logps(policy, params, prompts, group.ids_BxGxT, group.length_BxG)
  np.testing.assert_allclose(group.logps_BxGxT, again, atol=1e-5)
  np.testing.assert_allclose(group.behaviour_logps_BxGxT, group.logps_BxGxT, atol=1e-5)
  ends = np.asarray(group.ids_BxGxT == 3).any(-1)
  np.testing.assert_array_equal(ends, group.finished_BxG)
  for b, g in np.argwhere(ends):  # exactly one end token, at the very end
    n = int(group.length_BxG[b, g])
    assert list(np.flatnonzero(np.asarray(group.ids_BxGxT[b, g, :n]) == 3)) == [n - 1]


def test_a_rows_tokens_do_not_depend_on_batch_mates(policy, params, prompts, keys):
  group = sampled(policy, params, prompts, keys)
  order = np.array([5, 2, 7, 0, 1, 3, 4, 6])
  other = sampled(policy, params, Prompts(prompts.ids_BxP[order], prompts.length_B[order]), keys[order])
  np.testing.assert_array_equal(other.ids_BxGxT, np.asarray(group.ids_BxGxT)[order])


def test_temperature_zero_is_greedy_and_compiles_nothing_new(policy, params, prompts, keys):
  draw = jax.jit(lambda t: sample(policy, params, keys, prompts, t, jnp.array([3, -1]), group=4, length=7))
  draw(1.0)
  greedy = draw(0.0)
  assert draw._cache_size() == 1
  ids = np.asarray(greedy.ids_BxGxT)
  assert (ids == ids[:, :1]).all()
  np.testing.assert_array_equal(greedy.behaviour_logps_BxGxT, 0)
  first = policy.head(params, policy.prefill(params, prompts)[0])
  np.testing.assert_array_equal(ids[:, 0, 0], np.argmax(first, -1))


def test_eight_devices_sample_and_score_as_one(policy, params, ragged, prompts, keys):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  one = sampled(policy, params, prompts, keys)
  score = jax.jit(lambda *args: group_logps(policy, *args))
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, mesh_lib.shardings(mesh, params, RULES))
    eight = sampled(policy, placed, mesh_lib.put_batch(mesh, prompts), keys)
    logps = score(placed, *mesh_lib.put_batch(mesh, ragged))
  np.testing.assert_array_equal(eight.ids_BxGxT, one.ids_BxGxT)
  np.testing.assert_allclose(eight.logps_BxGxT, one.logps_BxGxT, atol=1e-5)
  np.testing.assert_allclose(logps, score(params, *ragged), atol=1e-5)
  assert eight.ids_BxGxT.sharding.spec == jax.sharding.PartitionSpec(('data', 'fsdp'))
