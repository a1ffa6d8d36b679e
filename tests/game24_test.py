"""The Game of 24 is worked out, not compared."""

from fractions import Fraction

import pytest

from past_jax.evals.game24 import solves, worked_out
from past_jax.types import Example


@pytest.mark.parametrize(
  ('expression', 'value', 'numbers'),
  [
    ('1+2*3', 7, [1, 2, 3]),
    ('(1+2)*3', 9, [1, 2, 3]),
    ('8/3/2', Fraction(4, 3), [8, 3, 2]),
    ('8 - 3 - 2', 3, [8, 3, 2]),
    ('8/(3-8/3)', 24, [8, 3, 8, 3]),
    (' 2 × 3 ÷ 4 ', Fraction(3, 2), [2, 3, 4]),
    ('2 \\times 3', 6, [2, 3]),
    ('((((7))))', 7, [7]),
    ('10', 10, [10]),
  ],
)
def test_exact_values(expression, value, numbers):
  assert worked_out(expression) == (value, numbers)


@pytest.mark.parametrize(
  'expression',
  [
    '',
    '+',
    '1+',
    '-1+2',
    '(1',
    '1)',
    '1 2',
    '2(3)',
    '()',
    '1//2',
    '2**3',
    '1/0',
    '1/(2-2)',
    'a+1',
    '__import__',
    '1.5+2',
  ]
  + ['(' * 5000, '(' * 49 + '1' + ')' * 49 + '+1', '1+' * 300 + '1', '9' * 5000],
)
def test_what_is_no_expression(expression):
  assert worked_out(expression) is None


@pytest.mark.parametrize(
  ('completion', 'score'),
  [
    ('(10 - 4) * (13 - 9) = 24', 1),
    ('13 - 9 = 4 (left: 4 4 10)\n10 - 4 = 6 (left: 4 6)\n4 * 6 = 24\nAnswer: (13 - 9) * (10 - 4) = 24', 1),
    ('Answer: $(13 - 9) * (10 - 4)$.\nDone!', 1),
    ('(13 - 9) * (10 - 4) = 23', 1),  # what it says it makes does not count
    ('4 * 6 = 24', 0),  # not the numbers
    ('(13 - 9) * (10 - 4) + 4 - 4', 0),  # one used twice
    ('13 - 9 + 10 - 4 = 24', 0),
    ('24', 0),
    ('', 0),
    ('no way', 0),
  ],
)
def test_solutions(completion, score):
  assert solves(completion, Example(prompt='4 9 10 13')) == score
  assert solves(completion, Example(prompt='Make 24 of these.', target='4 9 10 13')) == score
