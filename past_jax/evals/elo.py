"""Elo ratings of a few players from all their comparisons at once, so that the order of play means nothing."""

import numpy as np

POINTS = 400 / np.log(10)  # Elo points of a unit of log-odds
TIE = 1.0  # that everyone plays against everyone beside what is seen, in games


def comparisons(scores_PxN) -> np.ndarray:
  """won_PxP: in how many of N games row i scores above column j; a tie counts half to each, a NaN is no game."""
  above = scores_PxN[:, None] > scores_PxN[None]
  equal = scores_PxN[:, None] == scores_PxN[None]
  return (above + 0.5 * equal).sum(-1) * (1 - np.eye(len(scores_PxN)))


def elo(won_PxP) -> np.ndarray:
  """rating_P: of the Bradley-Terry model's largest likelihood, in Elo points; the first player's is 0.

  The probability that i beats j is 1 / (1 + 10^((rating_j - rating_i) / 400)). Beside the games seen, every pair is
  given one more, which is a tie, so that whoever wins all games has a rating, too: 400 log10((w + 1/2) / (l + 1/2)) of
  two players with w and l wins. What is maximised is strictly concave; Newton's method with halved steps finds it.
  """
  won_PxP = np.asarray(won_PxP, np.float64)
  P = len(won_PxP)
  won_PxP = (won_PxP + TIE / 2) * (1 - np.eye(P))
  played_PxP = won_PxP + won_PxP.T
  differences = lambda r_P: r_P[:, None] - r_P[None]
  value = lambda r_P: -(won_PxP * np.logaddexp(0, -differences(r_P))).sum()
  r_P = np.zeros(P)
  for _ in range(100):
    p_PxP = 1 / (1 + np.exp(-differences(r_P)))
    slope_P = (won_PxP - played_PxP * p_PxP).sum(1)
    if np.abs(slope_P).max() < 1e-9 * played_PxP.sum():
      break
    weight_PxP = played_PxP * p_PxP * p_PxP.T
    curvature_PxP = np.diag(weight_PxP.sum(1)) - weight_PxP
    step_P = np.zeros(P)
    step_P[1:] = np.linalg.solve(curvature_PxP[1:, 1:], slope_P[1:])  # the first stays where it is
    while value(r_P + step_P) < value(r_P) + 1e-4 * slope_P @ step_P and np.abs(step_P).max() > 1e-12:
      step_P /= 2
    r_P = r_P + step_P
  return POINTS * r_P
