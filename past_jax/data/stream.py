"""The order in which examples come: a pure function of (n, seed), and a position that fits into a checkpoint."""

import dataclasses

import numpy as np

from past_jax.types import UserError

Position = dict[str, int]  # {'epoch', 'index', 'n'}; `index` is the next place in the epoch, always below `n`


def permutation(n: int, *seeds: int) -> np.ndarray:
  """A permutation of range(n), int64, that is the same under every numpy; `seeds` are 0 or more.

  `np.random.Generator.permutation` may change between numpy's versions, and a resumed run may meet another one; the
  raw words of a bit generator may not change.
  """
  if min(seeds) < 0:
    raise UserError(f'seed {min(seeds)}: must be 0 or more')
  words = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(n)
  return np.argsort(words, kind='stable')


@dataclasses.dataclass(frozen=True)
class Stream:
  """Endless indices into `n` examples, each epoch a permutation of its own.

  However the sequence is cut into calls of `take`, it is the same sequence.
  """

  n: int
  seed: int
  shuffle: bool = True

  def __post_init__(self):
    if self.n < 1:
      raise UserError('there is no example to stream: the data source gave none')

  def start(self) -> Position:
    return {'epoch': 0, 'index': 0, 'n': self.n}

  def take(self, position: Position, count: int) -> tuple[np.ndarray, Position]:
    """The next `count` indices, int64 of shape [count], and the position after them.

    Raises:
      UserError: the position comes from a stream over another number of examples.
    """
    if position['n'] != self.n:
      raise UserError(
        f'the data had {position["n"]} examples when this run was saved and now have {self.n}: '
        'give the same data, or start in a new workdir'
      )
    first = position['epoch'] * self.n + position['index']
    epoch, index = divmod(first + count, self.n)
    epochs = range(position['epoch'], epoch + 1)
    order = np.concatenate([self._epoch(e) for e in epochs])[position['index'] :][:count]
    return order, {'epoch': epoch, 'index': index, 'n': self.n}

  def _epoch(self, epoch: int) -> np.ndarray:
    if not self.shuffle:
      return np.arange(self.n)
    return permutation(self.n, self.seed, epoch)
