"""Every select keeps the contract: static shapes, no NaN, no weight on what must not be learned from.

A new select is one more line in SELECTS.
"""

import dataclasses

import jax
import numpy as np
import pytest

from past_jax.selects import TABLE, summary
from past_jax.types import Group, Judgement, Prompts, UserError

NAN = np.nan
KEY = jax.random.key(0)

SELECTS = {
  'best_vs': lambda: TABLE['best_vs'](),
  'best_vs worst': lambda: TABLE['best_vs'](other='worst', nll='none'),
  'all_pairs': lambda: TABLE['all_pairs'](),
  'all_pairs margin': lambda: TABLE['all_pairs'](margin=0.5, normalise=True, nll='none'),
  'top_k': lambda: TABLE['top_k'](),
  'top_k above': lambda: TABLE['top_k'](k=3, above=0.2),
  'top_k all': lambda: TABLE['top_k'](k=9),
  'everything': lambda: TABLE['everything'](),
  'distinct': lambda: TABLE['distinct'](),
  'distinct above': lambda: TABLE['distinct'](max_overlap=0.5, ngram=2, above=0.2),
  'softmax': lambda: TABLE['softmax'](temperature=0.5),
}
PAIRED = [name for name in SELECTS if name.split()[0] in ('best_vs', 'all_pairs')]


def make_group(ids, length=None, finished=None, source=None) -> Group:
  ids = np.asarray(ids, np.int32)
  length = np.full(ids.shape[:2], ids.shape[2]) if length is None else length
  zeros = np.zeros(ids.shape, np.float32)
  return Group(
    prompts=Prompts(np.zeros((len(ids), 2), np.int32), np.full(len(ids), 2, np.int32)),
    ids_BxGxT=ids,
    length_BxG=np.asarray(length, np.int32),
    finished_BxG=np.ones(ids.shape[:2], bool) if finished is None else np.asarray(finished),
    logps_BxGxT=zeros,
    behaviour_logps_BxGxT=zeros,
    source_BxG=np.zeros(ids.shape[:2], np.int32) if source is None else np.asarray(source, np.int32),
  )


def judged(scores, **kwargs) -> Judgement:
  return Judgement(np.asarray(scores, np.float32), **kwargs)


# Rows: distinct; a tie for the best; one abstains; one left; all abstain; all tie; members 0 and 1 identical and both
# best, with scores that noise made differ; an absent member (length 0) with the best score; infinite scores.
SCORES = np.array(
  [
    [0.1, 0.9, 0.5, 0.3],
    [0.7, 0.2, 0.7, 0.1],
    [NAN, 0.4, 0.8, 0.3],
    [NAN, NAN, 0.4, NAN],
    [NAN, NAN, NAN, NAN],
    [0.5, 0.5, 0.5, 0.5],
    [0.9, 0.8, NAN, NAN],
    [0.1, 0.2, 0.9, 0.4],
    [np.inf, 0.1, 0.3, -np.inf],
  ],
  np.float32,
)
IDS = np.arange(9 * 4 * 3).reshape(9, 4, 3) % 97
IDS[6, 1] = IDS[6, 0]
IDS[6, :2, 2] = [50, 51]  # beyond both lengths: padding does not make a difference
LENGTH = np.full((9, 4), 3)
LENGTH[6, :2] = 2
LENGTH[7, 2] = 0
GROUP, JUDGEMENT = make_group(IDS, LENGTH), judged(SCORES)
VALID = np.isfinite(SCORES) & (LENGTH > 0)


JITTED = {name: jax.jit(build()) for name, build in SELECTS.items()}


def run(name, key=KEY, group=GROUP, judgement=JUDGEMENT):
  return jax.device_get(JITTED[name](key, group, judgement))


def test_every_select_of_the_table_is_in_the_battery():
  assert {name.split()[0] for name in SELECTS} == set(TABLE)


@pytest.mark.parametrize('name', SELECTS)
def test_contract(name):
  s = run(name)
  B, G = SCORES.shape
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(s))
  assert s.chosen_BxJ.shape == s.rejected_BxJ.shape == s.pair_weight_BxJ.shape
  assert s.row_weight_BxG.shape == s.score_BxG.shape == (B, G)
  assert {x.dtype for x in (s.chosen_BxJ, s.rejected_BxJ, s.members_BxM)} == {np.dtype('int32')}
  assert {x.dtype for x in (s.pair_weight_BxJ, s.row_weight_BxG, s.score_BxG)} == {np.dtype('float32')}
  for index in (s.chosen_BxJ, s.rejected_BxJ, s.members_BxM):
    assert ((index >= 0) & (index < G)).all()
  np.testing.assert_array_equal(s.score_BxG, np.where(VALID, SCORES, 0))
  assert (s.row_weight_BxG[~VALID] == 0).all()
  for b in range(B):
    members = set(s.members_BxM[b].tolist())
    assert len(members) == s.members_BxM.shape[1]  # distinct: `collect` would count a double twice
    assert set(np.flatnonzero(s.row_weight_BxG[b])) <= members
    for chosen, rejected, weight in zip(s.chosen_BxJ[b], s.rejected_BxJ[b], s.pair_weight_BxJ[b]):
      if weight:
        assert weight > 0 and {chosen, rejected} <= members
        assert VALID[b, chosen] and VALID[b, rejected]
        assert SCORES[b, chosen] > SCORES[b, rejected]
        assert (b, {chosen, rejected}) != (6, {0, 1})


@pytest.mark.parametrize('name', SELECTS)
def test_eager_is_the_same_and_so_is_the_same_key(name):
  for a, b in zip(jax.tree.leaves(run(name)), jax.tree.leaves(SELECTS[name]()(KEY, GROUP, JUDGEMENT)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', SELECTS)
def test_padding_does_not_matter(name):
  beyond = np.arange(3)[None, None] >= LENGTH[:, :, None]
  ids = np.pad(np.where(beyond, 7, IDS), ((0, 0), (0, 0), (0, 2)), constant_values=8)
  for a, b in zip(jax.tree.leaves(run(name)), jax.tree.leaves(run(name, group=make_group(ids, LENGTH))), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', PAIRED)
@pytest.mark.parametrize('case', ['tied', 'abstained', 'identical', 'absent'])
def test_no_pair_without_a_preference(name, case):
  score = {'tied': 0.5, 'abstained': NAN}.get(case, SCORES[[0]])
  group = make_group(
    np.ones((1, 4, 3)) if case == 'identical' else IDS[:1], np.zeros((1, 4)) if case == 'absent' else None
  )
  s = run(name, group=group, judgement=judged(np.full((1, 4), score)))
  assert not s.pair_weight_BxJ.any()


@pytest.mark.parametrize('name', SELECTS)
def test_a_group_of_one(name):
  s = run(name, group=make_group(np.ones((2, 1, 3))), judgement=judged([[0.5], [NAN]]))
  assert not s.pair_weight_BxJ.any()
  assert s.members_BxM.tolist() == [[0], [0]]
  expected = 0.0 if name in ('best_vs worst', 'all_pairs margin') else 1.0  # those with nll=none
  assert s.row_weight_BxG.tolist() == [[expected], [0.0]]


# --- known answers ------------------------------------------------------------------------------------------------


def test_best_vs_worst_takes_the_extremes():
  s = run('best_vs worst')
  assert s.chosen_BxJ[:, 0].tolist()[:4] == [1, 0, 2, 2]
  assert s.rejected_BxJ[:, 0].tolist()[:3] == [0, 3, 3]
  assert s.pair_weight_BxJ[:, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]
  assert s.chosen_BxJ[7:, 0].tolist() == [3, 2] and s.rejected_BxJ[7:, 0].tolist() == [0, 1]
  assert not s.row_weight_BxG.any()


def test_best_vs_weighs_the_chosen_also_where_there_is_no_pair():
  s = run('best_vs')
  expected = np.zeros((9, 4))
  expected[[0, 1, 2, 3, 5, 6, 7, 8], [1, 0, 2, 2, 0, 0, 3, 2]] = 1
  np.testing.assert_array_equal(s.row_weight_BxG, expected)


def test_scores_as_chances_of_winning():
  """s(r - r_j) over the group's valid members, itself included (the 1/2 of SPPO); the pair stays the judge's."""
  s = run('best_vs worst', judgement=judged(SCORES))
  win = jax.device_get(jax.jit(TABLE['best_vs'](other='worst', score='win'))(KEY, GROUP, JUDGEMENT))
  for b, g in np.ndindex(SCORES.shape):
    rivals = SCORES[b][VALID[b]].astype(np.float64)
    expected = (1 / (1 + np.exp(rivals - SCORES[b, g]))).mean() if VALID[b, g] else 0.0
    np.testing.assert_allclose(win.score_BxG[b, g], expected, rtol=1e-6)
  np.testing.assert_array_equal(win.chosen_BxJ, s.chosen_BxJ)
  np.testing.assert_array_equal(win.pair_weight_BxJ, s.pair_weight_BxJ)
  with pytest.raises(UserError, match="select.score='wins'"):
    TABLE['best_vs'](score='wins')


def test_softmax_weighs_the_valid_members():
  s = run('softmax')
  weight = np.where(VALID, np.exp(2.0 * np.where(VALID, SCORES, 0)), 0)
  np.testing.assert_allclose(s.row_weight_BxG, weight / np.maximum(weight.sum(1, keepdims=True), 1e-9), rtol=1e-5)


def test_the_random_opponent_is_uniform_over_the_other_valid_members():
  select, n = SELECTS['best_vs'](), 3000
  draw = jax.jit(jax.vmap(lambda key: select(key, GROUP, JUDGEMENT).rejected_BxJ[:, 0]))
  rejected = np.asarray(draw(jax.random.split(KEY, n)))
  for b, others in ((0, [0, 2, 3]), (2, [1, 3]), (8, [1])):
    count = np.bincount(rejected[:, b], minlength=4)
    assert count.sum() == n and set(np.flatnonzero(count)) == set(others)
    expected = n / len(others)
    assert ((count[others] - expected) ** 2 / expected).sum() < 13.8  # chi-squared, two degrees, p = 0.001
  # prompts draw apart: rows 0 and 1 would otherwise always agree
  assert 0.2 < (rejected[:, 0] == rejected[:, 1]).mean() < 0.5


def test_all_pairs_is_the_loop():
  for name, margin, normalise in (('all_pairs', 0.0, False), ('all_pairs margin', 0.5, True)):
    s = run(name)
    assert s.chosen_BxJ.shape == (9, 6)
    for b in range(9):
      expected = {}
      for i in range(4):
        for j in range(4):
          if VALID[b, i] and VALID[b, j] and SCORES[b, i] - SCORES[b, j] > margin and (b, i, j) != (6, 0, 1):
            expected[i, j] = 1.0
      scale = max(len(expected), 1) if normalise else 1
      weights = zip(s.chosen_BxJ[b].tolist(), s.rejected_BxJ[b].tolist(), s.pair_weight_BxJ[b].tolist())
      found = {(i, j): weight for i, j, weight in weights if weight}
      assert found == pytest.approx(dict.fromkeys(expected, 1 / scale))


def test_all_pairs_may_keep_ties():
  s = jax.device_get(jax.jit(TABLE['all_pairs'](ties='keep', nll='none'))(KEY, GROUP, JUDGEMENT))
  for b in range(9):
    weights = zip(s.chosen_BxJ[b].tolist(), s.rejected_BxJ[b].tolist(), s.pair_weight_BxJ[b].tolist())
    found = {frozenset((i, j)): weight for i, j, weight in weights if weight}
    assert found == {frozenset((i, j)): 1.0 for i in range(4) for j in range(i) if VALID[b, i] and VALID[b, j]}
  assert (SCORES[np.arange(9)[:, None], s.chosen_BxJ] >= SCORES[np.arange(9)[:, None], s.rejected_BxJ])[
    s.pair_weight_BxJ > 0
  ].all()


def test_top_k_and_everything():
  np.testing.assert_array_equal(run('everything').row_weight_BxG, VALID)
  assert run('everything').chosen_BxJ.shape == (9, 0)
  best = run('top_k').row_weight_BxG
  np.testing.assert_array_equal(best, run('best_vs').row_weight_BxG)  # best of n is the chosen
  above = run('top_k above')
  assert above.members_BxM.shape == (9, 3)
  assert above.row_weight_BxG[[0, 1, 7]].tolist() == [[0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]]
  np.testing.assert_array_equal(run('top_k all').row_weight_BxG, VALID)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: TABLE['best_vs'](other='wors'), "select.other='wors'.*random, worst"),
    (lambda: TABLE['best_vs'](nll='all'), "select.nll='all'"),
    (lambda: TABLE['all_pairs'](margin=-0.1), 'select.margin=-0.1'),
    (lambda: TABLE['all_pairs'](margin=NAN), 'select.margin=nan'),
    (lambda: TABLE['all_pairs'](margin=0.1, ties='keep'), "select.margin=0.1 drops the pairs that ties='keep' keeps"),
    (lambda: TABLE['all_pairs'](ties='kept'), "select.ties='kept'.*drop, keep"),
    (lambda: TABLE['top_k'](k=0), 'select.k=0'),
    (lambda: TABLE['distinct'](max_overlap=1.5), 'select.max_overlap=1.5'),
    (lambda: TABLE['distinct'](ngram=0), 'select.ngram=0'),
  ],
)
def test_user_errors(build, message):
  with pytest.raises(UserError, match=message):
    build()


# --- summary ------------------------------------------------------------------------------------------------------


def test_summary():
  group = make_group(
    np.stack([np.arange(12).reshape(4, 3), np.ones((4, 3)), np.arange(12).reshape(4, 3)]),
    length=[[3, 3, 3, 0], [2, 2, 2, 2], [3, 3, 3, 3]],
    finished=[[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]],
    source=[[0, -1, 0, -1], [0, 0, 0, 0], [0, 0, 0, 0]],
  )
  group = dataclasses.replace(group, finished_BxG=group.finished_BxG.astype(bool))
  gain = np.array([[1, 2, NAN, NAN], [3] * 4, [NAN] * 4], np.float32)
  judgement = judged([[0.2, 0.8, 0.2, NAN], [0.3, 0.4, 0.5, 0.6], [0.1, 0.1, NAN, NAN]], info={'gain': gain})
  select = TABLE['all_pairs']()
  metrics = jax.jit(lambda g, j: summary(g, select(KEY, g, j), j))(group, judgement)
  assert {name: float(x) for name, x in metrics.items()} == pytest.approx(
    {
      # learned from: 1 (given) in the first row, by pair and row weight; 3 in the second; 0 in the third, by row weight
      'study/chosen_from_policy': 2 / 3,
      'study/ties': 2 / 18,  # 0-2 in the first row, 0-1 in the third; those of the second are identical
      'study/identical': 6 / 18,
      'study/truncated': 3 / 11,
      'study/finished': 8 / 11,
      'study/abstained': 2 / 11,
      'study/unpaired': 2,  # the second row, whose members are identical, and the third, in which two tie
      'judge/score_mean': (0.2 + 0.8 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.1 + 0.1) / 9,
      'judge/gain_mean': (1 + 2 + 3 * 4) / 6,
    }
  )


@pytest.mark.parametrize('name', SELECTS)
def test_completions_of_another_prompt_weigh_nothing(name):
  group = make_group(np.arange(24).reshape(2, 4, 3), np.full((2, 4), 3), source=[[-1, -1, -2, -2]] * 2)
  s = JITTED[name](KEY, group, judged([[0.3, 0.9, 1.9, 1.8], [0.8, 0.25, 0.2, 0.6]]))
  assert np.asarray(s.row_weight_BxG)[:, 2:].tolist() == [[0, 0], [0, 0]]
  weighted = np.asarray(s.pair_weight_BxJ) > 0
  pairs = np.stack([s.chosen_BxJ, s.rejected_BxJ], -1)[weighted].tolist()
  assert pairs == ([[1, 0], [0, 1]] if name in PAIRED else [])


@pytest.mark.parametrize('name', SELECTS)
def test_a_summary_of_nothing_is_zero(name):
  judgement = judged(np.full((1, 2), NAN), info={'x': np.full((1, 2), NAN, np.float32)})
  group = make_group(np.ones((1, 2, 3)), np.zeros((1, 2)))
  metrics = jax.jit(lambda g, j: summary(g, JITTED[name](KEY, g, j), j))(group, judgement)
  assert all(float(x) == 0 for x in metrics.values())


def shingles(row, n):
  """The set of n-grams, by another road: Python's own tuples."""
  return {tuple(row[i : i + n]) for i in range(max(len(row) - n + 1, min(len(row), 1)))}


def test_of_those_that_say_nearly_the_same_the_first_is_kept():
  """Random completions, many of them changed copies of others, against sets of n-grams in Python."""
  rng = np.random.default_rng(5)
  B, G, T = 6, 4, 24
  ids = rng.integers(0, 50_000, (B, G, T))
  length = rng.integers(0, T + 1, (B, G))
  for _ in range(14):  # copies, with up to eight tokens changed
    (b, g), (c, h) = rng.integers(0, (B, G), (2, 2))
    ids[c, h], length[c, h] = ids[b, g], length[b, g]
    ids[c, h, rng.integers(0, T, rng.integers(0, 9))] += 1
  group = make_group(ids, length)
  score = rng.random((B, G))
  selection = TABLE['distinct'](max_overlap=0.4, ngram=2, above=0.2)(KEY, group, judged(score))
  kept, expected = [], np.zeros((B, G))
  for b, g in np.ndindex(B, G):
    mine = shingles(ids[b, g, : length[b, g]].tolist(), 2)
    alike = [len(mine & other) / max(len(mine | other), 1) for other in kept]
    assert all(abs(x - 0.4) > 0.02 for x in alike)  # no case that a rounding decides
    if length[b, g] and score[b, g] > 0.2 and not any(x > 0.4 for x in alike):
      kept.append(mine)
      expected[b, g] = 1
  np.testing.assert_array_equal(selection.row_weight_BxG, expected)
  assert 0 < expected.sum() < ((length > 0) & (score > 0.2)).sum()


def test_at_an_overlap_of_one_only_the_same_is_dropped():
  group = make_group([[[1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 2, 1]]], [[3, 3, 2, 3]])
  selection = TABLE['distinct'](max_overlap=1.0, ngram=1)(KEY, group, judged([[1.0] * 4]))
  np.testing.assert_array_equal(selection.row_weight_BxG, [[1, 0, 1, 1]])
