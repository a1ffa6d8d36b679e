import ml_collections
import pytest

from past_jax.curricula import TABLE
from past_jax.types import Plan, UserError

constant, stages = TABLE['constant'], TABLE['stages']


def test_constant_is_the_same_plan_for_ever():
  keys = dict(temperature=0.0, prompts=3, epochs=2, anchor_source='given', draft='chosen', refresh=('ref', 'judge'))
  curriculum = constant(**keys)
  expected = Plan(**keys | {'refresh': frozenset({'ref', 'judge'})})
  assert [curriculum(r) for r in (0, 1, 10**6)] == [expected] * 3
  assert constant()(0) == Plan()


def test_stages_follow_one_another_and_the_last_goes_on():
  curriculum = stages(
    plans=((2, {'anchor_source': 'given', 'stage': 'easy'}), (1, {}), (3, {'temperature': 0.0, 'refresh': ('ref',)})),
    temperature=0.7,
    epochs=4,
  )
  rounds = [curriculum(r) for r in range(9)]
  assert [p.stage for p in rounds] == ['easy'] * 2 + ['stage1'] + ['stage2'] * 6
  assert [p.temperature for p in rounds] == [0.7] * 3 + [0.0] * 6
  assert [p.anchor_source for p in rounds] == ['given'] * 2 + ['none'] * 7
  assert [p.refresh for p in rounds] == [frozenset()] * 3 + [frozenset({'ref'})] * 6
  assert {p.epochs for p in rounds} == {4}


def test_plans_of_a_config_and_a_lone_role():
  c = ml_collections.ConfigDict({'plans': ((1, {'prompts': 2}), (1, {'refresh': 'ref'}))})
  curriculum = stages(plans=c.plans)
  assert curriculum(0).prompts == 2
  assert curriculum(1).refresh == frozenset({'ref'})
  assert constant(refresh='ref')(0).refresh == frozenset({'ref'})


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: stages(), 'curriculum.plans is empty'),
    (lambda: stages(plans=((0, {}),)), r'plans\[0\] lasts 0'),
    (lambda: stages(plans=((1, {}), (1, {'temprature': 1}))), r"plans\[1\].temprature.*'temperature'"),
    (lambda: stages(plans=((1, {'epochs': 0}),)), r'plans\[0\].epochs=0'),
    (lambda: constant(anchor_source='self'), "anchor_source='self'.*none, given"),
    (lambda: constant(draft='sample'), "draft='sample'.*sampled, improved"),
    (lambda: constant(temperature=-1), 'temperature=-1'),
    (lambda: constant(temperature=float('nan')), 'temperature=nan'),
    (lambda: constant(prompts=-1), 'curriculum.prompts=-1.*0 for all rows'),
  ],
)
def test_user_errors(build, message):
  with pytest.raises(UserError, match=message):
    build()
