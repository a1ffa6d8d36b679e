"""Rotary frequencies under the scalings that stay fixed during a run (arXiv 2104.09864 and those below)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from past_jax.types import UserError

TYPES = ('default', 'linear', 'llama3', 'yarn', 'longrope')


def frequencies(rope: Mapping[str, Any], head_dim: int, context: int, choice: str) -> tuple[tuple[float, ...], float]:
  """Radians per position of each rotated pair, and the factor on sine and cosine.

  Args:
    rope: `rope_parameters` of one kind of layer, as transformers 5 writes them.
    context: max_position_embeddings.
    choice: 'short' or 'long', which factors of longrope. transformers chooses by the length of each row, so that a
      row's first tokens change once it grows; here one choice holds for sampler and trainer.

  Raises:
    UserError: another type, among them dynamic NTK, whose frequencies change while a row grows.
  """
  kind = rope.get('rope_type', 'default')
  if kind not in TYPES:
    raise UserError(f'rope_type {kind!r} is not supported; supported: {", ".join(TYPES)}.')
  dim = int(head_dim * rope.get('partial_rotary_factor', 1.0))
  base = rope['rope_theta']
  # Rounded to float32 where transformers does: models were trained with these roundings, and 1e-7 of a frequency is
  # 1e-3 radians at position 10000. torch's power rounds well; that of numpy in float32 depends on the machine.
  exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
  power = (float(base) ** exponent.astype(np.float64)).astype(np.float32)
  inverse = 1 / power
  if kind == 'default':
    return tuple(inverse.tolist()), 1.0
  if kind == 'longrope':
    return _longrope(rope, power, context, choice)
  factor = rope['factor']
  if kind == 'linear':
    return tuple((inverse / factor).tolist()), 1.0
  if kind == 'llama3':
    return tuple(_llama3(rope, inverse, factor).tolist()), 1.0
  return _yarn(rope, power, dim, factor)


def _llama3(rope, inverse, factor):
  """Low frequencies are divided by `factor`, high ones kept, those between interpolated (Llama 3.1)."""
  low, high, original = (rope[k] for k in ('low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'))
  turns = original * inverse / (2 * math.pi)  # over the original context
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return inverse * (kept + (1 - kept) / factor)


def _yarn(rope, power, dim, factor):
  """YaRN, arXiv 2309.00071, sections 3.2 and 3.4."""
  original, base = rope['original_max_position_embeddings'], rope['rope_theta']

  def pair(turns):  # that turns so often over the original context
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

  first, last = pair(rope.get('beta_fast') or 32), pair(rope.get('beta_slow') or 1)
  if rope.get('truncate', True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, dim - 1)
  kept = 1 - np.clip((np.arange(dim // 2, dtype=np.float32) - first) / ((last - first) or 0.001), 0, 1)

  def magnitude(weight=1.0):
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

  amplitude = rope.get('attention_factor')
  if amplitude is None:
    over, under = rope.get('mscale'), rope.get('mscale_all_dim')
    amplitude = magnitude(over) / magnitude(under) if over and under else magnitude()
  return tuple((1 / (factor * power) * (1 - kept) + 1 / power * kept).tolist()), amplitude


def _longrope(rope, power, context, choice):
  """LongRoPE, arXiv 2402.13753: a divisor for every frequency, one list for short rows and one for long ones."""
  original = rope['original_max_position_embeddings']
  factor, amplitude = rope.get('factor') or context / original, rope.get('attention_factor')
  if amplitude is None:
    amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  divisors = np.array(rope[f'{choice}_factor'], np.float32)
  if divisors.shape != power.shape:
    raise UserError(f'{choice}_factor has {len(divisors)} numbers where {len(power)} pairs are rotated.')
  return tuple((1 / (divisors * power)).tolist()), amplitude
