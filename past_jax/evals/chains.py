"""Figures of chains of responses, each made of the one before: judges' comparisons with the first, copies, ratings."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from past_jax.evals.elo import comparisons, elo

THIRDS = ('low', 'mid', 'high')
SHOWN = 32  # rows whose chains are kept for people


def settled(new: Sequence[float], chain: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]) -> list[float]:
  """Scores of a chain's last texts: a text that was there before keeps its score, so that a copy ties to the bit."""
  out = list(new)
  for texts, old in reversed(list(zip(chain, scores))):
    out = [a if text == last else b for a, b, text, last in zip(old, out, texts, chain[-1], strict=True)]
  return out


def of_drafts(score_N, good: float) -> dict[str, float]:
  """The mean score of the drafts and the share of good ones, of those that the judge scores; {}: none."""
  known = score_N[~np.isnan(score_N)]
  return {'draft': float(known.mean()), 'good': float((known >= good).mean())} if len(known) else {}


def of_scores(score_IxN, good: float) -> dict[str, float]:
  """The figures of one judge for a chain of iterations, the drafts first; those that no row tells are left out."""
  draft_N, out = score_IxN[0], {}
  third_N = thirds(draft_N)
  rating_I = elo(comparisons(score_IxN))
  if len(score_IxN) > 2:
    mean_I = np.array([row[~np.isnan(row)].mean() if (~np.isnan(row)).any() else np.nan for row in score_IxN])
    out['rises'] = float(np.mean(np.diff(mean_I) > 0))
  for i in range(1, len(score_IxN)):
    known_N = ~np.isnan(draft_N + score_IxN[i])
    moved_N = np.sign(score_IxN[i] - draft_N)
    values = {'win': moved_N[known_N] > 0, 'lose': moved_N[known_N] < 0, 'delta': moved_N[known_N]}
    values |= {f'delta_{name}': moved_N[known_N & (third_N == t)] for t, name in enumerate(THIRDS)}
    values |= {'score': score_IxN[i][known_N], 'spoilt': moved_N[known_N & (draft_N >= good)] < 0}
    out |= {f'i{i}/{name}': float(np.mean(x)) for name, x in values.items() if len(x)}
    if known_N.any():
      out |= {f'i{i}/win/n': int(known_N.sum()), f'i{i}/elo': float(rating_I[i])}
  return out


def thirds(score_N) -> np.ndarray:
  """0, 1 or 2: the third of the rows that each is in by its score; equal ones by their mean rank, NaN in none (-1)."""
  known_N = ~np.isnan(score_N)
  below_N = (score_N[:, None] > score_N[None]).sum(1) + (score_N[:, None] == score_N[None]).sum(1) / 2
  return np.where(known_N, np.floor(3 * below_N / max(known_N.sum(), 1)), -1).astype(int)


def of_texts(chain: Sequence[Sequence[str]], copies: float) -> dict[str, float]:
  """What needs no judge; a length without drafts to compare with, all being empty, is left out."""
  out, drafted = {}, sum(map(len, chain[0]))
  for i in range(1, len(chain)):
    same = [is_copy(a.strip(), b.strip(), copies) for a, b in zip(chain[i - 1], chain[i], strict=True)]
    out[f'i{i}/copied'] = float(np.mean(same))
    if drafted:
      out[f'i{i}/length'] = sum(map(len, chain[i])) / drafted
  return out


def is_copy(a: str, b: str, copies: float) -> bool:
  if copies == 1 or a == b:
    return a == b
  return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() >= copies


def shown(kind: str, examples, chain: Sequence[Sequence[str]], scores: Mapping[str, Sequence]) -> list[dict]:
  """Chains of responses with each judge's score (None: it abstains); right is what the first judge finds better."""
  out, number = [], lambda x: None if np.isnan(x) else float(x)
  for n, example in enumerate(examples[:SHOWN]):
    steps = [
      {'text': texts[n], 'score': {name: number(rows[i][n]) for name, rows in scores.items()}}
      for i, texts in enumerate(chain)
    ]
    first = next(iter(scores.values()))
    out.append(
      {
        'kind': kind,
        'question': example.prompt,
        'answer': steps[0]['text'],
        'output': steps[-1]['text'],
        'correct': bool(first[-1][n] > first[0][n]),
        'chain': steps,
      }
    )
  return out
