"""Figures of coverage against a loop in float64 over texts."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from past_jax.coverage import coverage
from past_jax.text import byte_tokenizer, pack_completions, pack_prompts
from past_jax.types import Example, Group, Judgement, Prompts

TOKENIZER = byte_tokenizer()
NAN = math.nan
TEXTS = [
  ['so 7', '8', 'so 7', ''],  # two copies; the last only ends
  ['none', 'no', '5', '6'],
  ['5', '5', '5', '5'],  # one completion
  ['3', '4', '2', '1'],  # no target
]
LOGP = np.array([[-1.0, -2.5, -1.0, -9.0], [-0.5, -4.0, -3.0, -2.0], [-0.1] * 4, [-1.5, -2.0, -2.0, -7.0]])
SCORE = np.array([[0.2, 0.9, 0.3, NAN], [NAN, NAN, 0.1, 0.1], [NAN] * 4, [1.0, 2.0, 3.0, 4.0]], np.float32)
EXAMPLES = [Example(target='7.0'), Example(target='#### 5'), Example(target='5'), Example()]


def group_of(texts, source=0):
  rows = [[[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in row] for row in texts]
  ids, length, _ = pack_completions(rows, 8)
  prompts = Prompts(*pack_prompts([[1]] * len(texts), 2)[:2])
  logps = np.zeros(ids.shape, np.float32)
  logps[..., 0], logps[..., 1] = 0.25 * LOGP[: len(texts)], 0.75 * LOGP[: len(texts)]
  return Group(prompts, ids, length, length > 0, logps, logps, np.full(length.shape, source, np.int32))


def by_hand():
  best = [-1.0, -0.5, -0.1, -1.5]
  return {
    'length': np.mean([len(text) + 1 for row in TEXTS for text in row]),
    'log_c_cov': math.log(np.mean([math.exp(-x) for x in best])),
    'log_margin': np.mean([1.5, 1.5, 0.5]),
    'unanswered': 3 / 16,
    'right': np.mean([2 / 4, 1 / 4, 1.0]),
    'any_right': 1.0,
    'best_right': np.mean([0, 1, 0]),  # the first of two equals; a judge that abstains on all has no best
    'right_likelier': np.mean([1, 1, 1, 1, 0, 1, 0]),
  }


@pytest.mark.parametrize('of', ['judge', 'sampler'])
def test_the_loop(of):
  info = {'logp': jnp.asarray(LOGP, jnp.float32)} if of == 'judge' else {}
  found = coverage(TOKENIZER, 'last_number', of == 'sampler')(group_of(TEXTS), Judgement(SCORE, info=info), EXAMPLES)
  assert found == pytest.approx({f'coverage/{name}': x for name, x in by_hand().items()}, rel=1e-6)


def test_what_is_not_known_is_left_out():
  found = coverage(TOKENIZER)(group_of(TEXTS), Judgement(SCORE), EXAMPLES)
  assert set(found) == {'coverage/length'}
  found = coverage(TOKENIZER, 'last_number')(group_of(TEXTS[3:]), Judgement(SCORE[3:]), EXAMPLES[3:])
  assert set(found) == {'coverage/length', 'coverage/unanswered'}
  found = coverage(TOKENIZER, 'last_number')(group_of(TEXTS), Judgement(SCORE), EXAMPLES)
  assert set(found) == {f'coverage/{x}' for x in ('length', 'unanswered', 'right', 'any_right', 'best_right')}


def test_opponents_and_what_fills_up_are_left_out():
  group, judgement = group_of(TEXTS), Judgement(SCORE)
  more = lambda x, fill: np.concatenate([np.concatenate([x, x], axis=1), np.full_like(np.tile(x, (1, 2)), fill)[:1]])
  wide = dataclasses.replace(
    group,
    ids_BxGxT=np.concatenate([np.tile(group.ids_BxGxT, (1, 2, 1)), np.ones((1, 8, 8), np.int32)]),
    length_BxG=more(group.length_BxG, 0),
    logps_BxGxT=np.concatenate([np.tile(group.logps_BxGxT, (1, 2, 1)), np.zeros((1, 8, 8), np.float32)]),
    source_BxG=np.tile([0, 0, 0, 0, 1, 1, 1, 1], (5, 1)),
  )
  measure = coverage(TOKENIZER, 'last_number', True)
  found = measure(wide, Judgement(more(SCORE, NAN)), [*EXAMPLES, EXAMPLES[0]])
  assert found == measure(group, judgement, EXAMPLES)


def test_nothing_to_take_a_mean_of():
  empty = dataclasses.replace(group_of(TEXTS), length_BxG=np.zeros((4, 4), np.int32))
  found = coverage(TOKENIZER, 'last_number', True)(empty, Judgement(SCORE), EXAMPLES)
  assert set(found) == {f'coverage/{name}' for name in ('length', 'log_c_cov', 'log_margin', 'unanswered')}
  assert all(math.isnan(x) for x in found.values())
