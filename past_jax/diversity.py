"""How varied a round's completions are: what falls when a model learns from its own text over generations."""

import zlib
from collections.abc import Sequence

import numpy as np


def diversity(ids: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, float]:
  """Figures of N completions, their ids and what these say; {} of none.

  study/distinct_1, _2   distinct n-grams of ids over all n-grams, of all completions together (arXiv 1510.03055)
  study/repeated         share of completions that say, up to white space, what an earlier one says
  study/compression      bytes of all texts over their bytes after DEFLATE: higher is more of the same (2403.00553)
  study/mean_tokens      tokens per completion
  """
  if not ids:
    return {}
  out = {}
  for n in (1, 2):
    grams = [tuple(row[i : i + n]) for row in ids for i in range(len(row) - n + 1)]
    out[f'study/distinct_{n}'] = len(set(grams)) / max(len(grams), 1)
  said, whole = [' '.join(text.split()) for text in texts], '\n'.join(texts).encode()
  out['study/repeated'] = 1 - len(set(said)) / len(said)
  out['study/compression'] = len(whole) / len(zlib.compress(whole, 9))
  out['study/mean_tokens'] = float(np.mean([len(row) for row in ids]))
  return out
