"""Judges and one update step: eight devices (2 x 2 x 2) compute what one does, on the same given completions."""

import jax
import numpy as np
import optax
import pytest

from past_jax import judges, losses, update
from past_jax import mesh as mesh_lib
from past_jax.collect import compact
from past_jax.logps import group_logps
from past_jax.models import RULES
from past_jax.selects import best_vs
from past_jax.types import Batch, Example, Group, Judgement, Prompts, Question

TEXTS = ['The lamp of Orrin is green.', 'Osk wrote a grammar.', 'Pell bred a rose.', 'Mira mapped the caves.']
EXAMPLES = [Example(text=text, questions=(Question('Who?', text[:4]),)) for text in TEXTS * 2]


@pytest.fixture(scope='module')
def eight():
  return mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})


@pytest.fixture(scope='module')
def group(ragged):
  """Given completions of 0 to 6 tokens after prompts of 1 to 8."""
  prompts, ids, length = ragged
  prompts = Prompts(prompts.ids_BxP, np.maximum(prompts.length_B, 1))
  zeros = np.zeros(ids.shape, np.float32)
  return Group(prompts, ids, length, np.zeros(length.shape, bool), zeros, zeros, np.zeros_like(length))


def spread(mesh, tree):
  """Parameters, or a state that repeats their paths, by the rules that the run uses."""
  return jax.device_put(tree, mesh_lib.shardings(mesh, tree, RULES))


@pytest.mark.parametrize(
  'name, keys',
  [
    ('likelihood', {}),
    ('likelihood_gain', {'target_length': 32}),
    ('likelihood_gain', {'target': 'answers', 'target_length': 32}),
    ('preference', {'template': '{text} {a}|{b}|', 'prompt_length': 48}),
  ],
)
def test_eight_devices_judge_as_one(policy, params, tokenizer, group, eight, name, keys):
  resources = {'tokenizer': tokenizer} if name != 'likelihood' else {}
  judge = judges.TABLE[name](**keys, policy=policy, chunk=8, **resources)
  key = jax.random.key(0)
  one = judge.score({'base': params}, key, group, EXAMPLES)
  with jax.set_mesh(eight):
    many = judge.score({'base': spread(eight, params)}, key, mesh_lib.put_batch(eight, group), EXAMPLES)
  score = np.asarray(one.score_BxG)
  assert np.isfinite(score).any()
  assert np.nanstd(score) > 1e-2  # equal scores would agree whatever the mesh
  most = {'likelihood': 6, 'likelihood_gain': 2 * 32, 'preference': 4}[name]  # tokens that a score sums over
  np.testing.assert_allclose(many.score_BxG, score, atol=1e-5 * most, rtol=0)


def test_eight_devices_step_as_one(policy, params, group, eight):
  ref = np.asarray(group_logps(policy, params, group.prompts, group.ids_BxGxT, group.length_BxG))
  score = np.random.default_rng(0).normal(size=group.length_BxG.shape).astype(np.float32)
  selection = best_vs()(jax.random.key(1), group, Judgement(score))
  batch = compact(group, selection, group.prompts)
  # A reference off the policy, so that the gradient of the preference is not that of the first update only.
  reference = np.take_along_axis(ref * 1.1, np.asarray(selection.members_BxM)[..., None], axis=1)
  batch = jax.device_get(Batch(**{**vars(batch), 'ref_logps_BxGxT': reference}))
  rate = optax.constant_schedule(1e-2)
  terms = losses.add([(1.0, 'nll', losses.nll()), (0.5, 'dpo', losses.pairs.dpo(beta=0.1))])
  # SGD: Adam divides by the gradient, which makes a difference of rounding near zero as large as a step.
  made = update.gradient(policy=policy, losses={'group': (1.0, terms)}, optimizer=optax.sgd(rate), learning_rate=rate)
  step = jax.jit(made.step)
  one, metrics_one = step(made.init(params), {}, {'group': batch})
  with jax.set_mesh(eight):
    state = jax.jit(made.init)(spread(eight, params))
    many, metrics_many = step(state, {}, {'group': mesh_lib.put_batch(eight, batch)})
  assert len(many.params['embed']['embedding'].sharding.device_set) == 8
  assert float(metrics_one['grad_norm']) > 1e-2
  for name in ('loss', 'group/nll/loss', 'group/dpo/loss', 'rewards/margins'):
    np.testing.assert_allclose(metrics_many[name], metrics_one[name], atol=1e-5, err_msg=name)
  np.testing.assert_allclose(metrics_many['grad_norm'], metrics_one['grad_norm'], rtol=1e-5)
  moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), one.params, params)
  assert max(jax.tree.leaves(moved)) > 1e-3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many.params, one.params)
