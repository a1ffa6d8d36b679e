"""Rows of reasoning-gym, and its scorer on completions."""

import pytest

from past_jax.data.worlds import TABLE
from past_jax.data.worlds.reasoning import score
from past_jax.types import Example, UserError

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore'),  # of packages that it brings along
]


def test_rows_are_the_packages_and_so_is_the_score():
  import reasoning_gym as gym

  rows = TABLE['reasoning']('chain_sum', 5, 3, {'min_terms': 2, 'max_terms': 2}).examples
  theirs = gym.create_dataset('chain_sum', size=5, seed=3, min_terms=2, max_terms=2)
  assert [(e.prompt, e.target.strip()) for e in rows] == [(row['question'], row['answer']) for row in theirs]
  assert [score(e.target, e) for e in rows] == [1.0] * 5
  assert [score(f'I think <answer>1</answer> no, <answer> {e.target}</answer>', e) for e in rows] == [1.0] * 5
  assert score('nothing', rows[0]) < 1
  final = TABLE['reasoning']('chain_sum', 5, 3, {'min_terms': 2, 'max_terms': 2}, split='final').examples
  assert not {e.prompt for e in rows} & {e.prompt for e in final}


def test_answers_that_no_string_gives_away():
  (row,) = TABLE['reasoning']('countdown', 1, 0).examples
  assert score(row.target, row) == 1 and score('1', row) < 1


def test_what_is_wrong_is_told():
  with pytest.raises(UserError, match="task='chain_sums'"):
    TABLE['reasoning']('chain_sums', 5, 0)
  with pytest.raises(UserError, match="'min_term'"):
    TABLE['reasoning']('chain_sum', 5, 0, {'min_term': 2})
  with pytest.raises(UserError, match='count=0'):
    TABLE['reasoning']('chain_sum', 0, 0)
  with pytest.raises(UserError, match='scorer of their own'):
    score('7', Example(where='rows.jsonl:1'))
