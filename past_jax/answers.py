"""The answer in a completion: the one place where text becomes something that can be compared and counted.

A number has one spelling, whatever it was written as: '1,234.50', '$1234.5' and '\\frac{2469}{2}' are all '1234.5'.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from past_jax.types import UserError

DIGITS = 1000  # of one number; what has more is no answer (and Python refuses to read some thousands of digits)

_WHOLE = r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)'  # commas count only between groups of three digits
_DECIMAL = rf'(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?'
# A minus directly after a word or a bracket is a hyphen or a subtraction: 10-5, (3)-2.
_NUMBER = re.compile(
  r'(?P<minus>(?<![\w)\]}])-)?(?:\\?[$€£¥] ?(?P<after>-)?)?'
  rf'(?:(?P<whole>[0-9]+) (?=[0-9]+/[0-9]))?(?P<top>{_DECIMAL})(?: ?/ ?(?P<bottom>{_DECIMAL}))?'
)
_MINUS = str.maketrans('−﹣－', '---', '\u200b')  # the minus sign and its wide forms


def extract(text: str, rule: str) -> str | None:
  """The answer in `text` by one of RULES; None: there is none.

  Raises:
    UserError: an unknown rule.
  """
  if rule not in RULES:
    raise UserError(f'rule={rule!r}: an answer is extracted by one of {", ".join(RULES)}.')
  return RULES[rule](text)


def same(a: str | None, b: str | None) -> bool:
  """Both are answers, equal as numbers or else as words: case, spaces and marks at the end do not count."""
  return a is not None and b is not None and canonical(a) == canonical(b)


def canonical(answer: str) -> str:
  """One spelling of all answers that are `same`: the key to count votes by."""
  text = _plain(answer).strip().strip('$').rstrip('.,;:!').strip()
  match = _NUMBER.fullmatch(text.removesuffix('\\%').removesuffix('%').rstrip())
  value = _value(match) if match else None
  return ' '.join(text.casefold().split()) if value is None else _written(value)


def _plain(text: str) -> str:
  """Without the LaTeX that only sets a number: fractions become a/b, separators of thousands commas."""
  text = text.translate(_MINUS).replace('\xa0', ' ')
  if '\\' in text or '{,}' in text:
    text = re.sub(r'\{,\}(?=[0-9]{3})', ',', re.sub(r'\\(?:left|right|[!;:, ])', '', text))
    text = re.sub(r'\\[dt]?frac\s*([0-9])\s*([0-9])', r'\\frac{\1}{\2}', text)
    text = re.sub(r'(?<=[0-9])\s*\\[dt]?frac(?=\{)', r' \\frac', text)  # 3\frac{1}{2} is a mixed number
    text = re.sub(r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}', r'\1/\2', text)
  return text


def _value(match: re.Match) -> Fraction | None:
  if len(match[0]) > DIGITS:
    return None
  read = lambda part: Fraction(part.replace(',', ''))
  top, bottom = read(match['top']), read(match['bottom'] or '1')
  if not bottom:
    return None
  size = read(match['whole'] or '0') + top / bottom
  return -size if match['minus'] or match['after'] else size


def _written(value: Fraction) -> str:
  """As a decimal where that ends, else as a fraction in its lowest terms."""
  places = next((k for k in range(40) if 10**k % value.denominator == 0), None)
  if not places:
    return str(value)
  digits = f'{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}'
  return '-' * (value < 0) + f'{digits[:-places]}.{digits[-places:]}'


def _line(text: str) -> str | None:
  """The first line that has words."""
  return next((line.strip() for line in text.splitlines() if line.strip()), None)


def _last_number(text: str) -> str | None:
  """The first number after the last '####' (GSM8K's mark), else the last number."""
  text = _plain(text)
  found = list(_NUMBER.finditer(text.rpartition('####')[2]))[:1] if '####' in text else []
  found = found or list(_NUMBER.finditer(text))[-1:]
  value = _value(found[0]) if found else None
  return None if value is None else _written(value)


def _boxed(text: str) -> str | None:
  """What stands in the last \\boxed{...} that is closed."""
  opened, last = [], (-1, -1)
  for mark in re.finditer(r'(?P<box>\\f?boxed\s*\{)|\\.|[{}]', text, re.DOTALL):
    if mark['box'] or mark[0] == '{':
      opened.append(mark.end() if mark['box'] else -1)
    elif mark[0] == '}' and opened:
      last = max(last, (opened.pop(), mark.start()))
  inside = re.sub(r'\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}', r'\1', text[last[0] : last[1]]) if last[0] >= 0 else ''
  return canonical(inside) or None


def _choice(text: str) -> str | None:
  """The letter A to E that is named as the answer, else the last that stands like one: '(B)', 'b)', 'B.', 'B'."""
  letter = r'\(?\*{0,2}(?P<letter>[A-E](?!\w)|[a-e](?=\s*(?:[).,:*}]|$)))'
  text = re.sub(r'\\(?:text|mathrm|textbf|boxed)\s*\{', '', text)
  named = re.finditer(rf'(?i:\banswer|\bchoice|\boption)\b[*\s]{{0,9}}(?i:is|:|=)?[*\s$:]{{0,9}}{letter}', text)
  marked = re.finditer(r'\((?P<letter>[A-Ea-e])\)|(?<![\w(])(?P<first>[A-Ea-e])\)', text)
  alone = re.finditer(r"(?<![\w'])(?P<letter>[B-E]|A(?!\s+[a-z]))(?![\w'])", text)
  for found in (named, marked, alone):
    if last := next(reversed([m['letter'] or m['first'] for m in found]), None):
      return last.upper()
  return canonical(text).upper() if canonical(text) in tuple('abcde') else None


def _tag(text: str) -> str | None:
  """What the last <answer>...</answer> holds."""
  found = re.findall(r'<answer>((?:(?!<answer>).)*?)</answer>', text, re.DOTALL | re.IGNORECASE)
  return canonical(found[-1]) or None if found else None


RULES: dict[str, Callable[[str], str | None]] = {
  'line': _line,
  'last_number': _last_number,
  'boxed': _boxed,
  'choice': _choice,
  'tag': _tag,
}
