"""The nearest texts, against the formula of BM25 written out in Python."""

import math
import sys

import pytest

from past_jax.data.related import attach
from past_jax.render import fill
from past_jax.types import Example, UserError

TEXTS = (
  'the red fox crossed the river',
  'a fox and a hen',
  'the river was frozen for weeks',
  'hens lay eggs',
  'a hen lays an egg near the river bank',
)


def bm25(query, k1=1.5, b=0.75):
  """Scores of all texts, with Lucene's idf, by Robertson's formula (the constant factor k1 + 1 left out)."""
  docs = [[w for w in text.split() if len(w) > 1] for text in TEXTS]  # its tokenizer leaves single letters out
  words, mean = [w for w in query.split() if len(w) > 1], sum(map(len, docs)) / len(docs)

  def score(doc):
    total = 0.0
    for word in words:
      df, tf = sum(word in d for d in docs), doc.count(word)
      idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
      total += idf * tf / (tf + k1 * (1 - b + b * len(doc) / mean))
    return total

  return [score(doc) for doc in docs]


def test_related_texts_come_in_the_order_of_their_scores():
  for i, example in enumerate(attach([Example(text=t) for t in TEXTS], 2)):
    scores = bm25(TEXTS[i])
    order = sorted((j for j in range(len(TEXTS)) if j != i and scores[j] > 0), key=lambda j: -scores[j])
    assert example.related == tuple(TEXTS[j] for j in order[:2])


def test_the_same_text_and_strangers_are_not_related():
  first, second, third = attach([Example(text='one fox'), Example(text='one fox'), Example(text='Zinc.')], 3)
  assert first.related == second.related == third.related == ()


def test_related_texts_stand_where_the_instruction_says():
  assert fill('{related} {text}', Example(text='t', related=('a', '{text}'))) == 'a {text} t'


def test_the_library_is_asked_for_by_name(monkeypatch):
  monkeypatch.setitem(sys.modules, 'bm25s', None)
  with pytest.raises(UserError, match=r'pip install "past-jax\[study\]"'):
    attach([Example(text='t')], 1)
