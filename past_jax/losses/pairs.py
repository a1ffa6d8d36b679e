"""Losses of pairs. A formula sees the two completions of every pair; `pair_loss` does the rest, once for all of them.

In docstrings h_w and h_l are the log-ratios log p(y) - log ref(y) of the chosen and the rejected completion, summed
over their n_w and n_l tokens, D = h_w - h_l, s the logistic function. A loss is the mean over pairs, by their weights.

Beside its own keys every loss of pairs takes the modifiers that make sense for it:

  label_smoothing   mean over labels of which this share, at most 1/2, is wrong: (1 - eps) * f(w, l) + eps * f(l, w).
                    With `dpo` it is cDPO, which TRL's `sigmoid` ignores since 1.0. The NLL of `cpo` and `orpo` stays.
  ld_alpha          LD-DPO (2409.06411): tokens beyond the shorter completion's length count ld_alpha. As in TRL since
                    1.0, policy and reference alike.
  divergence        f-DPO (2309.16240): h becomes f'(ratio), shifted so that it is 0 at the reference. TRL does so for
                    losses of D only.
  wpo               WPO (2406.11827 eq. 2): a pair's loss times its two completions' exp(mean_t(log p(y_t) -
                    log sum_v p(v)^2)), without gradient. Not clamped at 1, as in TRL since 1.0.

Rewards (TRL's metrics) are beta * h, whatever the divergence.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from past_jax.losses.common import CAP, at_least_0, choice, log_ratios, masked, mean, positive, reward_bounds
from past_jax.types import Array, Batch, Loss, UserError

log_sigmoid, sigmoid = jax.nn.log_sigmoid, jax.nn.sigmoid
LN2 = math.log(2)
DIVERGENCES = ('reverse_kl', 'forward_kl', 'js', 'alpha')


class Pair(NamedTuple):
  """Every pair's chosen (w) and rejected (l) completion, all [B, J] in float32; pairs of weight 0 are all zeros."""

  h_w: Array  # log-ratio to the reference, summed over tokens; without a reference the log-prob itself
  h_l: Array
  logp_w: Array
  logp_l: Array
  n_w: Array  # tokens, at least 1
  n_l: Array
  score_w: Array  # the judge's
  score_l: Array
  keep: Array  # bool: has weight

  @property
  def delta(self):
    return self.h_w - self.h_l

  @property
  def mean_delta(self):
    return self.h_w / self.n_w - self.h_l / self.n_l

  def swapped(self) -> 'Pair':
    h, logp, n, score = ((self[i + 1], self[i]) for i in range(0, 8, 2))
    return Pair(*h, *logp, *n, *score, self.keep)


class Formula(NamedTuple):
  value: Callable[[Pair], Array]  # -> [B, J]
  at: float | None = None  # its value where h_w = h_l = 0; None: depends on the data
  slope: float = 0.0  # there, |d / d h_w| + |d / d h_l|
  imitate: Callable[[Pair], Array] | None = None  # a term of the chosen one alone, which no label_smoothing turns round


def modifiers(
  label_smoothing: float = 0.0,
  ld_alpha: float = 1.0,
  divergence: Literal['reverse_kl', 'forward_kl', 'js', 'alpha'] = 'reverse_kl',
  divergence_alpha: float = 0.5,
  wpo: bool = False,
):
  """The keys that `pair_loss` adds to a formula's own."""


def pair_loss(without: Sequence[str] = (), *, reference: bool = True, per_token: bool = False, needs: str = 'pairs'):
  """Decorator: (own keys) -> Formula becomes (own keys, modifiers but for `without`) -> Loss.

  Args:
    reference: False: h is the log-prob itself, and no reference is ever computed.
    per_token: rewards are of means over tokens.
    needs: of `Loss`.
  """

  def decorate(make: Callable[..., Formula]) -> Callable[..., Loss]:
    name, own, added = make.__name__, inspect.signature(make).parameters, inspect.signature(modifiers).parameters
    gone = {*without, *own, *(() if reference else ('divergence',))}
    gone |= {'divergence_alpha'} if 'divergence' in gone else set()
    parameters = [*own.values(), *(p for p in added.values() if p.name not in gone)]
    signature = inspect.Signature(parameters, return_annotation=Loss)

    @functools.wraps(make)
    def build(*args, **keys) -> Loss:
      bound = signature.bind(*args, **keys)
      bound.apply_defaults()
      given = bound.arguments
      at_least_0(f'{name}.beta', given['beta'])
      if not 0 <= given.get('label_smoothing', 0.0) <= 0.5:
        share = given['label_smoothing']
        raise UserError(f'{name}.label_smoothing={share}: the share of wrong labels is between 0 and 0.5.')
      formula = make(**{key: value for key, value in given.items() if key in own})
      modified = {key: p.default for key, p in added.items()}
      modified |= {key: value for key, value in given.items() if key in added and key not in own}
      return framed(name, formula, given['beta'], reference=reference, per_token=per_token, needs=needs, **modified)

    build.__signature__ = signature
    return build

  return decorate


def framed(
  name, formula, beta, *, reference, per_token, needs, label_smoothing, ld_alpha, divergence, divergence_alpha, wpo
) -> Loss:
  """The frame of every loss of pairs. Arguments: those of `pair_loss` and `modifiers`."""
  choice(f'{name}.divergence', divergence, DIVERGENCES)
  if not 0 <= ld_alpha <= 1:
    raise UserError(f"{name}.ld_alpha={ld_alpha}: the weight of the longer completion's rest is between 0 and 1.")

  def score(h):
    """f'(exp h) - f'(1) of the divergence."""
    if divergence == 'forward_kl':
      return 1 - jnp.exp(jnp.minimum(-h, CAP))
    if divergence == 'js':
      return LN2 + log_sigmoid(h)
    if divergence == 'alpha' and divergence_alpha != 1:
      return jnp.expm1(jnp.minimum((divergence_alpha - 1) * h, CAP)) / (divergence_alpha - 1)
    return h

  def value(outputs, batch: Batch):
    s = batch.selection
    logps, mask = masked(outputs['logps_BxGxT'], batch)
    ratio = log_ratios(logps, batch.ref_logps_BxGxT, batch) if reference else logps
    keep = s.pair_weight_BxJ > 0
    sides = (s.chosen_BxJ, s.rejected_BxJ)
    # Before any formula: a NaN of a pair without weight would come back through the formula's own derivative.
    clean = lambda x: jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - 2)), x, jnp.zeros_like(x))
    tokens = lambda x, index: clean(jnp.take_along_axis(x, index[:, :, None], axis=1))
    masks = [tokens(mask, index) for index in sides]
    counts = [m.sum(-1) for m in masks]
    shared = jnp.minimum(*counts)[:, :, None]
    weights = [jnp.where(jnp.cumsum(m, -1) <= shared, 1.0, ld_alpha) for m in masks]
    total = lambda x: [(tokens(x, index) * w).sum(-1) for index, w in zip(sides, weights)]
    h, logp = total(ratio), total(logps)
    n = [jnp.maximum(count, 1).astype(jnp.float32) for count in counts]
    scores = [clean(jnp.take_along_axis(s.score_BxG, index, axis=1)) for index in sides]
    pair = Pair(*map(score, h), *logp, *n, *scores, keep)
    losses = formula.value(pair)
    if label_smoothing:
      losses = (1 - label_smoothing) * losses + label_smoothing * formula.value(pair.swapped())
    if formula.imitate:
      losses += formula.imitate(pair)
    if wpo:
      gap = jax.lax.stop_gradient(logps - masked(outputs['log_sum_sq_BxGxT'], batch)[0])
      losses *= jnp.exp(sum(tokens(gap, index).sum(-1) / count for index, count in zip(sides, n)))
    by_weight = lambda x: mean(x, s.pair_weight_BxJ)
    loss = by_weight(losses)
    chosen, rejected = (beta * (x / count if per_token else x) for x, count in zip(h, n))
    return loss, {
      'loss': loss,
      'pairs': s.pair_weight_BxJ.sum(),
      'rewards/chosen': by_weight(chosen),
      'rewards/rejected': by_weight(rejected),
      'rewards/margins': by_weight(chosen - rejected),
      'rewards/accuracies': by_weight((chosen > rejected).astype(jnp.float32)),
      'logps/chosen': by_weight(logp[0]),
      'logps/rejected': by_weight(logp[1]),
    }

  fixed = formula.at is not None and not wpo
  at = ({'loss': (formula.at, formula.slope)} if fixed else {}) | reward_bounds(beta)
  return Loss(
    value,
    statistics=('log_sum_sq',) if wpo else (),
    reference=reference,
    needs=needs,
    at_reference=at if reference else {},
  )


# --- of D ---------------------------------------------------------------------------------------------------------


@pair_loss()
def dpo(beta: float = 0.1):
  """-log s(beta * D): direct preference optimisation, 2305.18290 eq. 7 (TRL: sigmoid)."""
  return Formula(lambda p: -log_sigmoid(beta * p.delta), LN2, beta)


@pair_loss()
def robust(beta: float = 0.1, label_smoothing: float = 0.1):
  """(-(1 - eps) * log s(beta * D) + eps * log s(-beta * D)) / (1 - 2 * eps): unbiased under noisy labels, 2403.00409.

  Raises:
    UserError: label_smoothing of 1/2, under which labels say nothing.
  """
  if label_smoothing == 0.5:
    raise UserError('robust.label_smoothing=0.5: half of the labels wrong leaves nothing to learn; give less.')
  clean = lambda x: (1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)
  return Formula(lambda p: -clean(beta * p.delta) / (1 - 2 * label_smoothing), LN2, beta / (1 - 2 * label_smoothing))


@pair_loss()
def hinge(beta: float = 0.1):
  """max(0, 1 - beta * D): RSO, 2309.06657, after SLiC; 1 / beta is the margin."""
  return Formula(lambda p: jax.nn.relu(1 - beta * p.delta), 1.0, 2 * beta)


@pair_loss()
def ipo(beta: float = 0.1, normalise: bool = True):
  """(h_w / n_w - h_l / n_l - 1 / (2 * beta))^2: identity preference optimisation, 2310.12036 eq. 17, beta its tau.

  Means over tokens, as its authors told TRL; `normalise` off: sums, as printed.
  """
  positive('ipo.beta', beta)
  delta = lambda p: p.mean_delta if normalise else p.delta
  return Formula(lambda p: (delta(p) - 0.5 / beta) ** 2, 0.25 / beta**2, 2 / beta)


@pair_loss()
def sigmoid_norm(beta: float = 2.0):
  """-log s(beta * (h_w / n_w - h_l / n_l)): length-normalised DPO, Tulu 3, 2411.15124."""
  return Formula(lambda p: -log_sigmoid(beta * p.mean_delta), LN2, beta)


@pair_loss()
def exo_pair(beta: float = 0.1, label_smoothing: float = 1e-3):
  """KL((q, 1 - q) || (1 - eps, eps)) with q = s(beta * D): EXO, 2402.00856 eq. 16.

  Raises:
    UserError: label_smoothing of 0, under which it is infinite.
  """
  positive('exo_pair.label_smoothing', label_smoothing)
  eps = label_smoothing

  def value(p):
    x = beta * p.delta
    return sigmoid(x) * (log_sigmoid(x) - math.log1p(-eps)) + sigmoid(-x) * (log_sigmoid(-x) - math.log(eps))

  return Formula(value, -LN2 - 0.5 * (math.log1p(-eps) + math.log(eps)), beta / 2 * math.log((1 - eps) / eps))


@pair_loss()
def discopop(beta: float = 0.05, tau: float = 0.05):
  """(1 - m) * -log s(r) + m * exp(-r), r = beta * D, m = s(r / tau): DiscoPOP, 2406.08414 eq. 5."""
  positive('discopop.tau', tau)

  def value(p):
    r = beta * p.delta
    exponential = jnp.exp(jnp.minimum(log_sigmoid(r / tau) - r, CAP))  # m * exp(-r) without the infinite factor
    return exponential - sigmoid(-r / tau) * log_sigmoid(r)

  return Formula(value, 0.5 * (LN2 + 1), 2 * beta * abs((1 - LN2) / (4 * tau) - 0.75))


@pair_loss(without=('label_smoothing',), needs='differences')
def rebel(beta: float = 1.0):
  """(beta * D - (r_w - r_l))^2 with the judge's scores r: REBEL, 2404.16767 algorithm 1, beta its 1 / eta.

  With r the log-prob under the base, which is the reference too, the optimum is base^(1 + 1 / beta): 2412.01951.
  """
  return Formula(lambda p: (beta * p.delta - (p.score_w - p.score_l)) ** 2)


# --- of h_w and h_l -----------------------------------------------------------------------------------------------


@pair_loss()
def nca_pair(beta: float = 0.01):
  """-log s(beta h_w) - log s(-beta h_w) / 2 - log s(-beta h_l) / 2: noise contrastive alignment, 2402.05369."""

  def value(p):
    w, l = beta * p.h_w, beta * p.h_l
    return -log_sigmoid(w) - 0.5 * (log_sigmoid(-w) + log_sigmoid(-l))

  return Formula(value, 2 * LN2, beta / 2)


@pair_loss()
def bco_pair(beta: float = 0.1, shift: bool = False):
  """-log s(beta * h_w - d) - log s(d - beta * h_l): binary classifier optimisation, 2404.04656.

  Args:
    shift: d is the mean reward of the batch, without gradient, and not 0. The paper's and old TRL's was a running mean;
      TRL's is 0 since 1.0.
  """

  def value(p):
    rewards = jnp.where(p.keep, beta * (p.h_w + p.h_l) / 2, 0.0)
    d = jax.lax.stop_gradient(rewards.sum() / jnp.maximum(p.keep.sum(), 1)) if shift else 0.0
    return -log_sigmoid(beta * p.h_w - d) - log_sigmoid(d - beta * p.h_l)

  return Formula(value, 2 * LN2, 2 * beta)


@pair_loss()
def sppo_hard(beta: float = 1e-3):
  """(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2: twice `sppo` with win probabilities 1 and 0 (as TRL's)."""
  positive('sppo_hard.beta', beta)
  return Formula(lambda p: (p.h_w - 0.5 / beta) ** 2 + (p.h_l + 0.5 / beta) ** 2, 0.5 / beta**2, 2 / beta)


@pair_loss(without=('label_smoothing',), needs='wins')
def sppo(beta: float = 1e-3):
  """((h_w - (P_w - 1/2) / beta)^2 + (h_l - (P_l - 1/2) / beta)^2) / 2: self-play, 2405.00675 eq. 4.7, beta its 1 / eta.

  The scores are the probabilities P of beating a member of the group: of select `best_vs` with `score='win'`, or of the
  judge `preference`.
  """
  positive('sppo.beta', beta)
  square = lambda h, win: (h - (win - 0.5) / beta) ** 2
  return Formula(lambda p: 0.5 * (square(p.h_w, p.score_w) + square(p.h_l, p.score_l)))


@pair_loss()
def apo_zero(beta: float = 0.1):
  """1 - s(beta h_w) + s(beta h_l): anchored, for chosen ones better than the policy's own, 2408.06266 eq. 7."""
  return Formula(lambda p: sigmoid(-beta * p.h_w) + sigmoid(beta * p.h_l), 1.0, beta / 2)


@pair_loss()
def apo_down(beta: float = 0.1):
  """s(beta h_w) + 1 - s(beta D): anchored, for a policy better than the chosen ones, 2408.06266 eq. 8."""
  return Formula(lambda p: sigmoid(beta * p.h_w) + sigmoid(-beta * p.delta), 1.0, beta / 4)


# --- of all pairs together ----------------------------------------------------------------------------------------


def _sorted_gap(u_BxJ, v_BxJ, keep_BxJ):
  """(u_(i) - v_(i) of the separately sorted values of pairs with weight, [B * J], 0 beyond their number; which are)"""

  def ranked(x):
    x, keep = x.ravel(), keep_BxJ.ravel()
    return x[jnp.argsort(jnp.where(keep, x, jnp.inf))]  # zeros, at the end, for what has no weight

  return ranked(u_BxJ) - ranked(v_BxJ), jnp.arange(keep_BxJ.size) < keep_BxJ.sum()


def _transport(u_BxJ, v_BxJ, keep_BxJ, beta: float):
  gap, keep = _sorted_gap(u_BxJ, v_BxJ, keep_BxJ)
  return jnp.broadcast_to(mean(-log_sigmoid(beta * gap), keep.astype(jnp.float32)), u_BxJ.shape)


@pair_loss(without=('wpo', 'divergence'))
def aot(beta: float = 0.1):
  """-log s(beta * e_i), e_i = u_(i) - v_(i), u and v = log p(w) - log p(l) of policy and reference, each sorted over
  the batch's pairs: alignment by optimal transport, 2406.05882. Every pair of any weight counts the same.
  """

  def value(p):
    u = p.logp_w - p.logp_l
    return _transport(u, jax.lax.stop_gradient(u - p.delta), p.keep, beta)

  return Formula(value, LN2, beta)


@pair_loss(without=('wpo',))
def aot_unpaired(beta: float = 0.1):
  """`aot` of sorted h_w against sorted h_l (the `aot` of TRL before 1.0)."""
  return Formula(lambda p: _transport(p.h_w, p.h_l, p.keep, beta), LN2, beta)


# --- without a reference ------------------------------------------------------------------------------------------


@pair_loss(reference=False, per_token=True)
def simpo(beta: float = 2.5, gamma: float = 1.375):
  """-log s(beta * (log p(w) / n_w - log p(l) / n_l) - gamma): 2405.14734 eq. 6.

  Under label_smoothing a wrong label has its own margin; in TRL's, gamma changes sign with it.
  """
  return Formula(lambda p: -log_sigmoid(beta * p.mean_delta - gamma))


@pair_loss(reference=False)
def cpo(beta: float = 0.1, nll: float = 1.0):
  """-log s(beta * (log p(w) - log p(l))) - nll * log p(w) / n_w: contrastive preference optimisation, 2401.08417 eq. 3.

  TRL's second term is a mean over all chosen tokens: `nll` 0 and the loss `nll` of rows `chosen` beside it.
  """
  return Formula(lambda p: -log_sigmoid(beta * p.delta), imitate=lambda p: -nll * p.logp_w / p.n_w)


@pair_loss(reference=False, per_token=True)
def orpo(beta: float = 0.1, nll: float = 1.0):
  """-nll * a_w - beta * log s(o_w - o_l), o = a - log(1 - exp(a)), a = log p(y) / n: 2403.07691 eq. 6, beta its lambda.

  TRL's first term is a mean over all tokens, those of prompts included.
  """

  def odds(logp, n):
    a = jnp.minimum(logp / n, -1e-7)  # finite at probability 1, in value and gradient
    return a - jnp.log(-jnp.expm1(a))

  ratio = lambda p: odds(p.logp_w, p.n_w) - odds(p.logp_l, p.n_l)
  return Formula(lambda p: -beta * log_sigmoid(ratio(p)), imitate=lambda p: -nll * p.logp_w / p.n_w)
