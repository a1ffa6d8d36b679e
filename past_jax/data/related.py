"""The texts of a corpus that are nearest to each of its texts, by BM25: what else a note may draw on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from past_jax.types import Example, UserError


def attach(examples: Sequence[Example], most: int) -> tuple[Example, ...]:
  """The examples with up to `most` other texts each, nearest first; one that shares no word, or is the same, is none.

  Raises:
    UserError: bm25s is not installed.
  """
  try:
    import bm25s
  except ImportError as error:
    raise UserError(f'config.data.related={most} needs bm25s ({error}); run: pip install "past-jax[study]"') from error
  texts = list(dict.fromkeys(e.text for e in examples))
  words = bm25s.tokenize(texts, stopwords=[], return_ids=False, show_progress=False)
  index = bm25s.BM25()
  index.index(words, show_progress=False)
  near = {}
  for i, text in enumerate(texts):
    scores = index.get_scores(words[i])
    order = [j for j in np.argsort(-scores, kind='stable') if j != i and scores[j] > 0]
    near[text] = tuple(texts[j] for j in order[:most])
  return tuple(dataclasses.replace(e, related=near[e.text]) for e in examples)
