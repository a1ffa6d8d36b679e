"""How `past sample` decodes: its flags for sampling, and completions for the prompts of some rows.

Noise comes from the seed, a row's number in its file and a completion's number: not from --batch or batch mates.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from past_jax import mesh as mesh_lib
from past_jax import sampler
from past_jax.commands import rows
from past_jax.render import pack
from past_jax.types import Prompts, UserError

DECISIVE = (  # flags that decide the results
  'max_new_tokens',
  'max_prompt_length',
  'temperature',
  'top_p',
  'top_k',
  'min_p',
  'seed',
  'dtype',
  'rope',
  'stop',
)


def define(values: flags.FlagValues) -> None:
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  real = functools.partial(flags.DEFINE_float, flag_values=values)
  integer('max_new_tokens', 128, 'tokens of a completion, end token included', 1)
  integer(
    'max_prompt_length', None, 'tokens; a longer prompt loses its beginning. By default what the context leaves', 1
  )
  real('temperature', 1.0, '0: greedy', 0)
  real('top_p', 1.0, 'sample from the likeliest tokens that make up this probability; 1: off', 1e-6, 1)
  integer('top_k', 0, 'sample from this many of the likeliest tokens; 0: off', 0)
  real('min_p', 0.0, "leave out tokens below this share of the likeliest one's probability; 0: off", 0, 1)
  integer('seed', 0, 'of the sampling', 0, 2**31 - 1)
  integer('slots', 0, 'completions decoded at a time, one that ends makes room for the next; 0: all of --batch', 0)
  stop = 'a text of one token that ends a completion too; may be repeated'
  flags.DEFINE_multi_string('stop', None, stop, flag_values=values)


@functools.partial(jax.jit, static_argnames=('policy', 'group', 'length', 'slots'))
def program(policy, params, seed, row_B, prompts, todo_B, first, stop_ids, scalars, **options):
  """Completions, from number `first` on, of the B prompts to do: (ids, length, finished, logps).

  Keys come from the prompts' numbers in the file. Prompts that are done get completions of no token.
  """
  keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(row_B)
  limit_BxG = jnp.broadcast_to(jnp.where(todo_B, options['length'], 0)[:, None], (len(todo_B), options['group']))
  more = dict(stop_ids=stop_ids, limit_BxG=limit_BxG, first=first)
  found = sampler.sample(policy, params, keys_B, prompts, **more, **options, **scalars)
  return found.ids_BxGxT, found.length_BxG, found.finished_BxG, found.logps_BxGxT


class Decoder(NamedTuple):
  longest: int  # tokens of a prompt; of a longer one the beginning is cut off
  draw: Callable[..., list[list[dict]]]  # (params, rows, ids of their prompts, first, which to do) -> their completions


def decoder(values: flags.FlagValues, model, mesh, size: int, group: int) -> Decoder:
  """By the flags; up to `size` rows and `group` completions of each in a call.

  A completion is {text, ids, logp, finished}; logp is the sum over ids at temperature 1. Those that are not to do have
  no ids.

  Raises:
    UserError: lengths exceed the context, `slots` do not fit, a stop text is several tokens; from `draw`, a prompt
      without a token, or log-probs that are not finite.
  """
  tokenizer, context = model.tokenizer, model.config.context
  longest = values.max_prompt_length or context - values.max_new_tokens
  if longest < 1 or longest + values.max_new_tokens > context:
    raise UserError(
      f'--max_prompt_length and --max_new_tokens={values.max_new_tokens} together exceed the {context} tokens of the '
      "model's context."
    )
  try:
    sampler.layout(values.slots, size, group, mesh_lib.batch_ways(mesh))
  except UserError as error:
    raise UserError(f'--{error}') from None
  stop_ids = list(tokenizer.stop_ids)
  for text in values.stop or ():
    if len(ids := tokenizer.encode(text)) != 1:
      raise UserError(f'--stop={text!r} is {len(ids)} tokens to this model; a stop text is exactly one.')
    stop_ids += ids
  scalars = {name: values[name].value for name in ('temperature', 'top_k', 'top_p', 'min_p')}
  scalars['top_k'] = min(values.top_k, model.config.vocab)
  options = {'group': group, 'length': values.max_new_tokens, 'slots': values.slots}

  def draw(params, part: Sequence[rows.Row], prompts: Sequence[list[int]], first: int = 0, todo: Sequence[bool] = ()):
    for row, ids in zip(part, prompts, strict=True):
      if not ids:
        raise UserError(f'{row.where}: the prompt is empty, and this tokenizer begins no text by itself (no BOS).')
    P = rows.bucket(max(map(len, prompts)), longest)
    ids_BxP, length_B, _ = pack(tokenizer, rows.filled(prompts, size), P)
    row_B = np.array([row.number for row in rows.filled(part, size)], np.int32)
    todo_B = np.array([*(todo or [True] * len(part)), *[False] * (size - len(part))])
    with jax.set_mesh(mesh):
      batch = mesh_lib.put_batch(mesh, (row_B, Prompts(ids_BxP, length_B), todo_B))
      args = values.seed, *batch, first, np.array(stop_ids, np.int32), scalars
      found = rows.host(program(model.policy, params, *args, **options))
    return [completions(tokenizer, row, *group) for row, *group in zip(part, *found)]

  return Decoder(longest, draw)


def completions(tokenizer, row: rows.Row, ids_GxT, length_G, finished_G, logps_GxT) -> list[dict]:
  out = []
  for ids, length, finished, logps in zip(ids_GxT, length_G, finished_G, logps_GxT):
    ids, logp = ids[:length].tolist(), float(logps.sum(dtype=np.float64))
    if not math.isfinite(logp):
      raise UserError(f'{row.where}: log-probs are not finite; try --dtype=float32, or look at the weights.')
    text = tokenizer.decode(ids[:-1] if finished else ids)
    out.append({'text': text, 'ids': ids, 'logp': round(logp, 6), 'finished': bool(finished)})
  return out
