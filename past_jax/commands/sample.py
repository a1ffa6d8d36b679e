"""past sample: completions for the prompts of a JSONL file, and which of them is best (best-of-N, arXiv 2412.01951).

A row's tokens depend on the model, the flags, the seed and the row's number in the file: not on --batch, on its batch
mates, or on where an earlier command stopped (but for ties within the rounding of float arithmetic). Completion k is
the same one however many are drawn.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from past_jax import answers, commands, sampler
from past_jax import mesh as mesh_lib
from past_jax.commands import rows
from past_jax.judges.majority import answer_of, shares
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
BEST = ('best_of', 'judge', 'rule', 'adaptive', 'delta')  # the same, with --best_of


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
  integer('best_of', None, 'draw so many completions per prompt, in place of --group, and say which is best', 1)
  judged = 'what makes one the best: its log-prob, that per token, or the votes for its answer'
  flags.DEFINE_enum('judge', 'likelihood', ['likelihood', 'length_normalised', 'majority'], judged, flag_values=values)
  where = 'where the answer of a completion stands, for --judge=majority'
  flags.DEFINE_enum('rule', 'last_number', list(answers.RULES), where, flag_values=values)
  early = 'with --best_of: draw --group at a time, and no more for a prompt of which k completions are enough, '
  early += 'the likeliest of them having a probability of at least ln(2 / delta) / k'
  flags.DEFINE_bool('adaptive', False, early, flag_values=values)
  real('delta', 0.1, 'of --adaptive: how improbable it may be that the likeliest completion was missed', 1e-9, 1)
  return values


def check(fields) -> str:
  if twice := [name for name in ('completions', 'best') if name in fields]:
    return f'the row has a field {twice[0]} already, which past sample writes; rename it.'
  return rows.check_prompt(fields)


def run(argv: list[str]) -> int:
  values = define()
  summary = 'completions for the prompts of a JSONL file. Adds to each row: completions, a list of {text, ids, logp,'
  summary += ' finished}; logp is the sum over ids at temperature 1. With --best_of also best, the number of the best'
  summary += ' one (null: none has an answer), and the score of each. The same command again continues the out file.'
  if commands.parse('sample', values, argv, summary, ('model', 'prompts', 'out')) is None:
    return 0
  check_best(values)
  best = rows.made_by('sample', values, BEST) if values.best_of else {}
  made_by = rows.made_by('sample', values, DECISIVE) | best
  made_by['group'] = values.best_of or values.group  # drawn in parts, they are the same
  return rows.fill('sample', values.prompts, values.out, made_by, check, lambda: start(values))


def check_best(values: flags.FlagValues) -> None:
  """What --best_of and the flags that belong to it ask of the others."""
  stray = [name for name in BEST[1:] if values[name].present]
  if stray and not values.best_of:
    raise UserError(f'--{stray[0]} says which of N completions is best: set --best_of=N.')
  if values.best_of and values['group'].present and not values.adaptive:
    raise UserError('--best_of says how many completions are drawn: leave --group out, which is for --adaptive.')
  if values.adaptive and values.judge != 'likelihood':
    raise UserError(f'--adaptive looks for the likeliest completion, not the best by --judge={values.judge}.')
  if values.adaptive and (values.temperature, values.top_p, values.top_k, values.min_p) != (1, 1, 0, 0):
    raise UserError('--adaptive counts samples of the model itself: temperature 1, no top_p, top_k or min_p.')


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


def start(values: flags.FlagValues):
  model, read, mesh, size = rows.load(values)
  tokenizer, context = model.tokenizer, model.config.context
  most = values.best_of or values.group  # completions per prompt, `at_once` in a call
  at_once = min(values.group, most) if values.adaptive else most
  longest = values.max_prompt_length or context - values.max_new_tokens
  if longest < 1 or longest + values.max_new_tokens > context:
    raise UserError(
      f'--max_prompt_length and --max_new_tokens={values.max_new_tokens} together exceed the {context} tokens of the '
      "model's context."
    )
  try:
    sampler.layout(values.slots, size, at_once, mesh_lib.batch_ways(mesh))
  except UserError as error:
    raise UserError(f'--{error}') from None
  stop_ids = list(tokenizer.stop_ids)
  for text in values.stop or ():
    if len(ids := tokenizer.encode(text)) != 1:
      raise UserError(f'--stop={text!r} is {len(ids)} tokens to this model; a stop text is exactly one.')
    stop_ids += ids
  scalars = {name: values[name].value for name in ('temperature', 'top_k', 'top_p', 'min_p')}
  scalars['top_k'] = min(values.top_k, model.config.vocab)
  options = {'group': at_once, 'length': values.max_new_tokens, 'slots': values.slots}
  generate = functools.partial(program, model.policy, **options)
  params = read()
  trimmed, drawn = 0, []

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
    groups = [[] for _ in part]
    for first in range(0, most, at_once):
      needs = [enough(group, values.delta) is None if values.adaptive else True for group in groups]
      if not any(needs):
        break
      todo_B = np.array([*needs, *[False] * (size - len(part))])
      with jax.set_mesh(mesh):
        batch = mesh_lib.put_batch(mesh, (row_B, Prompts(ids_BxP, length_B), todo_B))
        found = rows.host(generate(params, values.seed, *batch, first, np.array(stop_ids, np.int32), scalars))
      for row, group, needed, *new in zip(part, groups, needs, *found):
        group += completions(tokenizer, row, *new)[: most - first] if needed else []
    tokens = sum(len(c['ids']) for group in groups for c in group)
    if values.adaptive:
      groups = [group[: enough(group, values.delta)] for group in groups]
    drawn.extend(map(len, groups))
    return [judged(group, values) if values.best_of else {'completions': group} for group in groups], tokens

  def remarks():
    cut = f' {trimmed} prompts were cut on the left to {longest} tokens.' if trimmed else ''
    used = f' {sum(drawn) / len(drawn):.1f} of up to {most} completions were enough for a prompt, on average.'
    return cut + (used if values.adaptive else '')

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


def enough(group: list[dict], delta: float) -> int | None:
  """The first k of completions of which, by arXiv 2412.01951's rule of adaptive sampling, no more are needed.

  max_{j<=k} p(y_j | x) >= ln(2 / delta) / k: a likelier one would have been drawn by then with a probability of at
  least 1 - delta / 2. None: not yet.
  """
  best = -math.inf
  for k, c in enumerate(group, 1):
    best = max(best, c['logp'])
    if best >= math.log(math.log(2 / delta) / k):
      return k
  return None


def judged(group: list[dict], values: flags.FlagValues) -> dict:
  """The completions with their scores, and the number of the best, the first of equals."""
  if values.judge == 'majority':
    scores = shares([answer_of(c['text'], values.rule) for c in group])
  else:
    scores = [c['logp'] / (len(c['ids']) if values.judge == 'length_normalised' else 1) for c in group]
  known = [k for k, score in enumerate(scores) if score is not None]
  rounded = [score if score is None else round(score, 6) for score in scores]
  return {
    'completions': [{**c, 'score': score} for c, score in zip(group, rounded, strict=True)],
    'best': max(known, key=lambda k: scores[k], default=None),
  }
