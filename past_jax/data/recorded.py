"""Completions that somebody recorded for passages, a teacher's for one, as the passages' given completions."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from past_jax.types import Example, UserError


def attach(examples: Sequence[Example], path: str) -> tuple[Example, ...]:
  """The examples with the completions of the rows that have their passage, behind the anchors that they have.

  Args:
    path: JSON Lines of {'context' or 'text': the passage, 'completions': [...]}; several rows may be of one passage.
      Passages are compared up to white space; rows of other passages, and other keys, are left alone.

  Raises:
    UserError: the file or a row of it cannot be read, or some passage has no completion there.
  """
  found: dict[str, list[str]] = {}
  for number, line in enumerate(_lines(path), 1):
    if line.strip():
      passage, completions = _row(line, f'{path}:{number}')
      found.setdefault(_key(passage), []).extend(completions)
  lacking = [e.where or f'row {i}' for i, e in enumerate(examples) if not found.get(_key(e.text))]
  if lacking:
    raise UserError(
      f'{path} has no completions for {len(lacking)} of {len(examples)} passages, {lacking[0]} first: leave those out '
      'of the data, or check that --config.data.text names the column with the same passages.'
    )
  return tuple(dataclasses.replace(e, anchors=(*e.anchors, *found[_key(e.text)])) for e in examples)


def _lines(path: str) -> list[str]:
  try:
    with Path(path).expanduser().open(encoding='utf-8') as file:
      return list(file)
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'--config.data.recorded={path} cannot be read: {error}.') from error


def _row(line: str, where: str) -> tuple[str, list[str]]:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise UserError(f'{where}: not a line of JSON: {error}') from error
  if not isinstance(row, dict):
    raise UserError(f'{where}: a row must be an object with a passage and its completions.')
  passage, completions = row.get('context', row.get('text')), row.get('completions')
  strings = isinstance(completions, list) and all(isinstance(c, str) for c in completions)
  if not isinstance(passage, str) or not strings:
    raise UserError(f"{where}: needs the passage, 'context' or 'text', and 'completions', a list of strings.")
  return passage, completions


def _key(passage: str) -> str:
  return ' '.join(passage.split())
