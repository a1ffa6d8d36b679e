"""Losses of trained judges against loops in float64, and what scores are: the head's product with the last state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax import losses, scores
from past_jax.text import byte_tokenizer
from past_jax.types import Batch, Prompts, Selection, UserError

RNG = np.random.default_rng(0)


def batch(G, pairs=(), row_weight=None):
  """3 prompts with G members; `pairs`: (chosen, rejected, weight) of each prompt."""
  B, J = 3, len(pairs[0]) if pairs else 0
  table = np.array(pairs, float).reshape(B, J, 3)
  weight = np.ones((B, G)) if row_weight is None else np.array(row_weight, float)
  prompts = Prompts(jnp.zeros((B, 1), jnp.int32), jnp.ones(B, jnp.int32))
  ints = lambda *shape: jnp.zeros(shape, jnp.int32)
  selection = Selection(
    jnp.asarray(table[..., 0], jnp.int32),
    jnp.asarray(table[..., 1], jnp.int32),
    jnp.asarray(table[..., 2], jnp.float32),
    jnp.asarray(weight, jnp.float32),
    jnp.zeros((B, G)),
    ints(B, G),
  )
  return Batch(prompts, ints(B, G, 2), ints(B, G) + 2, None, None, ints(B, G), selection)


def log_s(x):
  return -np.log1p(np.exp(-x))


PAIRS = (((0, 1, 1.0),), ((1, 0, 2.0),), ((0, 1, 0.0),))


@pytest.mark.parametrize('keys', [{}, {'margin': 0.5}, {'centre': 0.1}])
def test_bradley_terry(keys):
  score = RNG.normal(size=(3, 2))
  score[2] = np.nan  # of weight 0
  margin, centre = keys.get('margin', 0.0), keys.get('centre', 0.0)
  values = []
  for b, ((chosen, rejected, weight),) in enumerate(PAIRS):
    c, r = score[b, chosen], score[b, rejected]
    values.append((-log_s(c - r - margin) + centre * (c + r) ** 2, float(c > r), weight))
  expected = [sum(x[i] * x[2] for x in values[:2]) / 3 for i in (0, 1)]
  loss = losses.TABLE['bradley_terry'](**keys)
  of = lambda s: loss({'score_BxG': s}, batch(2, PAIRS))
  (value, metrics), grads = jax.value_and_grad(of, has_aux=True)(jnp.asarray(score, jnp.float32))
  np.testing.assert_allclose([value, metrics['accuracy']], expected, rtol=1e-6)
  assert metrics['pairs'] == 3 and np.isfinite(grads).all() and not np.asarray(grads[2]).any()


@pytest.mark.parametrize('terms, pairs', [('five', [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]), ('one', [(0, 3)])])
def test_gap(terms, pairs):
  """The orders are w after l, w after w, l after l, l after w."""
  score = RNG.normal(size=(3, 4))
  weight = np.ones((3, 4))
  weight[1, 2] = 0.0  # an empty response: nothing is learned from this pair
  expected = np.mean([sum(-log_s(score[b, i] - score[b, j]) for i, j in pairs) for b in (0, 2)])
  score[1, 2] = np.inf
  of = lambda s: losses.TABLE['gap'](terms=terms)({'score_BxG': s}, batch(4, row_weight=weight))
  (value, metrics), grads = jax.value_and_grad(of, has_aux=True)(jnp.asarray(score, jnp.float32))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(metrics['accuracy'], np.mean(score[[0, 2], 0] > score[[0, 2], 3]))
  np.testing.assert_allclose(metrics['equal'], score[[0, 2], 1:3].mean(), rtol=1e-6)
  assert metrics['rows'] == 2 and np.isfinite(grads).all() and not np.asarray(grads[1]).any()


def test_losses_begin_at_known_values():
  """A head of zeros: ln 2 a term."""
  zeros = jnp.zeros((3, 4))
  value, _ = losses.TABLE['gap']()({'score_BxG': zeros}, batch(4))
  np.testing.assert_allclose(value, 5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize('make', [lambda t: t['gap'](terms='six'), lambda t: t['bradley_terry'](centre=-1.0)])
def test_user_errors(make):
  with pytest.raises(UserError):
    make(losses.TABLE)


def test_a_score_is_the_heads_product_with_the_state_of_the_last_token(policy, params):
  """Each row alone, its padding left out; an empty completion has 0."""
  body = params
  tokenizer = byte_tokenizer()
  prompts = [tokenizer.encode(text) for text in ('ab>', 'cdefg>')]
  members = [[tokenizer.encode(text) for text in texts] for texts in (('xyz', 'x', ''), ('yyyyy', 'zx', 'yyyyyy'))]
  kernel = RNG.normal(size=(64, 1))
  params = scores.with_head(body, 64)
  assert not np.asarray(params['score']['kernel']).any()
  params = params | {'score': {'kernel': jnp.asarray(kernel, jnp.float32)}}
  P, T = 8, 6
  ids_BxP, ids_BxGxT = np.zeros((2, P), np.int32), np.full((2, 3, T), 77, np.int32)
  for b, prompt in enumerate(prompts):
    ids_BxP[b, P - len(prompt) :] = prompt
    for g, ids in enumerate(members[b]):
      ids_BxGxT[b, g, : len(ids)] = ids
  length = np.array([[len(ids) for ids in row] for row in members])
  rows = (
    Prompts(jnp.asarray(ids_BxP), jnp.array([len(p) for p in prompts])),
    jnp.asarray(ids_BxGxT),
    jnp.asarray(length),
  )
  states, program = jax.jit(policy.rows), jax.jit(functools.partial(scores.group_scores, policy))
  found = np.asarray(program(params, *rows))
  for b, prompt in enumerate(prompts):
    for g, ids in enumerate(members[b]):
      n = len(prompt) + len(ids)
      row = jnp.asarray([[*prompt, *ids, *[0] * (16 - n)]])
      state = np.asarray(states(body, row, jnp.array([n])), np.float64)[0, n - 1]
      assert found[b, g] == pytest.approx(float(state @ kernel[:, 0]) if ids else 0.0, abs=1e-4)
  both = jax.jit(lambda *rows: scores.outputs(policy, params, {'a': rows, 'b': rows}))(*rows)
  np.testing.assert_allclose(both['b']['score_BxG'], found, atol=1e-4)
