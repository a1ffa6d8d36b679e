"""Whether a short answer is the expected one, by its words (the scorers of SQuAD v1.1, arXiv 1606.05250)."""

import re
import string
from collections import Counter


def normalise(text: str) -> str:
  """Lower case, without punctuation, articles and surplus spaces."""
  text = ''.join(' ' if c in string.punctuation else c for c in text.lower())
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def first_line(text: str) -> str:
  return text.strip().splitlines()[0] if text.strip() else ''


def contains(output: str, answer: str) -> float:
  """1 where the answer's words stand, in order and together, in the first line of the output."""
  wanted = normalise(answer)
  return float(bool(wanted) and f' {wanted} ' in f' {normalise(first_line(output))} ')


def exact(output: str, answer: str) -> float:
  """1 where the first line of the output is the answer."""
  return float(bool(normalise(answer)) and normalise(first_line(output)) == normalise(answer))


def f1(output: str, answer: str) -> float:
  """Harmonic mean of precision and recall of the words of the first line of the output."""
  said, wanted = (normalise(text).split() for text in (first_line(output), answer))
  common = sum((Counter(said) & Counter(wanted)).values())
  return 2 * common / (len(said) + len(wanted)) if common else 0.0


def verbatim(output: str, answer: str) -> float:
  """1 where all of the output is the answer, but for spaces at its ends: grids, code."""
  return float(output.strip() == answer.strip())


GRADES = {'contains': contains, 'exact': exact, 'f1': f1, 'verbatim': verbatim}
