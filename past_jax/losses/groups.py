"""Losses of whole groups, as select `everything` keeps them: members are compared by the judge's scores.

Members of row weight 0 have no part in means and deviations. rho is the ratio of the policy to the one that sampled
(`old`), which in a round of one update is the policy itself under `stop_gradient`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from past_jax.losses.common import CAP, at_least_0, choice, log_ratios, masked, mean, positive
from past_jax.types import Batch, Loss

EPS = 1e-4  # below the standard deviation, as in TRL


def _centred(score_BxG, valid_BxG):
  """(score - its mean over the group's valid members, 0 for the others; how many are valid, at least 1, [B, 1])"""
  count = jnp.maximum(valid_BxG.sum(1, keepdims=True), 1)
  score = jnp.where(valid_BxG, score_BxG, 0.0)
  apart = jnp.where(valid_BxG, score, -jnp.inf).max(1) > jnp.where(valid_BxG, score, jnp.inf).min(1)
  # All alike: 0 exactly, and not the rounding of a mean.
  return jnp.where(valid_BxG & apart[:, None], score - score.sum(1, keepdims=True) / count, 0.0), count


def _surrogate(log_rho, advantage, clip_low, clip_high):
  """(-min(rho * A, clip(rho) * A), where it is clipped)"""
  rho = jnp.exp(jnp.minimum(log_rho, CAP))
  clipped = jnp.clip(rho, 1 - clip_low, 1 + clip_high)
  return -jnp.minimum(rho * advantage, clipped * advantage), rho * advantage > clipped * advantage


def grpo(
  beta: float = 0.0,
  scale: Literal['group', 'batch', 'none'] = 'group',
  per: Literal['token', 'sequence', 'constant'] = 'token',
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  length: int = 256,
) -> Loss:
  """Group relative policy optimisation: 2402.03300 eq. 3-4, per token -min(rho * A, clip(rho) * A) + beta * k3.

  A = (r - mean r) / std r, k3 = u - log u - 1 with u = ref / p, differentiated.

  Args:
    beta: weight of the divergence from the reference; at 0 no reference is read.
    scale: A is divided by the sample standard deviation of the group, of all valid members of the batch, or not.
    per: `token`: mean over all tokens (DAPO, 2503.14476; TRL's default); `sequence`: over rows of each one's mean
      (GRPO); `constant`: rows' sums over `length` tokens (Dr. GRPO, 2503.20783, with scale `none`).
    clip_low, clip_high: rho is clipped to [1 - clip_low, 1 + clip_high].

  Raises:
    UserError: an unknown `scale` or `per`, a negative number, length 0.
  """
  choice('grpo.scale', scale, ('group', 'batch', 'none'))
  choice('grpo.per', per, ('token', 'sequence', 'constant'))
  for key, x in (('beta', beta), ('clip_low', clip_low), ('clip_high', clip_high)):
    at_least_0(f'grpo.{key}', x)
  positive('grpo.length', length)

  def value(outputs, batch: Batch):
    weight = batch.selection.row_weight_BxG
    valid = weight > 0
    advantage, count = _centred(batch.selection.score_BxG, valid)
    if scale == 'group':
      advantage /= jnp.sqrt((advantage**2).sum(1, keepdims=True) / jnp.maximum(count - 1, 1)) + EPS
    elif scale == 'batch':
      every, total = (x.ravel()[None] for x in (batch.selection.score_BxG, valid))
      apart, total = _centred(every, total)
      advantage /= jnp.sqrt((apart**2).sum() / jnp.maximum(total - 1, 1)) + EPS
    logps, mask = masked(outputs['logps_BxGxT'], batch)
    mask &= valid[:, :, None]
    kept = lambda x: jnp.where(mask, x, 0.0)  # before any exponential, so that no NaN comes back through it
    losses, clipped = _surrogate(
      kept(log_ratios(logps, batch.old_logps_BxGxT, batch)), advantage[:, :, None], clip_low, clip_high
    )
    tokens = mask.sum(-1).astype(jnp.float32)
    by_token = lambda x: mean(kept(x).sum(-1) / jnp.maximum(tokens, 1.0), weight * tokens)
    metrics = {'rows': weight.sum(), 'clip_ratio': by_token(clipped.astype(jnp.float32))}
    if beta:
      u = -kept(log_ratios(logps, batch.ref_logps_BxGxT, batch))
      k3 = jnp.exp(jnp.minimum(u, CAP)) - u - 1
      losses += beta * k3
      metrics['kl'] = by_token(k3)
    if per == 'constant':
      loss = mean(kept(losses).sum(-1) / length, weight)
    else:
      loss = mean(
        kept(losses).sum(-1) / jnp.maximum(tokens, 1.0), weight * tokens if per == 'token' else weight * (tokens > 0)
      )
    return loss, metrics | {'loss': loss}

  return Loss(value, reference=beta > 0, old=True, needs='group', at_reference={'kl': (0.0, 1.0)} if beta else {})


def rloo(beta: float = 0.0, clip: float = 0.0) -> Loss:
  """REINFORCE with the others of the group as baseline: 2402.14740, averaged over rows.

    -A * log p(y),  A_k = r_k - mean_{j != k} r_j,  r = score - beta * log(old / ref), summed over tokens, no gradient

  Args:
    clip: above 0, -min(rho * A, clip(rho) * A) with the ratio rho of whole completions, for several updates a round; at
      the policy that sampled, its gradient is the same.

  Raises:
    UserError: a negative key.
  """
  at_least_0('rloo.beta', beta)
  at_least_0('rloo.clip', clip)

  def value(outputs, batch: Batch):
    weight = batch.selection.row_weight_BxG
    valid = weight > 0
    kept = lambda x: jnp.where(valid, x.sum(-1), 0.0)
    logps, _ = masked(outputs['logps_BxGxT'], batch)
    ratio = log_ratios(logps, batch.old_logps_BxGxT, batch)
    reward, metrics = batch.selection.score_BxG, {'rows': weight.sum()}
    if beta:
      drift = log_ratios(logps, batch.ref_logps_BxGxT, batch)
      reward -= beta * jax.lax.stop_gradient(kept(drift - ratio))
      metrics['kl'] = mean(kept(drift), weight)
    apart, count = _centred(reward, valid)
    advantage = apart * count / jnp.maximum(count - 1, 1)
    if clip:
      losses, clipped = _surrogate(kept(ratio), advantage, clip, clip)
      metrics['clip_ratio'] = mean(clipped.astype(jnp.float32), weight)
    else:
      losses = -advantage * kept(logps)
    loss = mean(losses, weight)
    return loss, metrics | {'loss': loss}

  return Loss(
    value,
    reference=beta > 0,
    old=beta > 0 or clip > 0,
    needs='group',
    at_reference={'kl': (0.0, 1.0)} if beta else {},
  )


def nash_md(beta: float = 0.1, wins: Literal['scores', 'score'] = 'scores') -> Loss:
  """Nash mirror descent: 2312.00886 (Nash-MD-PG), over members of source 0 (the policy's), against those of source 1.

    -(P - 1/2) * log p(y) + beta * sum_t sg[log(p / ref)] * log p(y_t)

  Args:
    wins: P is the mean over the opponents (`generator.opponents`) of s(r - r'), or the member's score itself.

  Raises:
    UserError: an unknown `wins`, or a negative beta.
  """
  choice('nash_md.wins', wins, ('scores', 'score'))
  at_least_0('nash_md.beta', beta)

  def value(outputs, batch: Batch):
    s = batch.selection
    own = jnp.where(batch.source_BxG == 0, s.row_weight_BxG, 0.0)
    opponent = (batch.source_BxG == 1) & (s.row_weight_BxG > 0)
    score = jnp.where(s.row_weight_BxG > 0, s.score_BxG, 0.0)
    if wins == 'scores':
      count = jnp.maximum(opponent.sum(1, keepdims=True), 1)
      beats = jax.nn.sigmoid(score[:, :, None] - score[:, None, :])
      win = jnp.where(opponent[:, None, :], beats, 0.0).sum(-1) / count
      own = jnp.where(opponent.any(1, keepdims=True), own, 0.0)
    else:
      win = score
    kept = lambda x: jnp.where((own > 0)[:, :, None], x, 0.0)
    logps, _ = masked(outputs['logps_BxGxT'], batch)
    logps, drift = kept(logps), jax.lax.stop_gradient(kept(log_ratios(logps, batch.ref_logps_BxGxT, batch)))
    loss = mean((0.5 - win) * logps.sum(-1) + beta * (drift * logps).sum(-1), own)
    return loss, {'loss': loss, 'rows': own.sum(), 'kl': mean(drift.sum(-1), own), 'wins': mean(win, own)}

  sources = (0, 1) if wins == 'scores' else (0,)
  return Loss(value, needs='group', sources=sources, at_reference={'kl': (0.0, 1.0)})
