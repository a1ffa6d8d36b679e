"""past sample: completions for the prompts of a JSONL file, and which of them is best (best-of-N, arXiv 2412.01951).

With --improve (improve.py) given responses are improved.

A row's tokens depend on the model, the flags, the seed and the row's number in the file: not on --batch, on its batch
mates, or on where an earlier command stopped (but for ties within the rounding of float arithmetic). Completion k is
the same one however many are drawn.
"""

import functools
import math

from absl import flags

from past_jax import answers, commands
from past_jax.commands import decode, improve, rows
from past_jax.judges.majority import answer_of, shares
from past_jax.types import UserError

BEST = ('best_of', 'judge', 'rule', 'adaptive', 'delta')  # flags that decide the results with --best_of


def define() -> flags.FlagValues:
  values = flags.FlagValues()
  rows.model_flags(values)
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  real = functools.partial(flags.DEFINE_float, flag_values=values)
  prompts = 'JSONL file; a row has prompt, a string used as it is, or messages, a chat'
  flags.DEFINE_string('prompts', None, prompts, flag_values=values)
  integer('group', 4, 'completions per prompt', 1)
  decode.define(values)
  integer('best_of', None, 'draw so many completions per prompt, in place of --group, and say which is best', 1)
  judged = 'what makes one the best: its log-prob, that per token, or the votes for its answer'
  flags.DEFINE_enum('judge', 'likelihood', ['likelihood', 'length_normalised', 'majority'], judged, flag_values=values)
  where = 'where the answer of a completion stands, for --judge=majority'
  flags.DEFINE_enum('rule', 'last_number', list(answers.RULES), where, flag_values=values)
  early = 'with --best_of: draw --group at a time, and no more for a prompt of which k completions are enough, '
  early += 'the likeliest of them having a probability of at least ln(2 / delta) / k'
  flags.DEFINE_bool('adaptive', False, early, flag_values=values)
  real('delta', 0.1, 'of --adaptive: how improbable it may be that the likeliest completion was missed', 1e-9, 1)
  improve.define(values)
  return values


def check(fields) -> str:
  if twice := [name for name in ('completions', 'best') if name in fields]:
    return f'the row has a field {twice[0]} already, which past sample writes; rename it.'
  return rows.check_prompt(fields)


def run(argv: list[str]) -> int:
  values = define()
  summary = 'completions for the prompts of a JSONL file. Adds to each row: completions, a list of {text, ids, logp,'
  summary += ' finished}; logp is the sum over ids at temperature 1. With --best_of also best, the number of the best'
  summary += ' one (null: none has an answer), and the score of each. With --improve a row has a response, and gets'
  summary += ' improved, the text that is kept, and chain, a list of {text, logp, and with --judge_model score} from'
  summary += ' the given response on. The same command again continues the out file.'
  if commands.parse('sample', values, argv, summary, ('model', 'prompts', 'out')) is None:
    return 0
  improve.check(values, ('group', *BEST))
  check_best(values)
  fill = functools.partial(rows.fill, 'sample', values.prompts, values.out)
  if values.improve:
    return fill(improve.made_by(values), improve.check_row, lambda: improve.start(values))
  best = rows.made_by('sample', values, BEST) if values.best_of else {}
  made_by = rows.made_by('sample', values, decode.DECISIVE) | best
  made_by['group'] = values.best_of or values.group  # drawn in parts, they are the same
  return fill(made_by, check, lambda: start(values))


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


def start(values: flags.FlagValues):
  model, read, mesh, size = rows.load(values)
  most = values.best_of or values.group  # completions per prompt, `at_once` in a call
  at_once = min(values.group, most) if values.adaptive else most
  longest, draw = decode.decoder(values, model, mesh, size, at_once)
  params = read()
  trimmed, drawn = 0, []

  def step(part):
    nonlocal trimmed
    prompts = [rows.prompt_ids(model.tokenizer, row) for row in part]
    trimmed += sum(len(ids) > longest for ids in prompts)
    groups = [[] for _ in part]
    for first in range(0, most, at_once):
      needs = [enough(group, values.delta) is None if values.adaptive else True for group in groups]
      if not any(needs):
        break
      for group, needed, new in zip(groups, needs, draw(params, part, prompts, first, needs)):
        group += new[: most - first] if needed else []
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
