"""The judge `reward` and the evaluation `judge_accuracy`: each response's row alone is what a judge reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax import judges, scores
from past_jax.evals import TABLE
from past_jax.evals.judge import calibration
from past_jax.evals.setting import Setting
from past_jax.render import renderer
from past_jax.text import byte_tokenizer
from past_jax.types import Example, Group, Plan, Prompts, UserError

TOKENIZER = byte_tokenizer()
VIEW = dict(
  instruction='{prompt}',
  train_view='same',
  train_instruction='',
  chat=False,
  prompt_length=8,
  text_length=8,
  anchors=2,
)
IMPROVE = dict(instruction='{prompt}{draft}>', prompt_length=18, temperature=1.0)
PAIRS = [('ab>', 'xxx', 'yy'), ('cde>', 'zzzz', 'xy'), ('f>', 'y', 'zxz'), ('gh>', 'xyz', 'xyy'), ('i>', 'yx', 'z')]
EXAMPLES = [Example(prompt=prompt, anchors=(better, worse)) for prompt, better, worse in PAIRS]


@pytest.fixture(scope='module')
def judge(params):
  head = jax.random.normal(jax.random.key(1), (64, 1)) / 4
  return params | {'score': {'kernel': head}}


@pytest.fixture(scope='module')
def alone(policy, judge):
  """score(text before, response): of the row alone, padded to 32, in float64."""
  states = jax.jit(policy.rows)

  def score(before: str, response: str) -> float:
    ids = [*TOKENIZER.plain(before), *TOKENIZER.encode(response), TOKENIZER.eos_id]
    row = jnp.asarray([ids + [0] * (32 - len(ids))])
    state = np.asarray(states(scores.body(judge), row, jnp.array([len(ids)])), np.float64)[0, len(ids) - 1]
    return float(state @ np.asarray(judge['score']['kernel'], np.float64)[:, 0])

  return score


# --- the judge ----------------------------------------------------------------------------------------------------


def group_of(examples, instruction):
  """Both responses and an empty one, behind these prompts."""
  view = {**VIEW, 'instruction': instruction, 'prompt_length': 18}
  prompts = renderer(tokenizer=TOKENIZER, completion_length=8, **view)(examples, Plan(anchor_source='given')).sample
  wide = lambda x: np.concatenate([x, np.zeros_like(x[:, :1])], axis=1)
  ids, length = wide(prompts.given.ids_BxAxT), wide(prompts.given.length_BxA)
  zeros = np.zeros(ids.shape, np.float32)
  return Group(Prompts(prompts.ids_BxP, prompts.length_B), ids, length, length > 0, zeros, zeros, np.zeros_like(length))


def plain(examples):
  return renderer(tokenizer=TOKENIZER, completion_length=1, **VIEW)(examples, Plan()).sample


@pytest.mark.parametrize('view', ['same', 'plain'])
@pytest.mark.parametrize('chunk', [4, 64])
def test_reward_is_the_score_of_each_row_alone(policy, judge, alone, view, chunk):
  made = judges.TABLE['reward'](view=view, chunk=chunk, policy=policy, plain=plain)
  found = made.score({'judge': judge}, None, group_of(EXAMPLES, '{prompt}draft>'), EXAMPLES)
  before = {'same': '{}draft>', 'plain': '{}'}[view]
  expected = [[alone(before.format(e.prompt), a) for a in e.anchors] for e in EXAMPLES]
  np.testing.assert_allclose(found.score_BxG[:, :2], expected, atol=1e-4)
  assert np.isnan(found.score_BxG[:, 2]).all()  # an empty response abstains


def test_a_model_without_a_head_is_refused(policy, params):
  made = judges.TABLE['reward'](policy=policy, plain=plain)
  with pytest.raises(UserError, match="scalar head, and the model of the role 'judge' has none"):
    made.score({'judge': params}, None, group_of(EXAMPLES, '{prompt}'), EXAMPLES)


# --- the evaluation -----------------------------------------------------------------------------------------------


def setting(policy, mesh, **changes):
  examples = changes.pop('examples', EXAMPLES)
  return Setting(policy, TOKENIZER, mesh, examples, (), **dict(chunk=2, view=VIEW, improve=IMPROVE) | changes)


def test_accuracy_of_gaps(policy, judge, alone, mesh):
  evaluation = TABLE['judge_accuracy'](setting(policy, mesh))
  metrics, samples = evaluation.run(judge)
  g = np.array(
    [
      [alone(f'{p}{draft}>', a) for draft, a in ((worse, better), (better, better), (worse, worse), (better, worse))]
      for p, better, worse in PAIRS
    ]
  )
  wl, ww, ll, lw = g.T
  margin = wl - lw
  expected = {
    'accuracy': (margin > 0).mean(),
    'longer': np.mean([len(better) > len(worse) for _, better, worse in PAIRS]) + 0.5 / len(PAIRS),  # one tie
    'loss': np.log1p(np.exp(-margin)).mean(),
    'better': wl.mean(),
    'equal': (ww + ll).mean() / 2,
    'worse': lw.mean(),
    'right_of_better': (wl > ll).mean(),
    'right_of_worse': (lw < ww).mean(),
  }
  assert {key: metrics[f'judge/{key}'] for key in expected} == pytest.approx(expected, abs=1e-4)
  assert metrics['judge/accuracy/n'] == len(PAIRS) == len(samples)
  assert [s['correct'] for s in samples] == (margin > 0).tolist() and evaluation.roles == ('judge',)


def test_accuracy_of_rewards(policy, judge, alone, mesh):
  metrics, _ = TABLE['judge_accuracy'](setting(policy, mesh, improve={}), reads='prompt').run(judge)
  margin = np.array([alone(p, better) - alone(p, worse) for p, better, worse in PAIRS])
  assert metrics['judge/accuracy'] == (margin > 0).mean()
  assert metrics['judge/loss'] == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=1e-4)
  assert 'judge/equal' not in metrics


def test_calibration():
  """Ten bins: ten pairs that are each as sure as often they are right, and as many that are sure and wrong."""
  sure = lambda p: np.log(p / (1 - p))
  well = np.array([sure(0.8)] * 8 + [-sure(0.8)] * 2)
  assert calibration(np.tile(well, 1)) == pytest.approx(np.mean([abs(1 - 0.8)] * 8 + [0.8] * 2))  # a bin of each pair
  many = np.tile(well, 400)
  rng = np.random.default_rng(0)
  assert calibration(rng.permutation(many)) < 0.05
  assert calibration(-np.abs(many)) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
  'changes, keys, message',
  [
    ({'examples': [Example(prompt='x')]}, {}, 'two given responses'),
    ({'improve': {}}, {}, "needs config.improve; reads='prompt' is for other judges"),
  ],
)
def test_user_errors(policy, mesh, changes, keys, message):
  with pytest.raises(UserError, match=message):
    TABLE['judge_accuracy'](setting(policy, mesh, **changes), **keys)
