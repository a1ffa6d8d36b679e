"""Texts from prompts: one completion for each of any number of prompts, by one compiled program."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from past_jax.generators import sampler
from past_jax.mesh import host, put_batch
from past_jax.render import pack
from past_jax.text import completion_text
from past_jax.types import Policy, Prompts, UserError


def writer(
  *,
  policy: Policy,
  tokenizer,
  mesh,
  prompt_length: int,
  length: int,
  chunk: int,
  stop: Sequence[str] = (),
  top_p: float = 1.0,
) -> Callable[..., list[str]]:
  """Returns write(params, key, rows, temperature, tick) -> a text for each row, without the token that ended it.

  `rows` are the ids of prompts. A row's noise comes from the key and the row's number, so `chunk` changes no text; the
  temperature is traced: 0 is greedy, and changing it compiles nothing. `tick` is given the arrays of each of the
  ceil(rows / chunk) device calls and returns them.

  Args:
    prompt_length: tokens; of a longer prompt the left is cut off, but for the BOS of a tokenizer that adds one.
    length: tokens of a completion at most, its end included.
    chunk: prompts per call; the last call is filled up. A multiple of the devices of the mesh axes data x fsdp.
    stop: texts of one token each that end a completion besides the tokenizer's own end tokens.
    top_p: of the nucleus that is sampled from.

  Raises:
    UserError: a stop text of several tokens; from `write`, an empty prompt.
  """
  generate = sampler(policy=policy, tokenizer=tokenizer, role='model', group=1, length=length, stop=stop, top_p=top_p)
  stops = {tokenizer.encode(text)[0] for text in stop}

  @jax.jit
  def program(params, keys_B, prompts, temperature):
    group = generate({'model': params}, keys_B, prompts, temperature)
    return group.ids_BxGxT[:, 0], group.length_BxG[:, 0]

  def text(ids: Sequence[int], n: int) -> str:
    return completion_text(tokenizer, ids, n - (n > 0 and int(ids[n - 1]) in stops))

  def write(
    params, key, rows: Sequence[Sequence[int]], temperature: float, tick: Callable = lambda arrays: arrays
  ) -> list[str]:
    if not all(rows):
      raise UserError('A prompt is empty, and this tokenizer begins no text by itself (no BOS): give it some words.')
    texts = []
    for start in range(0, len(rows), chunk):
      part = np.minimum(np.arange(start, start + chunk), len(rows) - 1)
      ids_BxP, length_B, _ = pack(tokenizer, [rows[i] for i in part], prompt_length)
      args = put_batch(mesh, (jax.vmap(jax.random.fold_in, (None, 0))(key, part), Prompts(ids_BxP, length_B)))
      found = host(tick(program(params, *args, np.float32(temperature))))
      texts += [text(ids, int(n)) for ids, n in zip(*found)]
    return texts[: len(rows)]

  return write
