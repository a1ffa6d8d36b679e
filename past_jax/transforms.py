"""Completions without a model: a passage as it is, or turned round so that it reads from its end (arXiv 2403.13799).

Every transform is (text, tokenizer, most, seed) -> ids, without an end token.
"""

import random
import re

from past_jax.text import Tokenizer

PIECE = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
LINKS = ('de', 'la', 'of', 'the', 'van', 'von')  # within a name: University of Oslo


def words(text: str) -> list[str]:
  """Words, and punctuation marks on their own."""
  return PIECE.findall(text)


def entities(pieces: list[str]) -> list[list[str]]:
  """The words in order, those of a name together: a run of capitalised words, and links between two of them.

  A heuristic for languages that capitalise names, not a tagger: a capital at the beginning of a sentence counts, too.
  """
  out, i = [], 0
  while i < len(pieces):
    end = i + 1  # of the name that begins at i
    if pieces[i][0].isupper():
      at = end
      while at < len(pieces) and (pieces[at][0].isupper() or pieces[at] in LINKS):
        at += 1
        if pieces[at - 1][0].isupper():
          end = at
    out.append(pieces[i:end])
    i = end
  return out


def segments(pieces: list[str], most: int, seed: int) -> list[list[str]]:
  """The words in order, cut into segments of 1 to `most`, each length as likely; a function of text and seed."""
  draw, out, i = random.Random(f'{seed} {" ".join(pieces)}'), [], 0
  while i < len(pieces):
    size = draw.randint(1, most)
    out.append(pieces[i : i + size])
    i += size
  return out


def reversed_ids(tokenizer: Tokenizer, parts: list[list[str]]) -> list[int]:
  return tokenizer.encode(' '.join(' '.join(part) for part in reversed(parts)), start=True)


TABLE = {
  'original': lambda text, tokenizer, most, seed: tokenizer.encode(text, start=True),
  'token_reversal': lambda text, tokenizer, most, seed: tokenizer.encode(text, start=True)[::-1],
  'word_reversal': lambda text, tokenizer, most, seed: reversed_ids(tokenizer, [[word] for word in words(text)]),
  'entity_reversal': lambda text, tokenizer, most, seed: reversed_ids(tokenizer, entities(words(text))),
  'segment_reversal': lambda text, tokenizer, most, seed: reversed_ids(tokenizer, segments(words(text), most, seed)),
}
