"""Buffers: the rows of judged completions that a round's updates go over, its own or those of earlier rounds too.

A row is a prompt with its members, its selection and its reference log-probs, which stay those it was collected with.
Where a round's rows go depends on the rounds before alone, so that a round that is collected again overwrites itself.
"""

from typing import NamedTuple

import jax
import numpy as np

from past_jax.types import Batch


class Buffer(NamedTuple):
  """Room for `size` rows; 0: for those of one round."""

  size: int = 0
  forgets: bool = True  # the oldest rows make room for new ones

  def places(self, before: int, new: int) -> np.ndarray:
    """Where the `new` rows of a round go, when `before` rows came before."""
    return np.arange(before, before + new) % self.size if self.size else np.arange(new)

  def filled(self, before: int, new: int) -> int:
    """How many rows, from the first one on, there are then."""
    return min(before + new, self.size) if self.size else new

  def put(self, held: Batch | None, batch: Batch, before: int) -> Batch:
    """`held` with the rows of `batch`, [size, ...] on the host whatever the round. Empty rows are zeros: no weight."""
    places = self.places(before, len(batch.length_BxG))

    def write(x, new):
      x = np.array(x)
      x[places] = new
      return x

    empty = lambda x: np.zeros((self.size, *x.shape[1:]), x.dtype)
    return jax.tree.map(write, jax.tree.map(empty, batch) if held is None else held, jax.device_get(batch))


def fresh() -> Buffer:
  """The round's own rows."""
  return Buffer()


def append(size: int) -> Buffer:
  """All rows of the stage so far, at most `size` prompts: the growing data set D_t of XPO (arXiv 2405.21046)."""
  return Buffer(size, forgets=False)


def ring(size: int) -> Buffer:
  """The last `size` rows."""
  return Buffer(size)


TABLE = {'fresh': fresh, 'append': append, 'ring': ring}
