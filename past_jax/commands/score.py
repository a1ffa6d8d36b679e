"""past score: log-probs of given completions, exactly those that trainer and judges compute."""

import jax
import numpy as np
from absl import flags

from past_jax import commands
from past_jax import mesh as mesh_lib
from past_jax.commands import rows
from past_jax.logps import group_logps
from past_jax.render import pack
from past_jax.text import pack_completions
from past_jax.types import Prompts, UserError

DECISIVE = ('noend', 'max_length', 'dtype', 'rope')  # flags that decide the results
PAIR = ('chosen', 'rejected')
program = jax.jit(group_logps, static_argnums=0)


def define() -> flags.FlagValues:
  values = flags.FlagValues()
  rows.model_flags(values)
  data = 'JSONL file; a row has prompt (or messages), and completion, or chosen and rejected: strings, or lists of ids'
  flags.DEFINE_string('data', None, data, flag_values=values)
  flags.DEFINE_bool(
    'noend', False, 'leave out the end token that a completion given as a string has', flag_values=values
  )
  most = 'tokens of prompt + completion: a completion longer than that loses its end, and its prompt its beginning, '
  most += 'to fit. By default the context'
  flags.DEFINE_integer('max_length', None, most, 2, flag_values=values)
  return values


def given(fields) -> tuple[str, ...]:
  return ('completion',) if 'completion' in fields else PAIR


def added(name: str) -> dict[str, str]:
  """The fields that the scores of one completion go to."""
  return {key: key if name == 'completion' else f'{key}_{name}' for key in ('logp', 'tokens', 'logps')}


def check(fields) -> str:
  if problem := rows.check_prompt(fields):
    return problem
  names = given(fields)
  missing = [name for name in names if name not in fields]
  if missing:
    return f'a row has completion, or chosen and rejected; fields present: {", ".join(fields)}.'
  if 'completion' in fields and any(name in fields for name in PAIR):
    return 'the row has both completion and chosen or rejected; keep what is meant.'
  for name in names:
    value = fields[name]
    if not isinstance(value, str) and not (isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)):
      return f'{name} is a string, or a list of ids.'
    if twice := [key for key in added(name).values() if key in fields]:
      return f'the row has a field {twice[0]} already, which past score writes; rename it.'
  return ''


def run(argv: list[str]) -> int:
  values = define()
  summary = 'log-probs of given completions. Adds to each row: logp (the sum, in nats), tokens (how many), logps (of '
  summary += 'each; null where nothing precedes it); to preference rows logp_chosen, logp_rejected and so on. '
  summary += 'The same command again continues the out file.'
  if commands.parse('score', values, argv, summary, ('model', 'data', 'out')) is None:
    return 0
  made_by = rows.made_by('score', values, DECISIVE)
  return rows.fill('score', values.data, values.out, made_by, check, lambda: start(values))


def start(values: flags.FlagValues):
  model, read, mesh, size = rows.load(values)
  tokenizer, context = model.tokenizer, model.config.context
  most = values.max_length or context
  if most > context:
    raise UserError(f"--max_length={most} exceeds the {context} tokens of the model's context.")
  params = read()
  trimmed = {'prompt': 0, 'completion': 0}

  def ids_of(row, name) -> list[int]:
    value = row.fields[name]
    if isinstance(value, str):
      with rows.said_of(row):
        return tokenizer.encode(value) + ([] if values.noend else [tokenizer.eos_id])
    if value and max(value) >= model.config.vocab:
      raise UserError(f'{row.where}: {name} has the id {max(value)}; the model knows {model.config.vocab} ids.')
    return value

  def encode(row) -> tuple[list[int], list[list[int]]]:
    prompt = rows.prompt_ids(tokenizer, row)
    completions = [ids_of(row, name) for name in given(row.fields)]
    cut_prompt, cut_completions = rows.fitted(tokenizer, prompt, completions, most)
    trimmed['prompt'] += len(cut_prompt) < len(prompt)
    trimmed['completion'] += sum(len(a) < len(b) for a, b in zip(cut_completions, completions))
    return cut_prompt, cut_completions

  def step(part):
    prompts, completions = zip(*rows.filled([encode(row) for row in part], size))
    P = rows.bucket(max(map(len, prompts)), most)
    T = rows.bucket(max(len(ids) for group in completions for ids in group), most)
    ids_BxP, length_B, _ = pack(tokenizer, prompts, P)
    ids_BxGxT, length_BxG, _ = pack_completions(completions, T)
    with jax.set_mesh(mesh):
      batch = mesh_lib.put_batch(mesh, (Prompts(ids_BxP, length_B), ids_BxGxT, length_BxG))
      logps_BxGxT = rows.host(program(model.policy, params, *batch))
    results = []
    for b, row in enumerate(part):
      names, result = given(row.fields), {}
      for name, logps, length in zip(names, logps_BxGxT[b], length_BxG[b]):
        unknown = int(length > 0 and length_B[b] == 0)  # nothing precedes the first token
        known = logps[unknown:length]
        if not np.isfinite(known).all():
          raise UserError(
            f'{row.where}: log-probs of {name} are not finite; try --dtype=float32, or look at the weights.'
          )
        keys, listed = added(name), [round(float(x), 6) for x in known]
        result |= {
          keys['logp']: round(float(known.sum(dtype=np.float64)), 6),
          keys['tokens']: len(listed),
          keys['logps']: [None] * unknown + listed,
        }
      results.append(result)
    return results, int(length_BxG[: len(part)].sum())

  def remarks():
    return ''.join(
      f' {count} {name}s were cut on the {side} to fit {most} tokens.'
      for (name, count), side in zip(trimmed.items(), ('left', 'right'))
      if count
    )

  return step, size, remarks
