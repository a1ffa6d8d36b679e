"""past sample: completions for the prompts of a JSONL file.

A row's tokens depend on the model, the flags, the seed and the row's number in the file: not on --batch, on its batch
mates, or on where an earlier command stopped (but for ties within the rounding of float arithmetic).
"""

import functools
import math

import jax
import numpy as np
from absl import flags

from past_jax import commands, sampler
from past_jax import mesh as mesh_lib
from past_jax.commands import rows
from past_jax.render import pack
from past_jax.types import Prompts, UserError

DECISIVE = (  # flags that decide the results
  'group',
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


def define() -> flags.FlagValues:
  values = flags.FlagValues()
  rows.model_flags(values)
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  real = functools.partial(flags.DEFINE_float, flag_values=values)
  prompts = 'JSONL file; a row has prompt, a string used as it is, or messages, a chat'
  flags.DEFINE_string('prompts', None, prompts, flag_values=values)
  integer('group', 4, 'completions per prompt', 1)
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
  return values


def check(fields) -> str:
  if 'completions' in fields:
    return 'the row has a field completions already, which past sample writes; rename it.'
  return rows.check_prompt(fields)


def run(argv: list[str]) -> int:
  values = define()
  summary = 'completions for the prompts of a JSONL file. Adds to each row: completions, a list of {text, ids, logp,'
  summary += ' finished}; logp is the sum over ids at temperature 1. The same command again continues the out file.'
  if commands.parse('sample', values, argv, summary, ('model', 'prompts', 'out')) is None:
    return 0
  made_by = rows.made_by('sample', values, DECISIVE)
  return rows.fill('sample', values.prompts, values.out, made_by, check, lambda: start(values))


@functools.partial(jax.jit, static_argnames=('policy', 'group', 'length', 'slots'))
def program(policy, params, seed, row_B, prompts, stop_ids, scalars, **options):
  """Completions of B prompts, whose keys come from their numbers in the file: (ids, length, finished, logps)."""
  keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(row_B)
  found = sampler.sample(policy, params, keys_B, prompts, stop_ids=stop_ids, **options, **scalars)
  return found.ids_BxGxT, found.length_BxG, found.finished_BxG, found.logps_BxGxT


def start(values: flags.FlagValues):
  model, read, mesh, size = rows.load(values)
  tokenizer, context = model.tokenizer, model.config.context
  longest = values.max_prompt_length or context - values.max_new_tokens
  if longest < 1 or longest + values.max_new_tokens > context:
    raise UserError(
      f'--max_prompt_length and --max_new_tokens={values.max_new_tokens} together exceed the {context} tokens of the '
      "model's context."
    )
  try:
    sampler.layout(values.slots, size, values.group, mesh_lib.batch_ways(mesh))
  except UserError as error:
    raise UserError(f'--{error}') from None
  stop_ids = list(tokenizer.stop_ids)
  for text in values.stop or ():
    if len(ids := tokenizer.encode(text)) != 1:
      raise UserError(f'--stop={text!r} is {len(ids)} tokens to this model; a stop text is exactly one.')
    stop_ids += ids
  scalars = {name: values[name].value for name in ('temperature', 'top_k', 'top_p', 'min_p')}
  scalars['top_k'] = min(values.top_k, model.config.vocab)
  options = {'group': values.group, 'length': values.max_new_tokens, 'slots': values.slots}
  generate = functools.partial(program, model.policy, **options)
  params = read()
  trimmed = 0

  def step(part):
    nonlocal trimmed
    prompts = [rows.prompt_ids(tokenizer, row) for row in part]
    for row, ids in zip(part, prompts):
      if not ids:
        raise UserError(f'{row.where}: the prompt is empty, and this tokenizer begins no text by itself (no BOS).')
    P = rows.bucket(max(map(len, prompts)), longest)
    ids_BxP, length_B, _ = pack(tokenizer, rows.filled(prompts, size), P)
    trimmed += sum(len(ids) > longest for ids in prompts)
    row_B = np.array([row.number for row in rows.filled(part, size)], np.int32)
    with jax.set_mesh(mesh):
      batch = mesh_lib.put_batch(mesh, (row_B, Prompts(ids_BxP, length_B)))
      found = rows.host(generate(params, values.seed, *batch, np.array(stop_ids, np.int32), scalars))
    groups = [completions(tokenizer, row, *group) for row, *group in zip(part, *found)]
    return [{'completions': group} for group in groups], sum(len(c['ids']) for group in groups for c in group)

  def remarks():
    return f' {trimmed} prompts were cut on the left to {longest} tokens.' if trimmed else ''

  return step, size, remarks


def completions(tokenizer, row, ids_GxT, length_G, finished_G, logps_GxT) -> list[dict]:
  out = []
  for ids, length, finished, logps in zip(ids_GxT, length_G, finished_G, logps_GxT):
    ids, logp = ids[:length].tolist(), float(logps.sum(dtype=np.float64))
    if not math.isfinite(logp):
      raise UserError(f'{row.where}: log-probs are not finite; try --dtype=float32, or look at the weights.')
    text = tokenizer.decode(ids[:-1] if finished else ids)
    out.append({'text': text, 'ids': ids, 'logp': round(logp, 6), 'finished': bool(finished)})
  return out
