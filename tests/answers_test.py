"""Answers in nasty strings."""

import pytest

from past_jax.answers import RULES, extract, same
from past_jax.types import UserError


@pytest.mark.parametrize(
  ('text', 'answer'),
  [
    ('1,234.50', '1234.5'),
    ('so it is 1,234.', '1234'),
    ('$3.50', '3.5'),
    ('\\$3.50.', '3.5'),
    ('-$3.50', '-3.5'),
    ('$-3.50', '-3.5'),
    ('-0', '0'),
    ('-0.00', '0'),
    ('007', '7'),
    ('1/2', '0.5'),
    ('1 / 3', '1/3'),
    ('2/6 of it', '1/3'),
    ('-7/4', '-1.75'),
    ('1 1/2 cups', '1.5'),
    ('3/0', None),
    ('\\frac{1}{2}', '0.5'),
    ('-\\dfrac{3}{4}', '-0.75'),
    ('3\\frac12', '3.5'),
    ('12{,}000 m', '12000'),
    ('12\\,000', '12000'),
    ('50\\%', '50'),
    ('1e3', '1000'),
    ('2.5E-2', '0.025'),
    ('.5', '0.5'),
    ('\u22125', '-5'),  # the minus sign
    ('10-5', '5'),
    ('10 - 5', '5'),
    ('= -5', '-5'),
    ('f(3)-2', '2'),
    ('3 apples and 4 pears make 7 fruits', '7'),
    ('first 9 is wrong\n#### 7\nas 8 would be', '7'),
    ('#### 1,000 then #### -2.0 now', '-2'),
    ('it is 7 ####', '7'),
    ('1.2.3', '0.3'),
    ('none at all', None),
    ('', None),
    ('\u0663', None),  # an Arabic digit
    ('9' * 5000, None),
    ('x' * 200_000 + ' 8 ' + 'y' * 200_000, '8'),
    ('1,' * 100_000 + '12', '12'),
  ],
)
def test_last_number(text, answer):
  assert extract(text, 'last_number') == answer


@pytest.mark.parametrize(
  ('text', 'answer'),
  [
    ('\\boxed{\\frac{1}{2}}', '0.5'),
    ('\\boxed{1} and then \\boxed{ 1,024 }', '1024'),
    ('\\boxed{\\text{yes}}', 'yes'),
    ('\\boxed{x^{2}+{y}}', 'x^{2}+{y}'),
    ('\\boxed{\\{1\\}}', '\\{1\\}'),
    ('\\boxed{7} but \\boxed{8', '7'),
    ('\\fbox{3} \\boxed {4}', '4'),
    ('\\boxed{}', None),
    ('\\boxed{' + '{' * 50_000, None),
    ('7', None),
  ],
)
def test_boxed(text, answer):
  assert extract(text, 'boxed') == answer


@pytest.mark.parametrize(
  ('text', 'answer'),
  [
    ('(B)', 'B'),
    ('Answer: b)', 'B'),
    ('The answer is C.', 'C'),
    ('The correct answer is **(D)** because A is wrong.', 'D'),
    ('answer is: $\\boxed{\\text{E}}$', 'E'),
    ('B', 'B'),
    (' c', 'C'),
    ('B. Paris', 'B'),
    ('d) none of A, B', 'D'),
    ('(a) is wrong, (b) is wrong, so (c)', 'C'),
    ('A dog bit a man', None),
    ('A', 'A'),
    ("It isn't clear. I'd say Bob.", None),
    ('F', None),
    ('', None),
    ('abcde', None),
  ],
)
def test_choice(text, answer):
  assert extract(text, 'choice') == answer


@pytest.mark.parametrize(
  ('text', 'rule', 'answer'),
  [
    ('\n  \n  two words \nmore', 'line', 'two words'),
    (' \n ', 'line', None),
    ('<answer> 1,000.0 </answer>', 'tag', '1000'),
    ('<answer>x</answer> <ANSWER>\nA  big\ncat.\n</ANSWER>', 'tag', 'a big cat'),
    ('<answer>lost <answer>found</answer>', 'tag', 'found'),
    ('<answer></answer>', 'tag', None),
    ('<answer>open', 'tag', None),
  ],
)
def test_line_and_tag(text, rule, answer):
  assert extract(text, rule) == answer


def test_same():
  assert same('1/2', '0.50') and same('$1,000', '1000.') and same(' The  Cat.', 'the cat') and same('50%', '50')
  assert not same('1/3', '0.333') and not same('cat', 'cats')
  assert not same(None, None) and not same(None, '') and not same('0', None)


def test_every_rule_stands_huge_and_odd_strings():
  for rule in RULES:
    for text in (
      '',
      '\x00',
      '{' * 9999,
      '\\boxed{' * 9999,
      '<answer>' * 9999,
      'answer' + ' ' * 9999,
      '-' * 9999,
      '\ud800',
    ):
      assert extract(text, rule) is None or isinstance(extract(text, rule), str)


def test_an_unknown_rule_names_those_there_are():
  with pytest.raises(UserError, match='last_number, boxed'):
    extract('1', 'number')
