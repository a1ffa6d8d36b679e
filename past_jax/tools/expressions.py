"""Are two expressions equal? A program of its own, which the tool `algebra` runs in the sandbox; it imports sympy.

Standard input is {'packages': folders to import from, 'seconds': of each comparison, 'pairs': [[a, b], ...]}. It prints
'ready', then 'equal' or 'different' for each pair.
"""

import json
import re
import signal
import sys

LATEX = (
  (r'\\sqrt\s*\{([^{}]*)\}', r'sqrt(\1)'),
  (r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}', r'((\1)/(\2))'),
  (r'\\(?:cdot|times)', '*'),
  (r'\\(?:left|right|[,;! ])', ''),
  (r'\\(pi|sin|cos|tan|log|ln|exp)\b', r'\1'),
  (r'(?<=[0-9]),(?=[0-9]{3}(?![0-9]))', ''),
)


# What an expression is made of. Whatever else a parser that evaluates would do could print a verdict of its own.
WRITTEN = re.compile(r'[0-9A-Za-z\s+\-*/^!(),]|\.(?![A-Za-z])|_(?!_)')
NAMES = (
  *('Symbol', 'Integer', 'Float', 'Rational', 'factorial', 'sqrt', 'root', 'Abs', 'exp', 'log', 'ln'),
  *('sin', 'cos', 'tan', 'asin', 'acos', 'atan', 'sinh', 'cosh', 'tanh', 'pi', 'E', 'I', 'oo', 'binomial'),
)


class TooLong(Exception):
  """A comparison has used its seconds."""


def plain(text: str) -> str:
  """Without LaTeX, and of 'x = 3' the right side."""
  for pattern, replacement in LATEX:
    text = re.sub(pattern, replacement, text)
  name, equals, value = text.strip().strip('$').rstrip('.').partition('=')
  return value if equals and name.strip().isidentifier() else name + equals + value


def equal(a: str, b: str) -> bool:
  import sympy
  from sympy.parsing import sympy_parser as parser

  rules = (*parser.standard_transformations, parser.convert_xor, parser.implicit_multiplication_application)
  names = {name: getattr(sympy, name) for name in NAMES} | {'__builtins__': {}}
  texts = [plain(text) for text in (a, b)]
  if any(WRITTEN.sub('', text) for text in texts):
    return False
  x, y = (parser.parse_expr(text, transformations=rules, global_dict=dict(names)) for text in texts)
  pairs = list(zip(x, y)) if isinstance(x, tuple) and isinstance(y, tuple) and len(x) == len(y) else [(x, y)]
  return all(isinstance(u, sympy.Basic) and isinstance(v, sympy.Basic) and same(u, v) for u, v in pairs)


def same(x, y) -> bool:
  return x == y or (hasattr(x, 'equals') and x.equals(y) is True)


def too_long(*_):
  raise TooLong


def main() -> None:
  order = json.load(sys.stdin)
  sys.path += order['packages']
  import sympy  # noqa: F401, so that it counts for no pair

  signal.signal(signal.SIGPROF, too_long)
  print('ready', flush=True)
  for a, b in order['pairs']:
    signal.setitimer(signal.ITIMER_PROF, order['seconds'])  # of CPU time: how busy the machine is decides nothing
    try:
      verdict = equal(a, b)
    except Exception:  # whatever an odd text makes of a parser that evaluates: it is not shown to be equal
      verdict = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    print('equal' if verdict else 'different', flush=True)


if __name__ == '__main__':
  main()
