"""What judges share: completions as ids."""

from past_jax.mesh import host
from past_jax.types import Group


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
