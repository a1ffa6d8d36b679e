"""Tools check answers by computing: expressions through sympy, programs by what they print; and as a judge."""

import numpy as np
import pytest
from contract_selects_test import make_group

from past_jax.judges import TABLE
from past_jax.tools import algebra, code, sandbox
from past_jax.tools.sandbox import Limits
from past_jax.types import Example, UserError

PAIRS = [  # answer, target, the same?
  ('2*(x+1)', '2x + 2', True),
  ('x = 1/2', '0.5', True),
  ('\\frac{1}{\\sqrt{2}}', 'sqrt(2)/2', True),
  ('sin(x)^2 + cos(x)^2', '1', True),
  ('(1, 2)', '(1, 4/2)', True),
  ('(1, 2)', '(2, 1)', False),
  ('x^2 - 1', '(x-1)(x+1)', True),
  ('x + 1', 'x - 1', False),
  ('1,000 + 1', '1001', True),
  ('', '1', False),
  ('no number here!', '3', False),
  ('((((', '3', False),
  ('9**9**9**9**9', '3', False),  # never ends, and takes the process with it
  ('n!/(n-1)!', 'n', True),  # compared after that
  ('__import__("os").write(1, b"equal\\n" * 99)', '3', False),
  ('(lambda: 3)()', '3', False),
  ('x.__class__', '3', False),
  ('1 + 1', '2', True),
]


def test_expressions_are_compared_as_such():
  answers, targets, same = zip(*PAIRS)
  assert algebra(answers, targets, '', Limits(seconds=1)) == list(same)


def test_an_answer_is_found_first():
  found = algebra(['So it is \\boxed{2(x+1)}.', 'It is 2x + 2'], ['2x+2'] * 2, 'boxed', Limits())
  assert found == [True, False]


def test_sympy_is_asked_for_by_name(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(UserError, match=r'pip install "past-jax\[tools\]"'):
    algebra(['x'], ['y'], '', Limits())


def test_programs_are_checked_by_what_they_print():
  programs = {
    'Here:\n```python\nprint(1)\n```\nand better\n```py\nprint("a")  \nprint("b")\n```': True,
    'print("a\\nb\\n")': True,
    'print("a b")': False,
    'print("a\\nb"); raise SystemExit(1)': False,
    'a\nb': False,
    '': False,
  }
  assert code(list(programs), ['a \nb'] * len(programs), '', Limits()) == list(programs.values())
  assert code(['print("It is", 6 * 7)', 'print(41)'], ['42'] * 2, 'last_number', Limits()) == [True, False]


def completions(tokenizer, *texts):
  rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
  width = max(map(len, rows))
  return make_group([[row + [0] * (width - len(row)) for row in rows]], [[len(row) for row in rows]])


def test_the_judge_scores_right_and_wrong(tokenizer):
  group = completions(tokenizer, 'x: 2(y+1)', '2(y+1)', '2y')
  judge = TABLE['tool'](tool='algebra', rule='line', tokenizer=tokenizer)
  judgement = judge.score({}, None, group, [Example(target='2y + 2')])
  np.testing.assert_array_equal(judgement.score_BxG, [[0.0, 1.0, 0.0]])
  with pytest.raises(UserError, match='file:3: judge tool needs `target`'):
    judge.score({}, None, group, [Example(where='file:3')])


@pytest.mark.parametrize('keys, message', [({'tool': 'sudo'}, "judge.tool='sudo'"), ({'rule': 'x'}, "judge.rule='x'")])
def test_the_judge_refuses_what_there_is_not(tokenizer, keys, message):
  with pytest.raises(UserError, match=message):
    TABLE['tool'](tokenizer=tokenizer, **keys)


def test_a_system_without_a_sandbox_is_named(monkeypatch):
  # An order without limits: the jail fails while it is built.
  monkeypatch.setattr(sandbox, '_order', lambda *args: {'status': args[1], 'source': args[0]})
  with pytest.raises(UserError, match='Programs are not run here'):
    code(['print(1)'], ['1'], '', Limits())
