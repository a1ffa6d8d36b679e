"""Whatever the shapes: groups, rows, prefill + decode and padded batches give the same log-probs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import by_decode, by_group, by_rows, ragged

from past_jax.models.config import TINY, Kind
from past_jax.models.transformer import transformer
from past_jax.types import Prompts

EVERY = settings(max_examples=40, derandomize=True, deadline=None)
WAYS = {'group': by_group, 'rows': by_rows, 'decode': by_decode}

FREQUENCIES = tuple(10_000.0 ** (-i / 8) for i in range(8))
LOCAL = dataclasses.replace(  # windows shorter than prompts and completions, a layer without positions, caps that bite
  TINY,
  kinds=(Kind(4, FREQUENCIES), Kind(0, tuple(f / 4 for f in FREQUENCIES)), Kind(3)),
  pattern=(0, 1, 2),
  norm='rms_plus_one',
  qk_norm=True,
  post_norms=True,
  biased=('q', 'k', 'v'),
  attention_cap=2.0,
  logit_cap=3.0,
  embed_scale=8.0,
)
# Name -> (config, shapes B, P, G, T). Few shapes, since each is compiled for each way; lengths vary within them.
MODELS = {'tiny': (TINY, ((2, 11, 1, 7), (1, 1, 8, 4))), 'local': (LOCAL, ((3, 6, 3, 9), (1, 3, 8, 1)))}


@pytest.fixture(scope='module', params=MODELS)
def model(request):
  """(way -> (prompts, ids_BxGxT, length_BxG) -> logps_BxGxT, shapes), of a random model far from uniform."""
  config, shapes = MODELS[request.param]
  policy, rng = transformer(config), np.random.default_rng(0)
  centre = lambda path: config.norm == 'rms' and path[-1].key == 'scale'
  params = jax.tree.map_with_path(
    lambda path, leaf: (rng.normal(0.0, 0.15, leaf.shape) + centre(path)).astype(np.float32),
    jax.eval_shape(policy.init, jax.random.key(0)),
  )
  ways = {way: functools.partial(jax.jit(functools.partial(score, policy)), params) for way, score in WAYS.items()}
  return ways, shapes


@st.composite
def batches(draw, shapes):
  """(prompts, ids_BxGxT, length_BxG): prompts from none, completions from none to all of T."""
  B, P, G, T = draw(st.sampled_from(shapes))
  prompt = draw(st.lists(st.integers(0, P), min_size=B, max_size=B))
  completion = draw(st.lists(st.lists(st.integers(0, T), min_size=G, max_size=G), min_size=B, max_size=B))
  return ragged(draw(st.integers(0, 99)), prompt, completion, P, T)


@EVERY
@given(data=st.data())
def test_groups_rows_and_decoding_agree(model, data):
  scores, shapes = model
  batch = data.draw(batches(shapes))
  rows = np.asarray(scores['rows'](*batch))
  # A token has a log-prob if it is one of its completion's and something precedes it.
  t = np.arange(rows.shape[2])
  assert ((rows < 0) == (t < batch[2][:, :, None]) & (t + batch[0].length_B[:, None, None] > 0)).all()
  np.testing.assert_allclose(scores['group'](*batch), rows, atol=1e-5)
  np.testing.assert_allclose(scores['decode'](*batch), rows, atol=1e-5)


@EVERY
@given(data=st.data(), seed=st.integers(0, 99))
def test_pads_and_batch_mates_do_not_matter(model, data, seed):
  """The batch again with more pads on both sides, another prompt in it, its prompts and members in another order."""
  scores, ((B, P, G, T), *_) = model
  prompts, ids_BxGxT, length_BxG = batch = data.draw(batches([(B, P, G, T)]))
  wide_B, wide_P, wide_T = B + 1, P + 5, T + 3
  others, ids, length = ragged(seed, [wide_P] * wide_B, [[wide_T] * G] * wide_B, wide_P, wide_T)
  ids_BxP, length_B = others.ids_BxP, others.length_B
  rng = np.random.default_rng(seed)
  at, members = rng.permutation(wide_B)[:B], rng.permutation(G)
  ids_BxP[at, wide_P - P :] = prompts.ids_BxP
  length_B[at] = prompts.length_B
  ids[at[:, None], members[None], :T] = ids_BxGxT
  length[at[:, None], members[None]] = length_BxG
  wide = np.asarray(scores['group'](Prompts(ids_BxP, length_B), ids, length))[at[:, None], members[None]]
  np.testing.assert_allclose(wide[:, :, :T], scores['group'](*batch), atol=1e-5)
  assert not wide[:, :, T:].any()
