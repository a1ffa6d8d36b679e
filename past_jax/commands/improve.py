"""past sample --improve: given responses, improved again and again, and which of each chain to keep (arXiv 2310.00898).

y_i is a sample of the model, which reads y_(i-1) as the draft of its instruction. A judge, if there is one, is a model
with a scalar head (past export --role=judge). With --judge_reads=draft it reads the same instruction, and the score
of y_i is the gain g(y_i, y_(i-1)) - g(y_(i-1), y_(i-1)), above 0 if it is better than its draft: the judge's loss knows
differences alone, so what no gain is it has to say itself. The worth of y_i is the sum of the gains up to it. With
--judge_reads=prompt it reads the prompt alone, and worth and score are the reward of y_i. The noise of y_i is that of
completion i - 1 of `past sample`: a longer chain begins as a shorter one.
"""

import math
import re
from collections.abc import Sequence

import jax
from absl import flags

from past_jax import mesh as mesh_lib
from past_jax.commands import decode, rows
from past_jax.render import AS_IT_IS, pack, prompt_ids
from past_jax.scores import group_scores
from past_jax.text import pack_completions
from past_jax.types import Example, Prompts, UserError

FLAGS = ('instruction', 'iterations', 'chat', 'judge_model', 'judge_reads', 'keep', 'until_no_gain')
ADDED = ('improved', 'chain')
program = jax.jit(group_scores, static_argnums=0)


def define(values: flags.FlagValues) -> None:
  improve = 'improve the response of each row instead; the flags from here to until_no_gain say how: '
  flags.DEFINE_bool('improve', False, improve + ', '.join(FLAGS), flag_values=values)
  instruction = 'of --improve: what the model reads, over {prompt} and {draft}: config.improve.instruction of its run'
  flags.DEFINE_string('instruction', None, instruction, flag_values=values)
  iterations = 'of --improve: how often; each time the draft is what was written the time before'
  flags.DEFINE_integer('iterations', 1, iterations, 1, flag_values=values)
  chat = "of --improve: the instruction is a user's message in the model's chat template"
  flags.DEFINE_bool('chat', False, chat, flag_values=values)
  judge = 'of --improve: a judge of the same tokenizer, which past export --role=judge or transformers wrote'
  flags.DEFINE_string('judge_model', None, judge, flag_values=values)
  reads = 'of --judge_model: draft, a judge of gaps, which says how much better a response is than its draft, '
  reads += 'or prompt, a reward model'
  flags.DEFINE_enum('judge_reads', None, ['draft', 'prompt'], reads, flag_values=values)
  keep = 'of --improve: the last response, or the best of the chain, the given one included: that of the largest '
  keep += 'reward, or sum of gains up to it'
  flags.DEFINE_enum('keep', 'last', ['last', 'best'], keep, flag_values=values)
  until = 'of --improve: a row ends with a response whose gain is not above 0, or whose reward not above that of its '
  until += 'draft, and keeps the draft'
  flags.DEFINE_bool('until_no_gain', False, until, flag_values=values)


def check(values: flags.FlagValues, others: Sequence[str]) -> None:
  """What --improve and the flags that belong to it ask. `others`: flags that say how many completions are drawn."""
  stray = [name for name in FLAGS if values[name].present]
  if not values.improve:
    if stray:
      raise UserError(f'--{stray[0]} is for responses that are improved: set --improve.')
    return
  if taken := [name for name in others if values[name].present]:
    raise UserError(f'--improve writes one response at a time: leave --{taken[0]} out.')
  template = values.instruction or ''
  if '{draft}' not in template:
    what = '--instruction, a template over {prompt} and {draft}' if not template else '{draft} in --instruction'
    raise UserError(f'--improve needs {what}: what the model reads to improve a draft.')
  if unknown := re.findall(r'\{(?:text|anchor|related|feedback)\}', template):
    raise UserError(f'--instruction has {unknown[0]}, and rows have {{prompt}} and {{draft}} only.')
  if values.judge_model and not values.judge_reads:
    raise UserError('--judge_model needs --judge_reads: draft for a judge of gaps, prompt for a reward model.')
  needy = {'until_no_gain': values.until_no_gain, 'keep=best': values.keep == 'best', 'judge_reads': values.judge_reads}
  if not values.judge_model and (without := [flag for flag, on in needy.items() if on]):
    raise UserError(f'--{without[0]} needs a judge: set --judge_model.')


def made_by(values: flags.FlagValues) -> dict:
  """What decides the results."""
  judge = {'judge_weights': rows.weights(values.judge_model)} if values.judge_model else {}
  return rows.made_by('sample', values, ('improve', *FLAGS, *decode.DECISIVE)) | judge


def check_row(fields) -> str:
  if twice := [name for name in ADDED if name in fields]:
    return f'the row has a field {twice[0]} already, which past sample --improve writes; rename it.'
  if problem := rows.check_prompt(fields):
    return problem
  if 'prompt' not in fields:
    return '--improve puts the prompt into its instruction: give prompt, a string, in place of messages.'
  if 'response' not in fields:
    what = 'a row has response, the text to improve; without --improve past sample writes completions to take it from'
    return f'{what}. Fields present: {", ".join(fields)}.'
  return '' if isinstance(fields['response'], str) else 'response is a string.'


class Chain:
  """The responses of one row so far."""

  def __init__(self, row: rows.Row):
    self.row, self.live = row, True
    self.entries = [{'text': row.fields['response'], 'score': None, 'logp': None}]
    self.worth = [0.0]  # of each entry

  @property
  def draft(self) -> str:
    return self.entries[-1]['text']

  def begin(self, score: float) -> None:
    """The given response has a reward."""
    self.entries[0]['score'], self.worth = score, [score]

  def add(self, completion: dict, score: float | None, of_gap: bool, until_no_gain: bool) -> None:
    before = self.worth[-1]
    self.entries.append({'text': completion['text'], 'score': score, 'logp': completion['logp']})
    if score is not None:
      self.worth.append(before + score if of_gap else score)
      self.live = not until_no_gain or (score if of_gap else score - before) > 0

  def kept(self, keep: str) -> str:
    """The first of equals. A chain that has ended keeps the draft of its last response."""
    best = max(range(len(self.worth)), key=self.worth.__getitem__)
    return self.entries[best if keep == 'best' else len(self.entries) - 1 - (not self.live)]['text']

  def fields(self, keep: str, judged: bool) -> dict:
    rounded = lambda x: None if x is None else round(x, 6)
    scored = lambda entry: {'score': rounded(entry['score'])} if judged else {}
    chain = [{'text': e['text'], **scored(e), 'logp': e['logp']} for e in self.entries]
    return {'improved': self.kept(keep), 'chain': chain}


def start(values: flags.FlagValues):
  model, read, mesh, size = rows.load(values)
  tokenizer = model.tokenizer
  longest, draw = decode.decoder(values, model, mesh, size, 1)
  score, of_gap = None, values.judge_reads == 'draft'
  if values.judge_model:
    score, cut = judge(values, tokenizer, mesh, size)
  params = read()
  trimmed, written, ended, done = 0, 0, 0, 0

  def ids_of(chain: Chain, template: str) -> list[int]:
    with rows.said_of(chain.row):
      example = Example(prompt=chain.row.fields['prompt'])
      return prompt_ids(tokenizer, template, example, values.chat, draft=chain.draft)

  def given(chain: Chain) -> list[int]:
    with rows.said_of(chain.row):
      return [*tokenizer.encode(chain.draft), tokenizer.eos_id]

  def step(part):
    nonlocal trimmed, written, ended, done
    chains, tokens = [Chain(row) for row in part], 0
    if score and not of_gap:
      prompts, responses = [ids_of(chain, AS_IT_IS) for chain in chains], [[given(chain)] for chain in chains]
      for chain, (reward,) in zip(chains, score(part, prompts, responses)):
        chain.begin(reward)
    for i in range(values.iterations):
      live = [chain for chain in chains if chain.live]  # the others cost nothing any more
      if not live:
        break
      live_rows, asked = [chain.row for chain in live], [ids_of(chain, values.instruction) for chain in live]
      new = [group[0] for group in draw(params, live_rows, asked, i)]
      scores = [None] * len(live)
      if score and of_gap:
        groups = [[c['ids'], given(chain)] for c, chain in zip(new, live)]
        scores = [gap - none for gap, none in score(live_rows, asked, groups)]
      elif score:
        before = [ids_of(chain, AS_IT_IS) for chain in live]
        scores = [reward for (reward,) in score(live_rows, before, [[c['ids']] for c in new])]
      for chain, *response in zip(live, new, scores, strict=True):
        chain.add(*response, of_gap, values.until_no_gain)
      trimmed += sum(len(ids) > longest for ids in asked)
      tokens += sum(len(c['ids']) for c in new)
      written += len(new)
    ended += sum(not chain.live for chain in chains)
    done += len(chains)
    return [chain.fields(values.keep, score is not None) for chain in chains], tokens

  def remarks():
    said = f' {trimmed} prompts were cut on the left to {longest} tokens.' if trimmed else ''
    said += cut() if score else ''
    if values.until_no_gain:
      said += f' {ended} rows ended without a gain, after {written / done:.1f} of up to {values.iterations} responses'
      said += ' for a row on average.'
    return said

  return step, size, remarks


def judge(values: flags.FlagValues, tokenizer, mesh, size: int):
  """(score(rows, ids of prompts, of as many responses to each) -> scores, what to say at the end of what was cut).

  Raises:
    UserError: --judge_model is no judge, or of another tokenizer; from `score`, a score that is not finite.
  """
  from past_jax import models  # as in rows.load

  try:
    found = models.load(values.judge_model, dtype=values.dtype, rope=values.rope, judge=True)
  except UserError as error:
    raise UserError(f'--judge_model: {error}') from None
  if part := tokenizer.differs(found.tokenizer):
    raise UserError(f'--judge_model={values.judge_model} has another tokenizer than --model ({part}).')
  most, params = found.config.context, found.read(mesh)
  cut = {'prompts': 0, 'responses': 0}

  def score(part: Sequence[rows.Row], prompts, groups) -> list[list[float]]:
    fitting = [rows.fitted(tokenizer, prompt, group, most) for prompt, group in zip(prompts, groups, strict=True)]
    for prompt, group, (short, shorter) in zip(prompts, groups, fitting):
      cut['prompts'] += len(short) < len(prompt)
      cut['responses'] += sum(len(a) < len(b) for a, b in zip(shorter, group))
    prompts, groups = zip(*rows.filled(fitting, size))
    P = rows.bucket(max(map(len, prompts)), most)
    T = rows.bucket(max(len(ids) for group in groups for ids in group), most)
    ids_BxP, length_B, _ = pack(tokenizer, prompts, P)
    ids_BxGxT, length_BxG, _ = pack_completions(groups, T)
    with jax.set_mesh(mesh):
      batch = mesh_lib.put_batch(mesh, (Prompts(ids_BxP, length_B), ids_BxGxT, length_BxG))
      scores = rows.host(program(found.policy, params, *batch))[: len(part)].tolist()
    for row, found_ in zip(part, scores):
      if not all(map(math.isfinite, found_)):
        raise UserError(f'{row.where}: the score of --judge_model is not finite; try --dtype=float32.')
    return scores

  def remark() -> str:
    return ''.join(f' {n} {name} were cut to fit the {most} tokens of the judge.' for name, n in cut.items() if n)

  return score, remark
