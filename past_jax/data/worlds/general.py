"""A little general knowledge, to replay and to measure forgetting on."""

import functools
import importlib.resources

from past_jax.types import UserError


def general(split: str) -> tuple[str, ...]:
  """Short paragraphs of everyday knowledge, half of them each: 'replay' against forgetting, 'heldout' to measure it.

  Raises:
    UserError: any other split.
  """
  if split not in ('replay', 'heldout'):
    raise UserError(f'general text has the splits replay and heldout, not {split!r}')
  return _general()[0 if split == 'replay' else 1 :: 2]


@functools.cache
def _general() -> tuple[str, ...]:
  text = importlib.resources.files('past_jax.data').joinpath('general.txt').read_text(encoding='utf-8')
  return tuple(text.splitlines())
