"""Selects: from scores to what an update learns from. All are pure, keep static shapes and put weight 0 on the rest.

A member is *valid* when its score is finite, it has tokens and it is its own prompt's (source above -2). Pairs of equal
score, and of identical completions, carry no preference and weigh 0, unless `all_pairs` is told to keep them. Members
in `members_BxM` are distinct.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from past_jax.types import Group, Judgement, Metrics, Select, Selection, UserError


def pick(x_BxG, index_BxJ):
  return jnp.take_along_axis(x_BxG, index_BxJ, axis=1)


def valid_members(group: Group, score_BxG):
  return jnp.isfinite(score_BxG) & own_members(group)


def own_members(group: Group):
  return (group.length_BxG > 0) & (group.source_BxG > -2)


def identical(group: Group, i_BxJ, j_BxJ):
  """bool_BxJ: members i and j have the same tokens."""
  rows = lambda index: jnp.take_along_axis(group.ids_BxGxT, index[:, :, None], axis=1)
  length = pick(group.length_BxG, i_BxJ)
  beyond = jnp.arange(group.ids_BxGxT.shape[2])[None, None] >= length[:, :, None]
  return (length == pick(group.length_BxG, j_BxJ)) & (beyond | (rows(i_BxJ) == rows(j_BxJ))).all(-1)


def _best(value_BxG, banned_BxG):
  """int32_Bx1: where the value is largest, `banned` members out of the question."""
  return jnp.argmax(jnp.where(banned_BxG, -jnp.inf, value_BxG), axis=1, keepdims=True).astype(jnp.int32)


def _one_hot(index_Bx1, G):
  return jnp.arange(G)[None] == index_Bx1


def bradley_terry(score_BxG, valid_BxG):
  """float32_BxG: mean over a group's valid members j, itself included, of s(r - r_j): the chance of beating one."""
  beats = jnp.where(valid_BxG[:, None, :], jax.nn.sigmoid(score_BxG[:, :, None] - score_BxG[:, None, :]), 0.0)
  return jnp.where(valid_BxG, beats.sum(-1) / jnp.maximum(valid_BxG.sum(1, keepdims=True), 1), 0.0)


def best_vs(
  other: Literal['random', 'worst'] = 'random',
  nll: Literal['chosen', 'none'] = 'chosen',
  score: Literal['judge', 'win'] = 'judge',
) -> Select:
  """One pair per prompt: the best member against a random one of the other valid ones (arXiv 2310.16944), or the worst.

  The best has row weight 1 (`nll='chosen'`), also where no pair can be formed. Of equal best scores the first counts.

  Args:
    score: what losses read: the judge's scores, or the chance of beating a member of the group (`bradley_terry`), which
      `sppo` learns.

  Raises:
    UserError: an unknown `other`, `nll` or `score`.
  """
  _choice('other', other, ('random', 'worst'))
  _choice('nll', nll, ('chosen', 'none'))
  _choice('score', score, ('judge', 'win'))
  least = jnp.finfo(jnp.float32).min  # below every valid member, above a banned one

  def select(key, group: Group, judgement: Judgement) -> Selection:
    B, G = group.length_BxG.shape
    valid = valid_members(group, judgement.score_BxG)
    raw = jnp.where(valid, judgement.score_BxG, 0.0)
    chosen = _best(jnp.where(valid, raw, least), jnp.zeros_like(valid))
    lot = jax.random.uniform(key, (B, G)) if other == 'random' else -raw
    rejected = _best(jnp.where(valid, lot, least), _one_hot(chosen, G))
    weight = pick(valid, chosen) & pick(valid, rejected) & (pick(raw, chosen) > pick(raw, rejected))
    weight &= ~identical(group, chosen, rejected)
    row = _one_hot(chosen, G) & valid if nll == 'chosen' else jnp.zeros_like(valid)
    return Selection(
      chosen_BxJ=chosen,
      rejected_BxJ=rejected,
      pair_weight_BxJ=weight.astype(jnp.float32),
      row_weight_BxG=row.astype(jnp.float32),
      score_BxG=raw if score == 'judge' else bradley_terry(raw, valid),
      members_BxM=jnp.concatenate([chosen, rejected], axis=1)[:, : min(G, 2)],
    )

  return select


def all_pairs(
  margin: float = 0.0,
  normalise: bool = False,
  nll: Literal['chosen', 'none'] = 'chosen',
  ties: Literal['drop', 'keep'] = 'drop',
) -> Select:
  """All J = G(G-1)/2 pairs of a group, the higher score chosen; weight 1 where the scores differ by more than `margin`.

  Args:
    margin: in the judge's unit, at least 0.
    normalise: a prompt's pair weights sum to 1 (if it has any): prompts count the same however many pairs differ.
    nll: as in `best_vs`: the best member has row weight 1, or none has.
    ties: `keep`: every pair of valid members has weight 1, for losses that learn the difference of two scores: 0 says
      as much as any other.

  Raises:
    UserError: a negative margin, under which ties would count as preferences; a margin with ties kept.
  """
  _choice('nll', nll, ('chosen', 'none'))
  _choice('ties', ties, ('drop', 'keep'))
  if ties == 'keep' and margin:
    raise UserError(f"select.margin={margin} drops the pairs that ties='keep' keeps: leave one of them out.")
  if not margin >= 0:
    raise UserError(f'select.margin={margin}: give a number of at least 0.')

  def select(key, group: Group, judgement: Judgement) -> Selection:
    del key
    B, G = group.length_BxG.shape
    valid = valid_members(group, judgement.score_BxG)
    score = jnp.where(valid, judgement.score_BxG, 0.0)
    i, j = (jnp.broadcast_to(jnp.asarray(x, jnp.int32)[None], (B, len(x))) for x in np.triu_indices(G, 1))
    first = pick(score, i) >= pick(score, j)
    chosen, rejected = jnp.where(first, i, j), jnp.where(first, j, i)
    weight = pick(valid, i) & pick(valid, j)
    if ties == 'drop':
      weight &= (pick(score, chosen) - pick(score, rejected) > margin) & ~identical(group, i, j)
    weight = weight.astype(jnp.float32)
    if normalise:
      weight /= jnp.maximum(weight.sum(1, keepdims=True), 1.0)
    best = _best(score, ~valid)
    row = _one_hot(best, G) & valid if nll == 'chosen' else jnp.zeros_like(valid)
    return Selection(
      chosen_BxJ=chosen,
      rejected_BxJ=rejected,
      pair_weight_BxJ=weight,
      row_weight_BxG=row.astype(jnp.float32),
      score_BxG=score,
      members_BxM=jnp.broadcast_to(jnp.arange(G, dtype=jnp.int32)[None], (B, G)),
    )

  return select


def top_k(k: int = 1, above: float = -math.inf) -> Select:
  """Row weight 1 for the k best valid members with a score over `above` (ReST-EM, best-of-N); no pairs.

  Raises:
    UserError: k below 1.
  """
  if k < 1:
    raise UserError(f'select.k={k}: give at least 1.')

  def select(key, group: Group, judgement: Judgement) -> Selection:
    del key
    valid = valid_members(group, judgement.score_BxG)
    score = jnp.where(valid, judgement.score_BxG, 0.0)
    order = jnp.argsort(jnp.where(valid, -score, jnp.inf), axis=1, stable=True).astype(jnp.int32)[:, :k]
    among = (order[:, :, None] == jnp.arange(score.shape[1])[None, None]).any(1)
    return _rows_only(score, valid & among & (score > above), order)

  return select


def everything() -> Select:
  """Row weight 1 for every valid member; no pairs."""

  def select(key, group: Group, judgement: Judgement) -> Selection:
    del key
    valid = valid_members(group, judgement.score_BxG)
    members = jnp.broadcast_to(jnp.arange(valid.shape[1], dtype=jnp.int32)[None], valid.shape)
    return _rows_only(jnp.where(valid, judgement.score_BxG, 0.0), valid, members)

  return select


def distinct(max_overlap: float = 0.8, ngram: int = 3, above: float = -math.inf) -> Select:
  """Row weight 1 for valid members with a score over `above`, but one of those that say nearly the same; no pairs.

  Of the round's kept members, in order, each is dropped that shares more than `max_overlap` of its distinct n-grams of
  ids with an earlier one of any prompt: the Jaccard index, |a and b| / |a or b|. N-grams are told apart by a hash of
  12 bits: two completions of 40 tokens that share nothing overlap by less than 0.01.

  Raises:
    UserError: a share outside [0, 1], or an ngram below 1.
  """
  if not 0 <= max_overlap <= 1:
    raise UserError(f'select.max_overlap={max_overlap}: give a share from 0 to 1 (1: only the same is dropped).')
  if ngram < 1:
    raise UserError(f'select.ngram={ngram}: give at least 1.')

  def select(key, group: Group, judgement: Judgement) -> Selection:
    del key
    valid = valid_members(group, judgement.score_BxG)
    score = jnp.where(valid, judgement.score_BxG, 0.0)
    own_NxT = own_ids(group)
    near_NxN = overlaps(own_NxT, ngram) > max_overlap

    def look(i, kept_N):
      same = near_NxN[i] | (own_NxT == own_NxT[i][None]).all(-1)
      earlier = jnp.arange(len(kept_N)) < i
      return kept_N.at[i].set(kept_N[i] & ~(same & kept_N & earlier).any())

    kept_N = (valid & (score > above)).reshape(-1)
    kept = jax.lax.fori_loop(0, len(kept_N), look, kept_N).reshape(valid.shape)
    members = jnp.broadcast_to(jnp.arange(valid.shape[1], dtype=jnp.int32)[None], valid.shape)
    return _rows_only(score, kept, members)

  return select


def own_ids(group: Group):
  """int32_NxT of all N = B * G members; -1 beyond their length."""
  T = group.ids_BxGxT.shape[2]
  own = jnp.where(jnp.arange(T)[None, None] < group.length_BxG[..., None], group.ids_BxGxT, -1)
  return own.reshape(-1, T)


def overlaps(own_NxT, n: int, bins: int = 4096):
  """float32_NxN: the Jaccard index of two members' sets of n-grams; one with fewer tokens is a single n-gram."""
  N, T = own_NxT.shape
  length_N = (own_NxT >= 0).sum(1)
  own = jnp.pad((own_NxT + 1).astype(jnp.uint32), ((0, 0), (0, n)))
  hashed = jnp.zeros((N, T), jnp.uint32)
  for i in range(n):  # Knuth's multiplicative hash, a step per token
    hashed = (hashed ^ own[:, i : i + T]) * jnp.uint32(2654435761)
    hashed ^= hashed >> 15
  starts = jnp.arange(T)[None] < jnp.maximum(length_N - n + 1, jnp.minimum(length_N, 1))[:, None]
  bin_NxT = jnp.where(starts, (hashed % bins).astype(jnp.int32), bins)
  has = jnp.zeros((N, bins + 1)).at[jnp.arange(N)[:, None], bin_NxT].set(1.0)[:, :bins]
  both, size = has @ has.T, has.sum(1)
  return both / jnp.maximum(size[:, None] + size[None] - both, 1.0)


def softmax(temperature: float = 1.0) -> Select:
  """Row weights softmax(score / temperature) over a group's valid members: reward-weighted regression; no pairs.

  Raises:
    UserError: a temperature that is not above 0.
  """
  if not temperature > 0:
    raise UserError(f'select.temperature={temperature}: give a number above 0; the limit 0 is top_k.')

  def select(key, group: Group, judgement: Judgement) -> Selection:
    del key
    valid = valid_members(group, judgement.score_BxG)
    score = jnp.where(valid, judgement.score_BxG, 0.0)
    row = jax.nn.softmax(score / temperature, axis=1, where=valid)
    members = jnp.broadcast_to(jnp.arange(valid.shape[1], dtype=jnp.int32)[None], valid.shape)
    return _rows_only(score, jnp.where(valid, row, 0.0), members)

  return select


def _rows_only(score_BxG, row_BxG, members_BxM) -> Selection:
  none = jnp.zeros((score_BxG.shape[0], 0), jnp.int32)
  return Selection(none, none, none.astype(jnp.float32), row_BxG.astype(jnp.float32), score_BxG, members_BxM)


def _choice(name, value, options):
  if value not in options:
    raise UserError(f'select.{name}={value!r}: choose one of {", ".join(options)}.')


def summary(group: Group, selection: Selection, judgement: Judgement) -> Metrics:
  """What a round's selection looked like; a share of nothing is 0.

  study/chosen_from_policy  of the members learned from (by row weight, or chosen in a weighted pair), share that was
                            sampled from a model, the others being given
  study/ties                of the selection's pairs, share of two valid, different completions with equal scores
  study/identical           of the selection's pairs, share of two valid members with the same tokens
  study/truncated, finished of the members that have tokens, share not ended and ended by an end token
  study/abstained           of the members that have tokens, share without a finite score
  study/unpaired            how many prompts have members with tokens and no pair of any weight: empty, identical, tied
  judge/noise               of the variance of scores within groups, the share that is chance, judges' seeds
  judge/score_mean, judge/NAME_mean  mean over finite scores, and over finite values of the judgement's info
  """
  chosen, rejected, weight = selection.chosen_BxJ, selection.rejected_BxJ, selection.pair_weight_BxJ
  present = own_members(group)
  valid = valid_members(group, judgement.score_BxG)
  members = jnp.arange(present.shape[1])[None, None]
  paired = ((chosen[:, :, None] == members) & (weight > 0)[:, :, None]).any(1)
  learned = (selection.row_weight_BxG > 0) | paired
  comparable = pick(valid, chosen) & pick(valid, rejected) & (chosen != rejected)
  same = comparable & identical(group, chosen, rejected)
  equal = comparable & ~same & (pick(selection.score_BxG, chosen) == pick(selection.score_BxG, rejected))

  def mean(x, where):
    total = jnp.where(where, x, 0).astype(jnp.float32).sum()
    return total / jnp.maximum(where.sum(), 1)

  finite_mean = lambda x: mean(x, jnp.isfinite(x))
  all_pairs_of = jnp.ones(chosen.shape, bool)
  return {
    'study/chosen_from_policy': mean(group.source_BxG >= 0, learned),
    'study/ties': mean(equal, all_pairs_of),
    'study/identical': mean(same, all_pairs_of),
    'study/truncated': mean(~group.finished_BxG, present),
    'study/finished': mean(group.finished_BxG, present),
    'study/abstained': mean(~valid, present),
    'study/unpaired': (present.any(1) & ~(weight > 0).any(1)).sum() if weight.shape[1] else jnp.float32(0),
    'judge/score_mean': finite_mean(judgement.score_BxG),
    **({} if judgement.var_BxG is None else {'judge/noise': noise(judgement, valid)}),
    **{f'judge/{name}_mean': finite_mean(x) for name, x in judgement.info.items()},
  }


def noise(judgement: Judgement, valid_BxG):
  """Mean variance over seeds, of the variance between the valid members of a group, pooled over groups; 0 if none."""
  count_B = valid_BxG.sum(1)
  score_BxG = jnp.where(valid_BxG, judgement.score_BxG, 0.0)
  mean_Bx1 = (score_BxG.sum(1) / jnp.maximum(count_B, 1))[:, None]
  between = jnp.where(valid_BxG, (score_BxG - mean_Bx1) ** 2, 0.0).sum() / jnp.maximum((count_B - 1).clip(0).sum(), 1)
  within = jnp.where(valid_BxG, judgement.var_BxG, 0.0).sum() / jnp.maximum(valid_BxG.sum(), 1)
  return jnp.where(between > 0, within / jnp.where(between > 0, between, 1.0), 0.0)


TABLE = {
  'best_vs': best_vs,
  'all_pairs': all_pairs,
  'top_k': top_k,
  'everything': everything,
  'distinct': distinct,
  'softmax': softmax,
}
