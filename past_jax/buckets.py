"""Lengths from a small fixed set: one program for each of a few shares of the configured lengths, chosen on the host.

The programs of a set take the same arrays, of full length, and cut them inside: prompts on the left, completions on the
right. All are compiled before the first call and none later. Masks come from lengths, so a cut changes no result.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from past_jax import hlo
from past_jax.types import Batch, Prompts

MULTIPLE = 8  # of lengths that are cut


def size(full: int, share: float) -> int:
  return min(full, MULTIPLE * math.ceil(share * full / MULTIPLE))


def cut_prompts(prompts: Prompts, share: float) -> Prompts:
  P = prompts.ids_BxP.shape[1]
  return dataclasses.replace(prompts, ids_BxP=prompts.ids_BxP[:, P - size(P, share) :])


def cut(x_BxGxT, share: float):
  return x_BxGxT[:, :, : size(x_BxGxT.shape[2], share)]


def cut_batch(batch: Batch, share: float) -> Batch:
  optional = {name: getattr(batch, name) for name in ('ref_logps_BxGxT', 'old_logps_BxGxT')}
  return dataclasses.replace(
    batch,
    prompts=cut_prompts(batch.prompts, share),
    ids_BxGxT=cut(batch.ids_BxGxT, share),
    **{name: cut(x, share) for name, x in optional.items() if x is not None},
  )


def lengths(prompts: Prompts, ids_BxGxT=None, length_BxG=None, rows=slice(None)) -> list[tuple[int, int]]:
  """(longest, full length) of the prompts, and of the completions where there are some, in `rows` of B."""
  found = [(int(np.asarray(prompts.length_B)[rows].max()), prompts.ids_BxP.shape[1])]
  if ids_BxGxT is not None:
    found.append((int(np.asarray(length_BxG)[rows].max()), ids_BxGxT.shape[2]))
  return found


class Bucketed:
  """program(share, *args) for every one of `shares` (ascending, the last 1), each compiled once for a round's shapes.

  Args:
    options: of `jax.jit`; the numbers of arguments do not count `share`.
  """

  def __init__(self, program: Callable, shares: Sequence[float], **options):
    self.shares = tuple(shares)
    self._jitted = [jax.jit(functools.partial(program, share), **options) for share in self.shares]
    self._compiled: dict[str, list] = {}
    self._flops: dict[int, float] = {}
    self._current: list = []
    self._last = None

  def prepare(self, *args, phase: Callable, tick: Callable) -> None:
    """Compiles all programs for arguments of these shapes, unless done: phase('compile'), and a tick for each."""
    shapes = str(jax.tree.map(jax.numpy.shape, args))
    if shapes not in self._compiled:
      phase('compile')
      programs = []
      for program in self._jitted:
        programs.append(program.lower(*args).compile())
        tick(())
      self._compiled[shapes] = programs
    self._current = self._compiled[shapes]

  @property
  def whole(self) -> Callable:
    """The program of full lengths, to be traced."""
    return self._jitted[-1]

  def lower(self, *args):
    """The same, ready to be compiled."""
    return self.whole.lower(*args)

  def __call__(self, needed: Sequence[tuple[int, int]], *args):
    """The program of the smallest share in which every (longest, full length) of `needed` fits."""
    fits = lambda share: all(longest <= size(full, share) for longest, full in needed)
    self._last = self._current[next(i for i, share in enumerate(self.shares) if fits(share))]
    return self._last(*args)

  def flops(self) -> float:
    """Of the program that was called last: those of its products, on one device, what is computed twice included."""
    if id(self._last) not in self._flops:
      self._flops[id(self._last)] = hlo.total(hlo.costs(self._last.as_text())).flops
    return self._flops[id(self._last)]
