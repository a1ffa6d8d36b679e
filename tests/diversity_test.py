"""Figures of diversity, counted by hand."""

import pytest

from past_jax.diversity import diversity


def test_distinct_ngrams_and_repetitions():
  found = diversity([[1, 2, 1], [1, 2], [5]], ['a b', 'a  b', 'c'])
  assert found['study/distinct_1'] == pytest.approx(3 / 6)
  assert found['study/distinct_2'] == pytest.approx(2 / 3)
  assert found['study/repeated'] == pytest.approx(1 / 3)
  assert found['study/mean_tokens'] == 2


def test_more_of_the_same_is_compressed_further():
  same, other = ['the same sentence again'] * 20, [f'{i * 7919 % 10007} {chr(97 + i)}' for i in range(20)]
  ratio = lambda texts: diversity([[1]] * 20, texts)['study/compression']
  assert ratio(same) > 5 > 2 > ratio(other)


def test_nothing_has_no_figures():
  assert diversity([], []) == {}
  assert diversity([[1]], ['a'])['study/distinct_2'] == 0
