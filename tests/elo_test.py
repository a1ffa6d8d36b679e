"""Ratings against closed forms and an independent optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize

from past_jax.evals.elo import comparisons, elo


@pytest.mark.parametrize('won, lost', [(3, 1), (0, 0), (5, 5), (200, 0), (0, 7), (2.5, 0.5)])
def test_two_players_have_a_closed_form(won, lost):
  expected = 400 * np.log10((won + 0.5) / (lost + 0.5))
  assert elo([[0, lost], [won, 0]]) == pytest.approx([0, expected], abs=1e-6)


def oracle(won, anchor=0):
  """Maximises the same likelihood in another parametrisation, by another method, from elsewhere."""

  def loss(free):
    r = np.insert(free, anchor, 0.0)
    total = 0.0
    for i in range(len(r)):
      for j in range(len(r)):
        if i != j:
          total -= (won[i][j] + 0.5) * np.log(1 / (1 + 10 ** ((r[j] - r[i]) / 400)))
    return total

  found = minimize(loss, np.full(len(won) - 1, 30.0), method='BFGS', options={'gtol': 1e-9})
  return np.insert(found.x, anchor, 0.0)


@pytest.mark.parametrize('seed', range(4))
def test_several_players_as_an_independent_optimiser_finds(seed):
  rng = np.random.default_rng(seed)
  won = rng.integers(0, 40, (5, 5)).astype(float) / 2
  won[rng.random((5, 5)) < 0.2] = 0  # some never win
  np.fill_diagonal(won, 0)
  assert elo(won) == pytest.approx(oracle(won), abs=0.02)


def test_a_clean_sweep_is_finite_and_ordered():
  ratings = elo(np.triu(np.full((6, 6), 1000.0), 1))  # whoever comes first wins always
  assert np.isfinite(ratings).all() and (np.diff(ratings) < -100).all()
  assert ratings == pytest.approx(oracle(np.triu(np.full((6, 6), 1000.0), 1)), rel=1e-3)


def test_neither_games_nor_players_have_an_order():
  scores = np.random.default_rng(1).integers(0, 4, (4, 30)).astype(float)
  ratings = elo(comparisons(scores))
  assert elo(comparisons(scores[:, ::-1])) == pytest.approx(ratings, abs=1e-6)
  turned = elo(comparisons(scores[::-1]))[::-1]
  assert turned - turned[0] == pytest.approx(ratings, abs=1e-6)


def test_strengths_that_made_many_games_are_found_again():
  rng, true = np.random.default_rng(2), np.array([0.0, 150.0, -80.0, 300.0])
  won, games = np.zeros((4, 4)), 20_000
  for i in range(4):
    for j in range(i):
      won[i, j] = rng.binomial(games, 1 / (1 + 10 ** ((true[j] - true[i]) / 400)))
      won[j, i] = games - won[i, j]
  assert elo(won) == pytest.approx(true, abs=6)


def test_comparisons_are_those_of_a_loop():
  scores = np.array([[1, 2, np.nan, 0.5], [1, 1, 3, 0.5], [0, 5, 3, np.nan]])
  expected = np.zeros((3, 3))
  for i in range(3):
    for j in range(3):
      for a, b in zip(scores[i], scores[j]):
        if i != j and not np.isnan(a + b):
          expected[i, j] += 1 if a > b else 0.5 if a == b else 0
  assert comparisons(scores).tolist() == expected.tolist()
