"""Every loss keeps the contract: equal to a float64 loop, blind to padding and to what has weight 0, finite gradients.

A new loss is one more line in LOSSES, and one in ORACLE.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax.losses import TABLE, add
from past_jax.types import Batch, Prompts, Selection, UserError

dpo, nll = TABLE['dpo'], TABLE['nll']
LOSSES = {
  'dpo': dpo(),
  'dpo beta': dpo(beta=0.5),
  'dpo smooth': dpo(label_smoothing=0.2),
  'nll': nll(),
  'nll sequence': nll(per='sequence'),
  'nll chosen': nll(rows='chosen'),
  'nll chosen sequence': nll(rows='chosen', per='sequence'),
  'add': add([(1.0, 'dpo', dpo()), (0.1, 'nll', nll())]),
}

B, G, T = 3, 3, 5
RNG = np.random.default_rng(3)
LOGPS = -RNG.exponential(size=(B, G, T)).astype(np.float32)
REF = (LOGPS + 0.3 * RNG.normal(size=(B, G, T))).astype(np.float32)
LENGTH = np.array([[5, 3, 2], [4, 1, 5], [2, 5, 3]], np.int32)
PROMPT_LENGTH = np.array([2, 1, 0], np.int32)  # the last one is empty: its completions' first tokens have no log-prob
BATCH = Batch(
  prompts=Prompts(np.ones((B, 2), np.int32), PROMPT_LENGTH),
  ids_BxGxT=np.ones((B, G, T), np.int32),
  length_BxG=LENGTH,
  ref_logps_BxGxT=REF,
  old_logps_BxGxT=None,
  source_BxG=np.zeros((B, G), np.int32),
  selection=Selection(
    chosen_BxJ=np.array([[0, 2], [1, 0], [1, 1]], np.int32),
    rejected_BxJ=np.array([[1, 1], [0, 1], [0, 0]], np.int32),
    pair_weight_BxJ=np.array([[1, 0.5], [1, 0], [0.25, 0]], np.float32),
    row_weight_BxG=np.array([[1, 0, 0.5], [0, 1, 0], [0, 2, 0]], np.float32),
    score_BxG=np.zeros((B, G), np.float32),
    members_BxM=np.tile(np.arange(G, dtype=np.int32), (B, 1)),
  ),
)
MASK = (np.arange(T) < LENGTH[..., None]) & ((np.arange(T) > 0) | (PROMPT_LENGTH > 0)[:, None, None])


def reweighed(pair=None, row=None, batch=BATCH):
  s = batch.selection
  pair = s.pair_weight_BxJ if pair is None else np.full((B, 2), pair, np.float32)
  row = s.row_weight_BxG if row is None else np.full((B, G), row, np.float32)
  return dataclasses.replace(batch, selection=dataclasses.replace(s, pair_weight_BxJ=pair, row_weight_BxG=row))


@functools.cache
def program(loss):
  return jax.jit(jax.value_and_grad(lambda x, batch: loss({'logps_BxGxT': x}, batch), has_aux=True))


def evaluate(loss, logps=LOGPS, batch=BATCH):
  """(value, metrics, gradient in the log-probs)"""
  (value, metrics), grad = jax.device_get(program(loss)(logps, batch))
  return value, metrics, grad


# --- an independent loop ------------------------------------------------------------------------------------------


def tokens_of(b, g):
  return [t for t in range(LENGTH[b, g]) if t > 0 or PROMPT_LENGTH[b] > 0]


def loop_pairs(logps, beta, eps, ref=REF):
  out = {'loss': 0.0, 'chosen': 0.0, 'rejected': 0.0, 'right': 0.0, 'logp_w': 0.0, 'logp_l': 0.0}
  total, s = 0.0, BATCH.selection
  for b in range(B):
    for j in range(2):
      weight = float(s.pair_weight_BxJ[b, j])
      w, l = int(s.chosen_BxJ[b, j]), int(s.rejected_BxJ[b, j])
      sums = [sum(float(x[b, g, t]) for t in tokens_of(b, g)) for g in (w, l) for x in (logps, ref)]
      h_w, h_l = sums[0] - sums[1], sums[2] - sums[3]
      d = beta * (h_w - h_l)
      total += weight
      out['loss'] += weight * ((1 - eps) * math.log1p(math.exp(-d)) + eps * math.log1p(math.exp(d)))
      out['chosen'] += weight * beta * h_w
      out['rejected'] += weight * beta * h_l
      out['right'] += weight * (d > 0)
      out['logp_w'] += weight * sums[0]
      out['logp_l'] += weight * sums[2]
  return {name: x / total for name, x in out.items()}


def loop_nll(logps, rows, per):
  s, top, bottom = BATCH.selection, 0.0, 0.0
  for b in range(B):
    for g in range(G):
      weight = float(s.row_weight_BxG[b, g])
      if rows == 'chosen':
        weight = sum(float(s.pair_weight_BxJ[b, j]) for j in range(2) if s.chosen_BxJ[b, j] == g)
      tokens = tokens_of(b, g)
      total = -sum(float(logps[b, g, t]) for t in tokens)
      top += weight * (total if per == 'token' else total / len(tokens))
      bottom += weight * (len(tokens) if per == 'token' else 1)
  return top / bottom


ORACLE = {
  'dpo': lambda x: loop_pairs(x, 0.1, 0.0)['loss'],
  'dpo beta': lambda x: loop_pairs(x, 0.5, 0.0)['loss'],
  'dpo smooth': lambda x: loop_pairs(x, 0.1, 0.2)['loss'],
  'nll': lambda x: loop_nll(x, 'selected', 'token'),
  'nll sequence': lambda x: loop_nll(x, 'selected', 'sequence'),
  'nll chosen': lambda x: loop_nll(x, 'chosen', 'token'),
  'nll chosen sequence': lambda x: loop_nll(x, 'chosen', 'sequence'),
  'add': lambda x: loop_pairs(x, 0.1, 0.0)['loss'] + 0.1 * loop_nll(x, 'selected', 'token'),
}


# --- the battery --------------------------------------------------------------------------------------------------


def test_every_loss_of_the_table_is_in_the_battery():
  assert {name.split()[0] for name in LOSSES} <= {*TABLE, 'add'}
  assert set(ORACLE) == set(LOSSES)


@pytest.fixture(scope='module')
def values():
  return {name: evaluate(loss) for name, loss in LOSSES.items()}


@pytest.mark.parametrize('name', LOSSES)
def test_the_loop(values, name):
  value, metrics, grad = values[name]
  assert value.dtype == np.float32 and value.shape == ()
  assert metrics['loss'] == value
  assert all(x.shape == () for x in metrics.values())
  np.testing.assert_allclose(value, ORACLE[name](LOGPS), rtol=1e-6)
  wide = LOGPS.astype(np.float64)
  for index in np.ndindex(B, G, T):
    step = np.zeros_like(wide)
    step[index] = 1e-5
    slope = (ORACLE[name](wide + step) - ORACLE[name](wide - step)) / 2e-5
    np.testing.assert_allclose(grad[index], slope, atol=1e-6)


def test_every_loss_is_another(values):
  numbers = [float(value) for value, _, _ in values.values()]
  assert len(np.unique(np.round(numbers, 4))) == len(LOSSES)
  grads = [grad.ravel() for _, _, grad in values.values()]
  assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(grads) for b in grads[:i])


@pytest.mark.parametrize('name', LOSSES)
def test_padding_does_not_matter(values, name):
  pad = lambda x, fill: np.pad(np.where(MASK, x, fill), ((0, 0), (0, 0), (0, 2)), constant_values=fill)
  prompts = Prompts(np.pad(BATCH.prompts.ids_BxP, ((0, 0), (3, 0))), PROMPT_LENGTH)
  ids = np.pad(BATCH.ids_BxGxT, ((0, 0), (0, 0), (0, 2)))
  batch = dataclasses.replace(BATCH, prompts=prompts, ids_BxGxT=ids, ref_logps_BxGxT=pad(REF, 7.0))
  value, _, grad = evaluate(LOSSES[name], pad(LOGPS, -1e4), batch)
  np.testing.assert_allclose(value, values[name][0], rtol=1e-6)
  np.testing.assert_allclose(grad[:, :, :T], values[name][2], atol=1e-7)
  assert not grad[:, :, T:].any() and not grad[:, :, :T][~MASK].any()


@pytest.mark.parametrize('name', LOSSES)
def test_what_has_weight_zero_does_not_matter(values, name):
  s = BATCH.selection
  used = s.row_weight_BxG > 0
  for index in (s.chosen_BxJ, s.rejected_BxJ):
    for b, j in np.argwhere(s.pair_weight_BxJ > 0):
      used[b, index[b, j]] = True
  more = lambda x, fill: np.concatenate([np.where(used[..., None], x, fill), np.full((1, G, T), fill, x.dtype)])
  grown = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), BATCH)
  none = {f: np.concatenate([getattr(s, f), 0 * getattr(s, f)[:1]]) for f in ('pair_weight_BxJ', 'row_weight_BxG')}
  grown = dataclasses.replace(
    grown, ref_logps_BxGxT=more(REF, 3e4), selection=dataclasses.replace(grown.selection, **none)
  )
  value, metrics, grad = evaluate(LOSSES[name], more(LOGPS, -5e4), grown)
  np.testing.assert_allclose(value, values[name][0], rtol=1e-6)
  for key in metrics:
    np.testing.assert_allclose(metrics[key], values[name][1][key], rtol=1e-6)
  np.testing.assert_allclose(grad[:B][used], values[name][2][used], atol=1e-7)
  assert not grad[:B][~used].any() and not grad[B].any()


@pytest.mark.parametrize('name', LOSSES)
def test_no_weight_at_all(name):
  value, metrics, grad = evaluate(LOSSES[name], batch=reweighed(0, 0))
  assert value == 0 and not grad.any()
  assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('scale', [0.0, 1.0, 1e4])
def test_gradients_stay_finite(name, scale):
  value, metrics, grad = evaluate(LOSSES[name], LOGPS * np.float32(scale))
  assert np.isfinite(value) and np.isfinite(grad).all() and all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize('name', LOSSES)
def test_weights_are_relative(values, name):
  s = BATCH.selection
  batch = dataclasses.replace(
    BATCH,
    selection=dataclasses.replace(s, pair_weight_BxJ=s.pair_weight_BxJ * 4, row_weight_BxG=s.row_weight_BxG * 4),
  )
  np.testing.assert_allclose(evaluate(LOSSES[name], batch=batch)[0], values[name][0], rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_bfloat16_log_probs_are_summed_in_float32(name):
  half = jnp.asarray(LOGPS, jnp.bfloat16)
  value, _, _ = evaluate(LOSSES[name], half)
  assert value.dtype == np.float32
  np.testing.assert_allclose(value, ORACLE[name](np.asarray(half, np.float64)), rtol=1e-6)


# --- known answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('eps', [0.0, 0.2])
@pytest.mark.parametrize('ref', ['none', 'equal'])
def test_at_the_reference_dpo_is_ln_2_and_margins_are_0_exactly(ref, eps):
  batch = dataclasses.replace(BATCH, ref_logps_BxGxT=None if ref == 'none' else LOGPS)
  value, metrics, grad = evaluate(dpo(label_smoothing=eps), batch=batch)
  np.testing.assert_allclose(value, math.log(2), rtol=1e-7)
  assert [metrics[f'rewards/{name}'] for name in ('chosen', 'rejected', 'margins', 'accuracies')] == [0, 0, 0, 0]
  chosen = (BATCH.selection.chosen_BxJ[1, 0], BATCH.selection.rejected_BxJ[1, 0])
  slope = 0.1 * (0.5 - eps) / BATCH.selection.pair_weight_BxJ.sum()  # beta * (1/2 - eps) per unit of pair weight
  np.testing.assert_allclose(grad[1, chosen[0]][MASK[1, chosen[0]]], -slope, rtol=1e-5)  # towards the chosen
  np.testing.assert_allclose(grad[1, chosen[1]][MASK[1, chosen[1]]], slope, rtol=1e-5)  # away from the rejected


def test_a_reference_of_none_is_the_policy_under_stop_gradient(values):
  none = evaluate(dpo(), batch=dataclasses.replace(BATCH, ref_logps_BxGxT=None))
  same = evaluate(dpo(), batch=dataclasses.replace(BATCH, ref_logps_BxGxT=LOGPS))
  np.testing.assert_array_equal(none[2], same[2])
  assert np.abs(none[2]).max() > 0


def test_trl_metrics():
  _, metrics, _ = evaluate(dpo(beta=0.5))
  loop = loop_pairs(LOGPS, 0.5, 0.0)
  expected = {
    'loss': loop['loss'],
    'pairs': BATCH.selection.pair_weight_BxJ.sum(),
    'rewards/chosen': loop['chosen'],
    'rewards/rejected': loop['rejected'],
    'rewards/margins': loop['chosen'] - loop['rejected'],
    'rewards/accuracies': loop['right'],
    'logps/chosen': loop['logp_w'],
    'logps/rejected': loop['logp_l'],
  }
  assert {name: float(x) for name, x in metrics.items()} == pytest.approx(expected, rel=1e-5)
  assert 0 < loop['right'] < 1


def test_label_smoothing_mixes_the_two_labels():
  flipped = dataclasses.replace(
    BATCH,
    selection=dataclasses.replace(
      BATCH.selection, chosen_BxJ=BATCH.selection.rejected_BxJ, rejected_BxJ=BATCH.selection.chosen_BxJ
    ),
  )
  right, wrong = evaluate(dpo())[0], evaluate(dpo(), batch=flipped)[0]
  assert abs(right - wrong) > 1e-3
  np.testing.assert_allclose(evaluate(dpo(label_smoothing=0.3))[0], 0.7 * right + 0.3 * wrong, rtol=1e-6)


def test_beta_zero_survives():
  value, metrics, grad = evaluate(dpo(beta=0.0))
  np.testing.assert_allclose(value, math.log(2), rtol=1e-7)
  assert not grad.any() and metrics['rewards/margins'] == 0


def test_nll_counts_the_tokens_it_learns_from():
  _, metrics, _ = evaluate(nll())
  assert metrics['tokens'] == MASK[BATCH.selection.row_weight_BxG > 0].sum()


def test_a_row_without_a_predicted_token_does_not_pull_the_mean_down():
  batch = dataclasses.replace(reweighed(row=1.0), length_BxG=np.where(np.arange(B)[:, None] == 2, 1, LENGTH))
  without = dataclasses.replace(
    batch,
    selection=dataclasses.replace(batch.selection, row_weight_BxG=np.array([[1] * 3, [1] * 3, [0] * 3], np.float32)),
  )
  for per in ('token', 'sequence'):
    np.testing.assert_allclose(
      evaluate(nll(per=per), batch=batch)[0], evaluate(nll(per=per), batch=without)[0], rtol=1e-6
    )


def test_nll_of_a_raw_text_needs_no_pairs():
  none = np.zeros((B, 0), np.int32)
  selection = Selection(none, none, none.astype(np.float32), *(np.ones((B, 1), np.float32),) * 2, none)
  text = dataclasses.replace(
    jax.tree.map(lambda x: x[:, :1] if x.ndim > 1 else x, BATCH), prompts=BATCH.prompts, selection=selection
  )
  value, _, _ = evaluate(nll(), LOGPS[:, :1], text)
  np.testing.assert_allclose(value, -LOGPS[:, :1][MASK[:, :1]].mean(dtype=np.float64), rtol=1e-6)
  assert evaluate(dpo(), LOGPS[:, :1], text)[0] == 0


def test_add_prefixes_metrics():
  _, metrics, _ = evaluate(LOSSES['add'])
  assert {'loss', 'dpo/loss', 'dpo/rewards/margins', 'nll/loss', 'nll/tokens'} <= set(metrics)
  np.testing.assert_allclose(metrics['loss'], metrics['dpo/loss'] + 0.1 * metrics['nll/loss'], rtol=1e-6)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: dpo(label_smoothing=0.6), 'dpo.label_smoothing=0.6'),
    (lambda: dpo(beta=-0.1), 'dpo.beta=-0.1'),
    (lambda: nll(rows='choosen'), "nll.rows='choosen'.*selected, chosen"),
    (lambda: nll(per='row'), "nll.per='row'"),
    (lambda: add([]), 'one or more'),
    (lambda: add([(1, 'nll', nll()), (2, 'nll', nll())]), 'each once'),
  ],
)
def test_user_errors(build, message):
  with pytest.raises(UserError, match=message):
    build()
