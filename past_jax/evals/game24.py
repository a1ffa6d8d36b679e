"""The Game of 24, checked by working it out: four numbers, each used once, with + - * / and brackets, make 24."""

import re
from collections import Counter
from fractions import Fraction

from past_jax.types import Example

LONGEST = 100  # characters of an expression
_TOKEN = re.compile(r'\s*([0-9]+|[-+*/()])')
_SIGNS = str.maketrans({'×': '*', '·': '*', '÷': '/', '−': '-', '[': '(', ']': ')'})


def solves(completion: str, example: Example) -> float:
  """1 where the completion's last line with a number has an expression that makes 24 of the prompt's numbers, else 0.

  What stands before a colon or behind an equals sign does not belong to the expression. The numbers are those of
  `example.target`, or without one of the prompt. A score for the judge `text` and for the task `accuracy`.
  """
  numbers = [int(n) for n in re.findall('[0-9]+', example.target or example.prompt)]
  line = next((line for line in reversed(completion.splitlines()) if re.search('[0-9]', line)), '')
  found = worked_out(line.partition('=')[0].rpartition(':')[2])
  return float(found is not None and found[0] == 24 and Counter(found[1]) == Counter(numbers))


def worked_out(expression: str) -> tuple[Fraction, list[int]] | None:
  """(exact value, numbers used); None for what is no expression of + - * / and brackets, or divides by zero."""
  text = expression.replace('\\times', '*').replace('\\div', '/').translate(_SIGNS).strip(' .$`\t')
  tokens, at = [], 0
  while at < len(text):
    token = _TOKEN.match(text, at)
    if not token or len(text) > LONGEST:
      return None
    tokens.append(token[1])
    at = token.end()
  numbers = [int(token) for token in tokens if token.isdigit()]
  try:
    value = _chain(tokens, ('+', '-'), lambda: _chain(tokens, ('*', '/'), lambda: _atom(tokens)))
  except (_Malformed, ZeroDivisionError):
    return None
  return (value, numbers) if not tokens else None


class _Malformed(Exception):
  pass


def _chain(tokens: list[str], signs: tuple[str, str], operand) -> Fraction:
  """Operands joined by either sign, from the left."""
  value = operand()
  while tokens and tokens[0] in signs:
    sign, right = tokens.pop(0), operand()
    value = {'+': value.__add__, '-': value.__sub__, '*': value.__mul__, '/': value.__truediv__}[sign](right)
  return value


def _atom(tokens: list[str]) -> Fraction:
  token = tokens.pop(0) if tokens else ''
  if token.isdigit():
    return Fraction(int(token))
  if token != '(':
    raise _Malformed
  value = _chain(tokens, ('+', '-'), lambda: _chain(tokens, ('*', '/'), lambda: _atom(tokens)))
  if not tokens or tokens.pop(0) != ')':
    raise _Malformed
  return value
