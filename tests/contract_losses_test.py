"""Every loss keeps the contract: equal to a float64 loop, blind to padding and to what has weight 0, finite gradients.

A new loss is one more line in CASES: its name and keys, and the loop.
"""

import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax import selects
from past_jax.losses import PAIRS, TABLE, add
from past_jax.types import Batch, Group, Judgement, Loss, Prompts, Selection, UserError

B, G, T = 3, 3, 5  # and one more prompt of weight 0, two more tokens of padding
RNG = np.random.default_rng(3)


def grown(x, fill=0):
  """[B, G, T] -> [B + 1, G, T + 2]"""
  return np.pad(x, ((0, 1), (0, 0), (0, 2)), constant_values=fill)


LOGPS = grown(-RNG.exponential(size=(B, G, T)).astype(np.float32))
REF = LOGPS + grown(0.3 * RNG.normal(size=(B, G, T)).astype(np.float32))
OLD = LOGPS + grown(0.15 * RNG.normal(size=(B, G, T)).astype(np.float32))
LOG_SUM_SQ = grown(-0.5 * RNG.exponential(size=(B, G, T)).astype(np.float32))
LENGTH = np.array([[5, 3, 2], [4, 1, 5], [2, 5, 3], [5, 4, 3]], np.int32)
PROMPT_LENGTH = np.array([2, 1, 0, 2], np.int32)  # the third one is empty: first tokens have no log-prob
SCORE = np.array([[0.9, -0.4, 0.3], [0.1, 0.8, -1.2], [-0.2, 1.1, 0.6], [0.5, 0.2, -0.7]], np.float32)
SOURCE = np.array([[0, 1, 0], [1, 0, 1], [0, 1, -2], [0, 1, 0]], np.int32)
BATCH = Batch(
  prompts=Prompts(np.ones((B + 1, 2), np.int32), PROMPT_LENGTH),
  ids_BxGxT=np.ones(LOGPS.shape, np.int32),
  length_BxG=LENGTH,
  ref_logps_BxGxT=REF,
  old_logps_BxGxT=OLD,
  source_BxG=SOURCE,
  selection=Selection(
    chosen_BxJ=np.array([[0, 2], [1, 0], [1, 1], [0, 2]], np.int32),
    rejected_BxJ=np.array([[1, 1], [2, 1], [0, 0], [1, 1]], np.int32),
    pair_weight_BxJ=np.array([[1, 0.5], [1, 0], [0.25, 0], [0, 0]], np.float32),
    row_weight_BxG=np.array([[1, 0.5, 0.25], [0, 1, 2], [1, 0.5, 0], [0, 0, 0]], np.float32),
    score_BxG=SCORE,
    members_BxM=np.tile(np.arange(G, dtype=np.int32), (B + 1, 1)),
  ),
)
MASK = (np.arange(T + 2) < LENGTH[..., None]) & ((np.arange(T + 2) > 0) | (PROMPT_LENGTH > 0)[:, None, None])
PAIRED = [(b, j) for b in range(B) for j in range(2) if BATCH.selection.pair_weight_BxJ[b, j] > 0]
ROWS = [(b, g) for b in range(B) for g in range(G) if BATCH.selection.row_weight_BxG[b, g] > 0]


def changed(batch=BATCH, **fields):
  """`batch` with other fields, of it or of its selection."""
  own = {f.name for f in dataclasses.fields(Batch)}
  inner = {name: x for name, x in fields.items() if name not in own}
  batch = dataclasses.replace(batch, selection=dataclasses.replace(batch.selection, **inner))
  return dataclasses.replace(batch, **{name: x for name, x in fields.items() if name in own})


@functools.cache
def program(*losses: Loss):
  def one(loss, logps, log_sum_sq, batch):
    value = lambda x: loss({'logps_BxGxT': x, 'log_sum_sq_BxGxT': log_sum_sq}, batch)
    return jax.value_and_grad(value, has_aux=True)(logps)

  return jax.jit(lambda *args: [one(loss, *args) for loss in losses])


def every(logps=LOGPS, batch=BATCH, log_sum_sq=LOG_SUM_SQ):
  """{case: (value, metrics, gradient in the log-probs)}: one program, so arguments have one shape."""
  out = jax.device_get(program(*(loss for loss, _ in CASES.values()))(logps, log_sum_sq, batch))
  return {name: (value, metrics, grad) for name, ((value, metrics), grad) in zip(CASES, out)}


def evaluate(loss, logps=LOGPS, batch=BATCH):
  """The same of a loss that is no case, or for arguments of another shape."""
  (((value, metrics), grad),) = jax.device_get(program(loss)(logps, LOG_SUM_SQ, batch))
  return value, metrics, grad


BETAS = {}  # loss -> its beta


def made(name: str, **keys) -> Loss:
  loss = TABLE[name](**keys)
  bound = inspect.signature(TABLE[name]).bind(**keys)
  bound.apply_defaults()
  BETAS[loss] = bound.arguments.get('beta')
  return loss


# --- independent loops, in float64 --------------------------------------------------------------------------------

exp, log = math.exp, math.log
s = lambda x: 1 / (1 + exp(-x)) if x > 0 else exp(x) / (1 + exp(x))
ls = lambda x: -math.log1p(exp(-x)) if x > 0 else x - math.log1p(exp(x))


def tokens(b, g):
  return [t for t in range(LENGTH[b, g]) if t > 0 or PROMPT_LENGTH[b] > 0]


def total(x, b, g, weights=None):
  return sum(float(x[b, g, t]) * (1.0 if weights is None else weights[i]) for i, t in enumerate(tokens(b, g)))


def pair_loop(formula, *, reference=True, ld=1.0, smooth=0.0, score=lambda h: h, wpo=False):
  """formula(h_w, h_l, a_w, a_l, n_w, n_l, r_w, r_l), averaged over pairs by weight."""

  def loop(logps):
    sel, out, weights = BATCH.selection, 0.0, 0.0
    for b, j in PAIRED:
      members = (int(sel.chosen_BxJ[b, j]), int(sel.rejected_BxJ[b, j]))
      n = [len(tokens(b, g)) for g in members]
      scale = [[1.0 if i < min(n) else ld for i in range(m)] for m in n]
      a = [total(logps, b, g, w) for g, w in zip(members, scale)]
      h = [x - reference * total(REF, b, g, w) for x, g, w in zip(a, members, scale)]
      h = [score(x) for x in h]
      r = [float(SCORE[b, g]) for g in members]
      value = (1 - smooth) * formula(*h, *a, *n, *r)
      value += smooth * formula(*h[::-1], *a[::-1], *n[::-1], *r[::-1]) if smooth else 0.0
      if wpo:  # without gradient: of the fixed vector, whatever the argument
        value *= exp(sum((total(LOGPS, b, g) - total(LOG_SUM_SQ, b, g)) / m for g, m in zip(members, n)))
      weight = float(sel.pair_weight_BxJ[b, j])
      out, weights = out + weight * value, weights + weight
    return out / weights

  return loop


def both(*loops):
  return lambda logps: sum(loop(logps) for loop in loops)


def of_delta(f):
  return lambda hw, hl, *rest: f(hw - hl)


def of_mean_delta(f):
  return lambda hw, hl, aw, al, nw, nl, *rest: f(hw / nw - hl / nl)


def of_h(f):
  return lambda hw, hl, *rest: f(hw, hl)


def bco(beta, shift):
  def loop(logps):
    h = [[total(logps, b, g) - total(REF, b, g) for g in pair_of(b, j)] for b, j in PAIRED]
    d = sum(beta * (total(LOGPS, b, g) - total(REF, b, g)) for b, j in PAIRED for g in pair_of(b, j))
    d = d / (2 * len(PAIRED)) if shift else 0.0
    return average([-ls(beta * w - d) - ls(d - beta * l) for w, l in h])

  return loop


def pair_of(b, j):
  return int(BATCH.selection.chosen_BxJ[b, j]), int(BATCH.selection.rejected_BxJ[b, j])


def average(values):
  weights = [float(BATCH.selection.pair_weight_BxJ[b, j]) for b, j in PAIRED]
  return sum(w * x for w, x in zip(weights, values)) / sum(weights)


def transport(beta, eps, paired):
  def loop(logps):
    sums = [[(total(logps, b, g), total(REF, b, g)) for g in pair_of(b, j)] for b, j in PAIRED]
    if paired:
      u, v = ([w[k] - l[k] for w, l in sums] for k in (0, 1))
    else:
      u, v = ([pair[k][0] - pair[k][1] for pair in sums] for k in (0, 1))
    gaps = [x - y for x, y in zip(sorted(u), sorted(v))]
    return sum(-(1 - eps) * ls(beta * e) - eps * ls(-beta * e) for e in gaps) / len(gaps)

  return loop


def nll_loop(rows, per):
  def loop(logps):
    sel, top, bottom = BATCH.selection, 0.0, 0.0
    for b in range(B):
      for g in range(G):
        weight = float(sel.row_weight_BxG[b, g])
        if rows == 'chosen':
          weight = sum(float(sel.pair_weight_BxJ[b, j]) for j in range(2) if sel.chosen_BxJ[b, j] == g)
        n = len(tokens(b, g))
        top -= weight * total(logps, b, g) / (1 if per == 'token' else n)
        bottom += weight * (n if per == 'token' else 1)
    return top / bottom

  return loop


def row_mean(values):
  """Over ROWS, by row weight."""
  weights = [float(BATCH.selection.row_weight_BxG[b, g]) for b, g in ROWS]
  return sum(w * x for w, x in zip(weights, values)) / sum(weights)


def kto_loop(beta, threshold, good, bad):
  def loop(logps):
    z = max(total(LOGPS, 2, 2) - total(REF, 2, 2), 0.0)
    values = []
    for b, g in ROWS:
      h = total(logps, b, g) - total(REF, b, g)
      values.append(good * (1 - s(beta * (h - z))) if SCORE[b, g] > threshold else bad * (1 - s(beta * (z - h))))
    return row_mean(values)

  return loop


def optimism_loop(logps):
  used = sorted({(b, g) for b, j in PAIRED for g in pair_of(b, j) if SOURCE[b, g] == 1})
  return sum(total(logps, b, g) for b, g in used) / len(used)


def advantages(scale):
  score = lambda rows: np.array([float(SCORE[b, g]) for b, g in rows])
  group = lambda b: score([row for row in ROWS if row[0] == b])
  std = {'group': lambda b: group(b).std(ddof=1) + 1e-4, 'batch': lambda b: score(ROWS).std(ddof=1) + 1e-4}
  divisor = lambda b: std[scale](b) if scale in std else 1.0
  return {(b, g): (float(SCORE[b, g]) - group(b).mean()) / divisor(b) for b, g in ROWS}


def clipped(rho, a, low, high):
  return -min(rho * a, min(max(rho, 1 - low), 1 + high) * a)


def grpo_loop(beta, scale, per, low, high, length=None):
  def loop(logps):
    advantage, top, bottom = advantages(scale), 0.0, 0.0
    for b, g in ROWS:
      weight, row = float(BATCH.selection.row_weight_BxG[b, g]), 0.0
      for t in tokens(b, g):
        x, old, ref = (float(y[b, g, t]) for y in (logps, OLD, REF))
        row += clipped(exp(x - old), advantage[b, g], low, high) + beta * (exp(ref - x) - (ref - x) - 1)
      n = len(tokens(b, g))
      top += weight * row / {'token': 1, 'sequence': n, 'constant': length}[per]
      bottom += weight * (n if per == 'token' else 1)
    return top / bottom

  return loop


def rloo_loop(beta, clip):
  def loop(logps):
    reward = {(b, g): float(SCORE[b, g]) - beta * (total(OLD, b, g) - total(REF, b, g)) for b, g in ROWS}
    values = []
    for b, g in ROWS:
      others = [reward[row] for row in ROWS if row[0] == b and row[1] != g]
      a, x = reward[b, g] - sum(others) / len(others), total(logps, b, g)
      values.append(clipped(exp(x - total(OLD, b, g)), a, clip, clip) if clip else -a * x)
    return row_mean(values)

  return loop


def nash_loop(beta, wins):
  def loop(logps):
    top = bottom = 0.0
    for b, g in ROWS:
      if SOURCE[b, g] != 0:
        continue
      opponents = [row for row in ROWS if row[0] == b and SOURCE[row] == 1]
      p = sum(s(float(SCORE[b, g]) - float(SCORE[row])) for row in opponents) / len(opponents)
      p = p if wins == 'scores' else float(SCORE[b, g])
      value = -(p - 0.5) * total(logps, b, g)
      # sg[]: of the fixed vector, so that finite differences see no derivative of it
      value += beta * sum(float(LOGPS[b, g, t] - REF[b, g, t]) * float(logps[b, g, t]) for t in tokens(b, g))
      weight = float(BATCH.selection.row_weight_BxG[b, g])
      top, bottom = top + weight * value, bottom + weight
    return top / bottom

  return loop


sigmoid_of = lambda beta: of_delta(lambda d: -ls(beta * d))
odds = lambda a: a - log(1 - exp(a))
forward_kl, js = (lambda h: 1 - exp(-h)), (lambda h: log(2 * s(h)))
CASES = {  # (name, keys) -> the loop
  'dpo': (made('dpo'), pair_loop(sigmoid_of(0.1))),
  'dpo beta': (made('dpo', beta=0.5), pair_loop(sigmoid_of(0.5))),
  'dpo smooth': (made('dpo', label_smoothing=0.2), pair_loop(sigmoid_of(0.1), smooth=0.2)),
  'dpo ld': (made('dpo', ld_alpha=0.5), pair_loop(sigmoid_of(0.1), ld=0.5)),
  'dpo wpo': (made('dpo', wpo=True), pair_loop(sigmoid_of(0.1), wpo=True)),
  'dpo forward': (made('dpo', divergence='forward_kl'), pair_loop(sigmoid_of(0.1), score=forward_kl)),
  'dpo js': (made('dpo', divergence='js'), pair_loop(sigmoid_of(0.1), score=js)),
  'dpo alpha': (
    made('dpo', divergence='alpha', divergence_alpha=0.4),
    pair_loop(sigmoid_of(0.1), score=lambda h: (exp(-0.6 * h) - 1) / -0.6),
  ),
  'robust': (made('robust'), pair_loop(of_delta(lambda d: (-0.9 * ls(0.1 * d) + 0.1 * ls(-0.1 * d)) / 0.8))),
  'hinge': (made('hinge', beta=0.9), pair_loop(of_delta(lambda d: max(0, 1 - 0.9 * d)))),
  'hinge js smooth': (
    made('hinge', beta=0.9, divergence='js', label_smoothing=0.1),
    pair_loop(of_delta(lambda d: max(0, 1 - 0.9 * d)), score=js, smooth=0.1),
  ),
  'ipo': (made('ipo'), pair_loop(of_mean_delta(lambda d: (d - 5) ** 2))),
  'ipo sums': (made('ipo', normalise=False), pair_loop(of_delta(lambda d: (d - 5) ** 2))),
  'sigmoid_norm': (made('sigmoid_norm'), pair_loop(of_mean_delta(lambda d: -ls(2 * d)))),
  'sigmoid_norm ld wpo': (
    made('sigmoid_norm', ld_alpha=0.3, wpo=True),
    pair_loop(of_mean_delta(lambda d: -ls(2 * d)), ld=0.3, wpo=True),
  ),
  'exo_pair': (
    made('exo_pair', label_smoothing=0.01),
    pair_loop(
      of_delta(lambda d: s(0.1 * d) * log(s(0.1 * d) / 0.99) + (1 - s(0.1 * d)) * log((1 - s(0.1 * d)) / 0.01))
    ),
  ),
  'discopop': (
    made('discopop'),
    pair_loop(of_delta(lambda d: (1 - s(d)) * -ls(0.05 * d) + s(d) * exp(-0.05 * d))),
  ),
  'rebel': (
    made('rebel', beta=0.5),
    pair_loop(lambda hw, hl, aw, al, nw, nl, rw, rl: (0.5 * (hw - hl) - (rw - rl)) ** 2),
  ),
  'nca_pair': (
    made('nca_pair', beta=0.2),
    pair_loop(of_h(lambda w, l: -ls(0.2 * w) - 0.5 * ls(-0.2 * w) - 0.5 * ls(-0.2 * l))),
  ),
  'nca_pair forward smooth': (
    made('nca_pair', beta=0.2, divergence='forward_kl', label_smoothing=0.3),
    pair_loop(of_h(lambda w, l: -ls(0.2 * w) - 0.5 * ls(-0.2 * w) - 0.5 * ls(-0.2 * l)), score=forward_kl, smooth=0.3),
  ),
  'bco_pair': (made('bco_pair'), bco(0.1, False)),
  'bco_pair shift': (made('bco_pair', beta=0.4, shift=True), bco(0.4, True)),
  'sppo_hard': (made('sppo_hard', beta=0.2), pair_loop(of_h(lambda w, l: (w - 2.5) ** 2 + (l + 2.5) ** 2))),
  'sppo': (
    made('sppo', beta=0.2),
    pair_loop(lambda hw, hl, aw, al, nw, nl, pw, pl: 0.5 * ((hw - 5 * (pw - 0.5)) ** 2 + (hl - 5 * (pl - 0.5)) ** 2)),
  ),
  'apo_zero': (made('apo_zero'), pair_loop(of_h(lambda w, l: 1 - s(0.1 * w) + s(0.1 * l)))),
  'apo_down': (made('apo_down'), pair_loop(of_h(lambda w, l: s(0.1 * w) + 1 - s(0.1 * (w - l))))),
  'aot': (made('aot'), transport(0.1, 0.0, True)),
  'aot smooth': (made('aot', label_smoothing=0.1), transport(0.1, 0.1, True)),
  'aot_unpaired': (made('aot_unpaired'), transport(0.1, 0.0, False)),
  'simpo': (made('simpo'), pair_loop(of_mean_delta(lambda d: -ls(2.5 * d - 1.375)), reference=False)),
  'cpo': (
    made('cpo'),
    pair_loop(lambda hw, hl, aw, al, nw, nl, *r: -ls(0.1 * (aw - al)) - aw / nw, reference=False),
  ),
  'orpo': (
    made('orpo'),
    pair_loop(lambda hw, hl, aw, al, nw, nl, *r: -aw / nw - 0.1 * ls(odds(aw / nw) - odds(al / nl)), reference=False),
  ),
  'cpo smooth': (  # wrong labels do not turn the imitation round
    made('cpo', nll=0.7, label_smoothing=0.2),
    both(
      pair_loop(lambda hw, hl, aw, al, *r: -ls(0.1 * (aw - al)), reference=False, smooth=0.2),
      pair_loop(lambda hw, hl, aw, al, nw, nl, *r: -0.7 * aw / nw, reference=False),
    ),
  ),
  'nll': (made('nll'), nll_loop('selected', 'token')),
  'nll sequence': (made('nll', per='sequence'), nll_loop('selected', 'sequence')),
  'nll chosen': (made('nll', rows='chosen'), nll_loop('chosen', 'token')),
  'nll chosen sequence': (made('nll', rows='chosen', per='sequence'), nll_loop('chosen', 'sequence')),
  'kto': (made('kto'), kto_loop(0.1, 0.0, 1.0, 1.0)),
  'kto keys': (
    made('kto', beta=0.3, threshold=0.2, desirable=0.7, undesirable=1.3),
    kto_loop(0.3, 0.2, 0.7, 1.3),
  ),
  'optimism': (made('optimism'), optimism_loop),
  'grpo': (made('grpo'), grpo_loop(0.0, 'group', 'token', 0.2, 0.2)),
  'grpo sequence': (made('grpo', beta=0.1, per='sequence'), grpo_loop(0.1, 'group', 'sequence', 0.2, 0.2)),
  'grpo constant': (
    made('grpo', scale='none', per='constant', length=6),
    grpo_loop(0.0, 'none', 'constant', 0.2, 0.2, 6),
  ),
  'grpo batch': (
    made('grpo', beta=0.04, scale='batch', clip_low=0.1, clip_high=0.28),
    grpo_loop(0.04, 'batch', 'token', 0.1, 0.28),
  ),
  'rloo': (made('rloo'), rloo_loop(0.0, 0.0)),
  'rloo clip': (made('rloo', beta=0.3, clip=0.2), rloo_loop(0.3, 0.2)),
  'nash_md': (made('nash_md'), nash_loop(0.1, 'scores')),
  'nash_md score': (made('nash_md', wins='score'), nash_loop(0.1, 'score')),
}
ADDED = {  # composed losses: weight, name, keys
  'RPO': ((1.0, 'dpo', {}), (0.005, 'nll', {'rows': 'chosen', 'per': 'sequence'})),
  'IRPO': ((1.0, 'dpo', {'beta': 0.5}), (1.0, 'nll', {'rows': 'chosen', 'per': 'sequence'})),
  'MPO': ((0.8, 'dpo', {}), (0.2, 'bco_pair', {}), (1.0, 'nll', {'rows': 'chosen'})),
  'XPO': ((1.0, 'dpo', {}), (1e-2, 'optimism', {})),
  'XPO-squared': ((1.0, 'rebel', {'beta': 0.5}), (0.3, 'optimism', {})),  # arXiv 2412.01951: plus, not minus
}
PARTS = {
  'RPO': ('dpo', 'nll chosen sequence'),
  'IRPO': ('dpo beta', 'nll chosen sequence'),
  'MPO': ('dpo', 'bco_pair', 'nll chosen'),
  'XPO': ('dpo', 'optimism'),
  'XPO-squared': ('rebel', 'optimism'),
}
for name, parts in ADDED.items():
  loops = [(weight, CASES[part][1]) for (weight, _, _), part in zip(parts, PARTS[name], strict=True)]
  CASES[name] = (
    add([(weight, part, made(part, **keys)) for weight, part, keys in parts]),
    lambda x, loops=loops: sum(weight * loop(x) for weight, loop in loops),
  )


# --- the battery --------------------------------------------------------------------------------------------------


def test_every_loss_of_the_table_is_in_the_battery():
  of_judges = {name for name in TABLE if TABLE[name]().scores}  # judge_losses_test.py
  assert {name.split()[0] for name in CASES} | of_judges == {*TABLE, *ADDED}


@pytest.fixture(scope='module')
def values():
  return every()


@pytest.mark.parametrize('name', CASES)
def test_the_loop(values, name):
  value, metrics, grad = values[name]
  loop = CASES[name][1]
  assert value.dtype == np.float32 and value.shape == ()
  assert metrics['loss'] == value
  assert all(x.shape == () for x in metrics.values())
  np.testing.assert_allclose(value, loop(LOGPS), rtol=2e-6, atol=1e-6)
  wide = LOGPS.astype(np.float64)
  for index in np.argwhere(MASK[:B]):
    step = np.zeros_like(wide)
    step[tuple(index)] = 1e-5
    slope = (loop(wide + step) - loop(wide - step)) / 2e-5
    np.testing.assert_allclose(grad[tuple(index)], slope, rtol=1e-5, atol=2e-6)


def test_every_loss_is_another(values):
  numbers = [float(value) for value, _, _ in values.values()]
  assert len(np.unique(np.round(numbers, 5))) == len(CASES)
  grads = [grad.ravel() for _, _, grad in values.values()]
  assert all(np.abs(a - b).max() > 1e-5 for i, a in enumerate(grads) for b in grads[:i])


@pytest.fixture(scope='module')
def padded():
  pad = lambda x, fill: np.where(MASK, x, np.float32(fill))
  batch = changed(ref_logps_BxGxT=pad(REF, 7.0), old_logps_BxGxT=pad(OLD, np.nan))
  return every(pad(LOGPS, -1e4), batch, pad(LOG_SUM_SQ, np.nan))


@pytest.mark.parametrize('name', CASES)
def test_padding_does_not_matter(values, padded, name):
  value, _, grad = padded[name]
  np.testing.assert_allclose(value, values[name][0], rtol=1e-6)
  np.testing.assert_allclose(grad[MASK], values[name][2][MASK], atol=1e-7)
  assert not grad[~MASK].any()


def used_by(name):
  """bool_BxG: members whose log-probs a loss reads."""
  used = BATCH.selection.row_weight_BxG > 0
  for b, j in PAIRED:
    used[b, pair_of(b, j)] = True
  return used | ((SOURCE == -2) & name.startswith('kto'))  # what the drift is read off


@pytest.fixture(scope='module')
def spoilt():
  def of(name):
    spoil = lambda x, fill: np.where(used_by(name)[..., None], x, np.float32(fill))
    score = np.where(used_by(name), SCORE, np.float32(np.nan))
    refs = dict(ref_logps_BxGxT=spoil(REF, np.nan), old_logps_BxGxT=spoil(OLD, np.nan))
    return every(spoil(LOGPS, -5e4), changed(**refs, score_BxG=score), spoil(LOG_SUM_SQ, np.nan))

  kto, others = of('kto'), of('others')
  return {name: (kto if name.startswith('kto') else others)[name] for name in CASES}


@pytest.mark.parametrize('name', CASES)
def test_what_has_weight_0_may_be_anything(values, spoilt, name):
  value, metrics, grad = spoilt[name]
  used = used_by(name)
  np.testing.assert_allclose(value, values[name][0], rtol=1e-6)
  for key in metrics:
    np.testing.assert_allclose(metrics[key], values[name][1][key], rtol=1e-6)
  np.testing.assert_allclose(grad[used], values[name][2][used], atol=1e-7)
  assert not grad[~used].any()


def test_no_weight_at_all():
  none = changed(pair_weight_BxJ=0 * BATCH.selection.pair_weight_BxJ, row_weight_BxG=np.zeros((B + 1, G), np.float32))
  for name, (value, metrics, grad) in every(batch=none).items():
    assert value == 0 and not grad.any(), name
    assert all(np.isfinite(x) for x in metrics.values()), name


@pytest.mark.parametrize('scale', [0.0, 1e4, -1e4])
def test_gradients_stay_finite(scale):
  """At log-prob 0 and far off; -1e4: log-ratios of the other sign."""
  logps, ref = (LOGPS, REF) if scale >= 0 else (REF, LOGPS)
  logps, ref = logps * np.float32(abs(scale)), ref * np.float32(abs(scale))
  log_sum_sq = LOG_SUM_SQ if scale == 0 else logps  # a token of log-prob -1e4 is one of a distribution like it
  for old in (logps, ref):
    for name, (value, metrics, grad) in every(
      logps, changed(ref_logps_BxGxT=ref, old_logps_BxGxT=old), log_sum_sq
    ).items():
      assert np.isfinite(value) and np.isfinite(grad).all(), name
      assert all(np.isfinite(x) for x in metrics.values()), name


def test_weights_are_relative(values):
  sel = BATCH.selection
  batch = changed(pair_weight_BxJ=sel.pair_weight_BxJ * 4, row_weight_BxG=sel.row_weight_BxG * 4)
  for name, (value, _, _) in every(batch=batch).items():
    np.testing.assert_allclose(value, values[name][0], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('name', ['dpo', 'grpo'])
def test_bfloat16_log_probs_are_summed_in_float32(name):
  half = jnp.asarray(LOGPS, jnp.bfloat16)
  value, _, _ = evaluate(CASES[name][0], half)
  assert value.dtype == np.float32
  np.testing.assert_allclose(value, CASES[name][1](np.asarray(half, np.float64)), rtol=1e-6, atol=1e-6)


def test_what_a_loss_reads_is_what_it_says(values):
  """With other reference or old log-probs or statistics a loss is another if and only if it names them."""
  moved = lambda x: x + grown(RNG.normal(size=(B, G, T)).astype(np.float32))
  by_reference = every(batch=changed(ref_logps_BxGxT=moved(REF)))
  by_old = every(batch=changed(old_logps_BxGxT=moved(OLD)))
  by_statistic = every(log_sum_sq=2 * LOG_SUM_SQ)
  for name, (loss, _) in CASES.items():
    differs = lambda out, name=name: (
      out[name][0] != values[name][0] or not np.array_equal(out[name][2], values[name][2])
    )
    assert differs(by_reference) == loss.reference, name
    assert differs(by_old) == loss.old, name
    assert differs(by_statistic) == ('log_sum_sq' in loss.statistics), name


# --- at the reference ---------------------------------------------------------------------------------------------

LN2 = math.log(2)
AT_REFERENCE = {  # independent of the data
  **dict.fromkeys(('dpo', 'dpo beta', 'dpo smooth', 'dpo ld', 'dpo forward', 'dpo js', 'dpo alpha'), LN2),
  **dict.fromkeys(('robust', 'sigmoid_norm', 'aot', 'aot smooth'), LN2),
  **{'hinge': 1.0, 'hinge js smooth': 1.0, 'ipo': 25.0, 'ipo sums': 25.0, 'sppo_hard': 12.5},
  'exo_pair': 0.5 * (math.log(0.5 / 0.99) + math.log(0.5 / 0.01)),
  **{'discopop': 0.5 * (LN2 + 1), 'nca_pair': 2 * LN2, 'nca_pair forward smooth': 2 * LN2},
  **{'bco_pair': 2 * LN2, 'bco_pair shift': 2 * LN2, 'apo_zero': 1.0, 'apo_down': 1.0, 'aot_unpaired': LN2, 'kto': 0.5},
}


@pytest.fixture(scope='module')
def anchored():
  return every(batch=changed(ref_logps_BxGxT=LOGPS, old_logps_BxGxT=LOGPS))


def test_the_values_at_the_reference(anchored):
  declared = {name for name, (loss, _) in CASES.items() if 'loss' in loss.at_reference}
  assert declared == set(AT_REFERENCE)
  for name, expected in AT_REFERENCE.items():
    value, metrics, _ = anchored[name]
    np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
    assert [float(metrics[f'rewards/{key}']) for key in ('chosen', 'rejected', 'margins')] == [0, 0, 0]


def test_what_losses_declare_for_the_self_test(anchored):
  """Their metrics at the reference, and that these move no more than declared if log-ratios are a little off."""
  gap, worst = 0.01, {}
  for seed in range(8):
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (B + 1, G, 1)).astype(np.float32)
    off = gap * sign * MASK / np.maximum(MASK.sum(-1, keepdims=True), 1)
    moved = every(batch=changed(ref_logps_BxGxT=(LOGPS - off).astype(np.float32), old_logps_BxGxT=LOGPS))
    for name, (loss, _) in CASES.items():
      for key, (expected, slope) in loss.at_reference.items():
        at = anchored[name][1][key]
        np.testing.assert_allclose(at, expected, rtol=1e-6, atol=1e-7, err_msg=name)
        distance = (abs(moved[name][1][key] - at) - 1e-6 * max(1, abs(at))) / (slope * gap)
        worst[name, key] = max(worst.get((name, key), 0.0), distance)
  assert {name for name, _ in worst} == {name for name, (loss, _) in CASES.items() if loss.at_reference}
  assert max(worst.values()) < 1.01
  tight = {name: x for (name, key), x in worst.items() if key == 'loss'}
  assert min(tight.values()) > 0.02, tight  # bounds of what moves, not of everything


@pytest.mark.parametrize('name', ['dpo', 'kto', 'nash_md'])
def test_a_reference_of_none_is_the_policy_under_stop_gradient(name):
  none = evaluate(CASES[name][0], batch=changed(ref_logps_BxGxT=None))
  same = evaluate(CASES[name][0], batch=changed(ref_logps_BxGxT=LOGPS))
  assert none[0] == same[0]
  np.testing.assert_array_equal(none[2], same[2])
  assert np.abs(none[2]).max() > 0


def test_old_log_probs_of_none_are_the_policys_under_stop_gradient(anchored):
  """The ratio is 1 and its gradient is that of REINFORCE: no matter where it is clipped."""
  none = evaluate(made('grpo', beta=0.1, per='sequence'), batch=changed(old_logps_BxGxT=None, ref_logps_BxGxT=LOGPS))
  np.testing.assert_allclose(none[2], anchored['grpo sequence'][2], atol=1e-7)
  assert none[1]['clip_ratio'] == 0 and np.abs(none[2]).max() > 0


def test_the_signs_of_gradients_at_the_reference():
  """Towards the chosen and away from the rejected.

  apo_down pushes both down, at the reference the rejected only; discopop is not convex, and begins the other way.
  """
  wins = np.where(np.arange(G) == BATCH.selection.chosen_BxJ[:, :1], 1.0, 0.0).astype(np.float32)
  b, (w, l) = 1, pair_of(1, 0)
  grads = every(batch=changed(ref_logps_BxGxT=LOGPS, score_BxG=wins))
  for make in PAIRS:
    name = make.__name__
    up, down = (grads[name][2][b, g][MASK[b, g]] for g in (w, l))
    if name == 'apo_down':
      assert np.abs(up).max() < 1e-8 and (down > 0).all()
    else:
      sign = -1 if name == 'discopop' else 1
      assert (sign * up < 0).all() and (sign * down > 0).all(), name


# --- relations ----------------------------------------------------------------------------------------------------


def test_grpo_without_deviation_of_two_is_half_of_rloo():
  weight = np.array([[1, 1, 0]] * B + [[0, 0, 0]], np.float32)
  out = every(batch=changed(row_weight_BxG=weight, old_logps_BxGxT=LOGPS))
  ours = 6 * out['grpo constant'][2]  # its sums are over a constant length of 6
  np.testing.assert_allclose(2 * ours, out['rloo'][2], rtol=1e-5, atol=1e-7)
  assert np.abs(ours).max() > 0.01


def test_a_group_of_equal_scores_gives_no_gradient():
  alike = np.where(np.arange(B + 1)[:, None] == 0, np.float32(0.1), SCORE)
  out = every(batch=changed(score_BxG=alike))
  for name in ('grpo', 'grpo constant', 'rloo'):
    assert not out[name][2][0].any() and out[name][2][1].any()


def test_sppo_of_certain_wins_is_the_hard_one():
  wins = np.where(np.arange(G) == BATCH.selection.chosen_BxJ[:, :1], 1.0, 0.0).astype(np.float32)
  weight = (BATCH.selection.pair_weight_BxJ * [1, 0]).astype(np.float32)
  out = every(batch=changed(score_BxG=wins, pair_weight_BxJ=weight))
  np.testing.assert_allclose(2 * out['sppo'][0], out['sppo_hard'][0], rtol=1e-6)


def test_xpo_is_online_dpo_where_nothing_is_optimistic(values):
  own = every(batch=changed(source_BxG=np.zeros_like(SOURCE)))
  np.testing.assert_array_equal(own['XPO'][2], own['dpo'][2])
  alpha_0 = add([(1.0, 'dpo', made('dpo')), (0.0, 'optimism', made('optimism'))])
  np.testing.assert_allclose(evaluate(alpha_0)[2], values['dpo'][2], atol=1e-8)


def selected(select):
  zero = np.zeros(LOGPS.shape, np.float32)
  ids = RNG.integers(1, 99, LOGPS.shape).astype(np.int32)
  finished = np.ones((B + 1, G), bool)
  group = Group(BATCH.prompts, ids, LENGTH, finished, zero, zero, np.abs(SOURCE))
  return jax.device_get(select(jax.random.key(0), group, Judgement(SCORE)))


def test_rest_em_is_reinforce_with_a_binary_reward_and_no_baseline():
  """One on-policy step, up to a factor."""
  selection = selected(selects.top_k(k=G, above=0.25))
  grad = every(batch=changed(row_weight_BxG=selection.row_weight_BxG))['nll'][2]
  reinforce = -np.where(SCORE > 0.25, 1.0, 0.0)[:, :, None] * MASK
  np.testing.assert_allclose(grad / np.abs(grad).max(), reinforce, atol=1e-6)


def test_reward_weighted_regression_tends_to_best_of_n():
  """softmax(r / T) for T to 0; and at T = 1 the weights of the formula."""
  cold, best = (selected(make).row_weight_BxG for make in (selects.softmax(1e-3), selects.top_k(1)))
  np.testing.assert_allclose(cold, best, atol=1e-6)
  weights = np.exp(SCORE.astype(np.float64)) / np.exp(SCORE.astype(np.float64)).sum(1, keepdims=True)
  np.testing.assert_allclose(selected(selects.softmax()).row_weight_BxG, weights, rtol=1e-6)


def test_kto_reads_its_drift_off_completions_of_other_prompts():
  high = REF.copy()
  high[2, 2] = LOGPS[2, 2] - np.where(MASK[2, 2], 1.5, 0).astype(np.float32)  # of two tokens with log-probs
  for ref, drift in ((high, 3.0), (2 * LOGPS - high, 0.0)):  # never below 0
    _, metrics, grad = every(batch=changed(ref_logps_BxGxT=ref))['kto']
    np.testing.assert_allclose(metrics['kl'], drift, atol=1e-5)
    assert not grad[2, 2].any()


def test_nash_md_needs_an_opponent():
  """A group without one says nothing; it does not count as a loss of all games."""
  batch = changed(source_BxG=np.where(np.arange(B + 1)[:, None] == 0, 0, SOURCE))
  grad = every(batch=batch)['nash_md'][2]
  assert not grad[0].any() and grad[1].any()


# --- metrics and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', PAIRS, ids=lambda make: make.__name__)
def test_trl_metrics(values, make):
  loss, metrics = CASES[make.__name__][0], values[make.__name__][1]
  rows = []
  for b, j in PAIRED:
    members = pair_of(b, j)
    a = [total(LOGPS, b, g) for g in members]
    h = [x - loss.reference * total(REF, b, g) for x, g in zip(a, members)]
    n = [len(tokens(b, g)) if make.__name__ in ('simpo', 'orpo') else 1 for g in members]
    w, l = (BETAS[loss] * x / m for x, m in zip(h, n))
    rows.append([w, l, w - l, w > l, *a])
  names = ('rewards/chosen', 'rewards/rejected', 'rewards/margins', 'rewards/accuracies', 'logps/chosen')
  expected = dict(zip((*names, 'logps/rejected'), map(average, zip(*rows))))
  expected |= {'pairs': float(BATCH.selection.pair_weight_BxJ.sum()), 'loss': float(metrics['loss'])}
  assert {name: float(x) for name, x in metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_beta_zero_survives():
  value, metrics, grad = evaluate(made('dpo', beta=0.0))
  np.testing.assert_allclose(value, LN2, rtol=1e-7)
  assert not grad.any() and metrics['rewards/margins'] == 0


def test_the_tail_of_the_longer_completion_is_all_that_ld_dpo_changes():
  same = every(batch=changed(length_BxG=np.minimum(LENGTH, LENGTH.min(1, keepdims=True))))
  assert same['dpo ld'][0] == same['dpo'][0]


def test_nll_counts_the_tokens_it_learns_from(values):
  metrics = values['nll'][1]
  assert metrics['tokens'] == MASK[BATCH.selection.row_weight_BxG > 0].sum()


def test_a_row_without_a_predicted_token_does_not_pull_the_mean_down():
  row = np.array([[1] * G, [1] * G, [1] * G, [0] * G], np.float32)
  batch = changed(row_weight_BxG=row, length_BxG=np.where(np.arange(B + 1)[:, None] == 2, 1, LENGTH))
  without = changed(batch, row_weight_BxG=row * (np.arange(B + 1) != 2)[:, None].astype(np.float32))
  whole, part = every(batch=batch), every(batch=without)
  for name in ('nll', 'nll sequence'):
    np.testing.assert_allclose(whole[name][0], part[name][0], rtol=1e-6)


def test_nll_of_a_raw_text_needs_no_pairs():
  none = np.zeros((B + 1, 0), np.int32)
  selection = Selection(none, none, none.astype(np.float32), *(np.ones((B + 1, 1), np.float32),) * 2, none)
  text = dataclasses.replace(
    jax.tree.map(lambda x: x[:, :1] if x.ndim > 1 else x, BATCH), prompts=BATCH.prompts, selection=selection
  )
  both = add([(1.0, 'nll', made('nll')), (1.0, 'dpo', made('dpo'))])
  value, metrics, _ = evaluate(both, LOGPS[:, :1], text)
  np.testing.assert_allclose(value, -LOGPS[:, :1][MASK[:, :1]].mean(dtype=np.float64), rtol=1e-6)
  assert metrics['dpo/loss'] == 0


def test_add_merges_what_its_parts_say(values):
  metrics = values['MPO'][1]
  assert {'loss', 'dpo/loss', 'bco_pair/rewards/margins', 'nll/loss', 'nll/tokens'} <= set(metrics)
  both = add([(1.0, 'dpo', made('dpo', wpo=True)), (1.0, 'grpo', made('grpo')), (1.0, 'nll', made('nll'))])
  assert (both.statistics, both.reference, both.old) == (('log_sum_sq',), True, True)
  free = add([(1.0, 'nll', made('nll')), (1.0, 'simpo', made('simpo')), (1.0, 'grpo', made('grpo'))])
  assert (free.statistics, free.reference, dict(free.at_reference)) == ((), False, {})
  assert CASES['MPO'][0].at_reference['bco_pair/loss'] == made('bco_pair').at_reference['loss']
  assert not made('rloo', clip=0.1).reference and made('rloo', beta=0.1).reference


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: made('dpo', label_smoothing=0.6), 'dpo.label_smoothing=0.6'),
    (lambda: made('dpo', beta=-0.1), 'dpo.beta=-0.1'),
    (lambda: made('hinge', ld_alpha=1.5), 'hinge.ld_alpha=1.5'),
    (lambda: made('dpo', divergence='js_divergence'), "dpo.divergence='js_divergence'.*reverse_kl"),
    (lambda: made('robust', label_smoothing=0.5), 'robust.label_smoothing=0.5.*give less'),
    (lambda: made('exo_pair', label_smoothing=0.0), 'exo_pair.label_smoothing=0.0'),
    (lambda: made('ipo', beta=0.0), 'ipo.beta=0.0'),
    (lambda: made('sppo', beta=0.0), 'sppo.beta=0.0'),
    (lambda: made('sppo_hard', beta=0.0), 'sppo_hard.beta=0.0'),
    (lambda: made('discopop', tau=0.0), 'discopop.tau=0.0'),
    (lambda: made('kto', undesirable=-1.0), 'kto.undesirable=-1.0'),
    (lambda: made('grpo', scale='std'), "grpo.scale='std'.*group, batch, none"),
    (lambda: made('grpo', per='row'), "grpo.per='row'"),
    (lambda: made('grpo', clip_low=-0.1), 'grpo.clip_low=-0.1'),
    (lambda: made('rloo', clip=-0.1), 'rloo.clip=-0.1'),
    (lambda: made('nash_md', wins='win'), "nash_md.wins='win'"),
    (lambda: made('nll', rows='choosen'), "nll.rows='choosen'.*selected, chosen"),
    (lambda: made('nll', per='row'), "nll.per='row'"),
    (lambda: selects.softmax(0.0), 'select.temperature=0.0'),
    (lambda: add([]), 'one or more'),
    (lambda: add([(1, 'nll', made('nll')), (2, 'nll', made('nll'))]), 'each once'),
  ],
)
def test_user_errors(build, message):
  with pytest.raises(UserError, match=message):
    build()


@pytest.mark.parametrize(
  ('name', 'keys'), [('aot', {'wpo': True}), ('rebel', {'label_smoothing': 0.1}), ('simpo', {'divergence': 'js'})]
)
def test_a_modifier_that_makes_no_sense_is_no_key(name, keys):
  with pytest.raises(TypeError, match=next(iter(keys))):
    TABLE[name](**keys)
