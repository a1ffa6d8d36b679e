"""What judges share: completions as ids, and log-probs in calls of one shape."""

import functools

import jax
import numpy as np

from past_jax.logps import group_logps
from past_jax.mesh import constrain, host
from past_jax.types import Group, Policy, Prompts


def bodies(tokenizer, group: Group) -> list[list[list[int]]]:
  """Ids of every completion, B x G lists, without the token that ended it.

  A sampled completion may have ended with a stop token of the sampler's own, such as a newline; a given one is marked
  finished when it is whole, and ends with the tokenizer's end token or with none.
  """
  ids, length, finished, source = host((group.ids_BxGxT, group.length_BxG, group.finished_BxG, group.source_BxG))

  def body(b, g):
    row = ids[b, g, : length[b, g]].tolist()
    ended = row and ((finished[b, g] and source[b, g] >= 0) or row[-1] in tokenizer.stop_ids)
    return row[:-1] if ended else row

  return [[body(b, g) for g in range(ids.shape[1])] for b in range(ids.shape[0])]


def scorer(policy: Policy, chunk: int, of=group_logps):
  """`group_logps`, or another such function, for any number of prompts, `chunk` at a time.

  Every call has the same shapes: one program, and memory that does not grow with the round. The last call is filled up
  by repeating a row.

  Returns:
    score(params, prompts, ids_NxKxT, length_NxK) -> what `of` gives, such as logps_NxKxT, numpy float32;
    `score.lower(params, P, K, T)` is the program of a call, lowered
  """
  # Replicated at the end, so that every process can read all of it.
  program = jax.jit(lambda *args: constrain(of(policy, *args)))

  def score(params, prompts: Prompts, ids_NxKxT, length_NxK) -> np.ndarray:
    rows = host((Prompts(prompts.ids_BxP, prompts.length_B), ids_NxKxT, length_NxK))
    N = len(rows[2])
    if N == 0:
      return np.zeros(ids_NxKxT.shape, np.float32)
    picks = [np.minimum(np.arange(start, start + chunk), N - 1) for start in range(0, N, chunk)]
    calls = [program(params, *jax.tree.map(functools.partial(np.take, indices=pick, axis=0), rows)) for pick in picks]
    return np.concatenate(host(calls))[:N]

  def lower(params, P: int, K: int, T: int):
    ints = lambda *shape: jax.ShapeDtypeStruct((chunk, *shape), np.int32)
    return program.lower(params, Prompts(ints(P), ints()), ints(K, T), ints(K))

  score.lower = lower
  return score
