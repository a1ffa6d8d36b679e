"""Config -> functions. The only module that knows component names, and the only one that reads a config.

`check` lists every problem in the user's words before a device is touched; `build` makes a `Run` of functions.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from past_jax import curricula, generators, judges, losses, mesh, models, render, selects, update
from past_jax.collect import Collector, Reference, collector
from past_jax.data import sources, worlds
from past_jax.data.stream import Stream
from past_jax.evals.closed_book import closed_book
from past_jax.evals.perplexity import perplexity
from past_jax.types import Example, Plan, Update, UserError

RESOURCES = ('policy', 'tokenizer')  # parameters that come from the run, not from the config
OPTIMIZERS = {'adamw': update.adamw}
KINDS = {
  'generator': generators.TABLE,
  'judge': judges.TABLE,
  'select': selects.TABLE,
  'curriculum': curricula.TABLE,
}
TERMS = ('text', 'group', 'replay')
ROLES = ('policy', 'base', 'ref')
MAY_CHANGE = ('checkpoint.', 'log.', 'eval.every')  # on resume; and every stage's `rounds`


class Stage(NamedTuple):
  name: str
  rounds: int
  batch: int  # prompts per update
  plan: Callable[[int], Plan]
  collector: Collector | None  # None: nothing is sampled
  reference: Reference | None
  render: Callable
  update: Update
  terms: tuple[str, ...]
  beta: float  # of the DPO term, for the self-test; 0 without one
  refreshes: bool
  replay: tuple[str, ...]
  replay_batch: int
  replay_length: int

  def updates(self, round_: int) -> int:
    plan = self.plan(round_)
    return plan.prompts // self.batch * plan.epochs


class Run(NamedTuple):
  seed: int
  model: models.Model
  mesh: jax.sharding.Mesh
  examples: tuple[Example, ...]
  skipped: tuple[str, ...]
  stream: Stream
  stages: tuple[Stage, ...]
  evaluate: Callable  # (params, tick) -> (metrics, samples)
  eval_calls: int
  eval_every: int
  checkpoint_every: int
  checkpoint_keep: int
  log_groups: int


# --- names and keys -----------------------------------------------------------------------------------------------


def nearest(word: str, words) -> str:
  near = difflib.get_close_matches(word, list(words), 1)
  return f' Did you mean {near[0]!r}?' if near else ''


def problems_of(table: Mapping[str, Callable], config: Mapping, where: str, ignore=()) -> list[str]:
  """What is wrong with {'name': NAME, key: value, ...} as a call of table[NAME]."""
  name, given = config['name'], {k for k in config if k not in ('name', *ignore)}
  if name not in table:
    return [f'{where}.name={name!r}: choose one of {sorted(table)}.{nearest(name, table)}']
  takes = {k: p for k, p in inspect.signature(table[name]).parameters.items() if k not in RESOURCES}
  out = []
  if strange := sorted(given - set(takes)):
    hint = 'Pick it by the config argument instead (e.g. :judge=NAME), which sets its keys. '
    out.append(f'{where}: {name!r} does not take {strange}; it takes {sorted(takes)}. {hint}')
  required = [k for k, p in takes.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
  missing = [k for k in required if k not in given and k not in ignore]
  if missing:
    out.append(f'{where}: {name!r} also needs {missing}.')
  return out


def component(table: Mapping[str, Callable], config: Mapping, where: str, **resources):
  """table[config.name](**the other keys, **the resources it names)."""
  if problems := problems_of(table, config, where):
    raise UserError('\n'.join(problems))
  make = table[config['name']]
  wanted = {k: v for k, v in resources.items() if k in inspect.signature(make).parameters}
  try:
    return make(**{k: v for k, v in plain(config).items() if k != 'name'}, **wanted)
  except (TypeError, ValueError) as error:
    raise UserError(f'{where}: {error}') from error


def plain(config) -> dict:
  """A ConfigDict as nested dicts, tuples as they are."""
  return config.to_dict() if hasattr(config, 'to_dict') else dict(config)


def flat(config, prefix='') -> dict[str, Any]:
  out = {}
  for key, value in plain(config).items():
    if isinstance(value, Mapping):
      out |= flat(value, f'{prefix}{key}.')
    else:
      out[f'{prefix}{key}'] = list(value) if isinstance(value, tuple) else value
  return out


def differences(old: Mapping, new) -> list[str]:
  """Keys that a resumed run may not change, each with both values."""
  a, b = flat(old), flat(new)
  rounds = {f'{stage}.rounds' for stage in plain(new)['stages']}
  free = lambda key: key in rounds or any(key.startswith(p) for p in MAY_CHANGE)
  show = lambda d, key: repr(d[key]) if key in d else 'absent'
  return [f'{k}: {show(a, k)} -> {show(b, k)}' for k in sorted({*a, *b}) if a.get(k) != b.get(k) and not free(k)]


# --- check --------------------------------------------------------------------------------------------------------


def check(config, devices: int) -> list[str]:
  """Every problem that can be told without data, weights or devices, one sentence each; empty: none."""
  out: list[str] = []
  shape = {axis: config.mesh[axis] for axis in mesh.AXES}
  fixed = int(np.prod([n for n in shape.values() if n != -1]))
  if list(shape.values()).count(-1) > 1 or any(n == 0 or n < -1 for n in shape.values()):
    out.append(f'config.mesh={shape}: sizes are positive, and at most one is -1 (all devices that are left).')
    return out
  if fixed > devices or (-1 not in shape.values() and devices % fixed):
    out.append(f'config.mesh={shape} needs {fixed} devices; this machine has {devices}.')
    return out
  sizes = {axis: devices // fixed if n == -1 else n for axis, n in shape.items()}
  ways = sizes['data'] * sizes['fsdp']

  def multiple(key, value, of, what):
    if value < 1 or value % of:
      out.append(f'config.{key}={value} must be a positive multiple of {of} ({what}).')

  if config.model.dtype not in ('float32', 'bfloat16'):
    out.append(f"config.model.dtype={config.model.dtype!r}: choose 'float32' or 'bfloat16'.")
  if config.view.train_view not in render.VIEWS:
    out.append(f'config.view.train_view={config.view.train_view!r}: choose one of {list(render.VIEWS)}.')
  if config.data.on_error not in ('stop', 'skip'):
    out.append(f"config.data.on_error={config.data.on_error!r}: choose 'stop' or 'skip'.")
  for key, value in (('data.replay', config.data.replay), ('eval.heldout', config.eval.heldout)):
    if value not in ('general', ''):
      out.append(f"config.{key}={value!r}: choose 'general' or '' (none).")
  out += problems_of(OPTIMIZERS, config.optimizer, 'config.optimizer', ('lr', 'warmup', 'end', 'learning_rate'))
  multiple('eval.chunk', config.eval.chunk, ways, 'mesh data x fsdp')
  multiple('eval.heldout_chunk', config.eval.heldout_chunk, ways, 'mesh data x fsdp')
  if not config.stages:
    out.append('config.stages is empty: name at least one stage.')
  for name in config.stages:
    if name not in config:
      out.append(f'config.stages names {name!r}, but there is no config.{name}.{nearest(name, config)}')
      continue
    out += check_stage(config, name, multiple, ways)
  return out


def check_stage(config, name: str, multiple, ways: int) -> list[str]:
  out, s, at = [], config[name], f'config.{name}'
  if s.rounds < 1:
    out.append(f'{at}.rounds={s.rounds}: at least 1.')
  if s.trains != 'policy':
    out.append(f"{at}.trains={s.trains!r}: only 'policy' can be trained so far.")
  multiple(f'{name}.batch', s.batch, ways, 'mesh data x fsdp')
  multiple(f'{name}.sample_prompts', s.sample_prompts, ways, 'mesh data x fsdp')
  wrong = [p for kind, table in KINDS.items() for p in problems_of(table, s[kind], f'{at}.{kind}')]
  out += wrong
  if s.reference.role not in ROLES:
    out.append(f'{at}.reference.role={s.reference.role!r}: choose one of {list(ROLES)}.')
  if not s.losses:
    out.append(f'{at}.losses is empty: give at least one term of {list(TERMS)}.')
  for term, named in s.losses.items():
    if term not in TERMS:
      out.append(f'{at}.losses.{term}: choose from {list(TERMS)}.{nearest(term, TERMS)}')
    for loss, keys in named.items():
      if loss in losses.TABLE and 'weight' not in keys:
        out.append(f'{at}.losses.{term}.{loss} needs a weight.')
      out += problems_of(losses.TABLE, {'name': loss, **keys}, f'{at}.losses.{term}.{loss}', ('weight',))
  if 'replay' in s.losses:
    multiple(f'{name}.replay_batch', s.replay_batch, ways, 'mesh data x fsdp')
    if not config.data.replay:
      out.append(f"{at}.losses.replay needs texts: set config.data.replay='general' or drop the term.")
  if wrong:
    return out
  try:
    plans = [component(curricula.TABLE, s.curriculum, f'{at}.curriculum')(r) for r in range(s.rounds)]
  except UserError as error:
    return [*out, str(error)]
  for count in sorted({plan.prompts for plan in plans}):
    for key, of in (('batch', s.batch), ('sample_prompts', s.sample_prompts)):
      if of > 0 and (count < 1 or count % of):
        out.append(f'{at}.curriculum.prompts={count} must be a positive multiple of {at}.{key}={of}.')
  if any(plan.epochs < 1 for plan in plans):
    out.append(f'{at}.curriculum.epochs must be at least 1.')
  if any(plan.temperature < 0 for plan in plans):
    out.append(f'{at}.curriculum.temperature must not be negative.')
  if 'group' in s.losses:
    pairwise = s.select.name in ('best_vs', 'all_pairs')
    if s.generator.name == 'sampler' and s.generator.group < 1:
      out.append(f'{at}.generator.group={s.generator.group}: at least 1.')
    elif s.generator.name == 'sampler' and s.generator.group < 2 and pairwise:
      out.append(f'{at}.generator.group=1, but select {s.select.name!r} compares completions: at least 2.')
    if 'dpo' in s.losses.group and not pairwise:
      out.append(f'{at}.losses.group.dpo needs pairs; select {s.select.name!r} makes none (best_vs, all_pairs do).')
    if s.generator.name == 'given' and any(plan.anchor_source != 'given' for plan in plans):
      out.append(f"{at}.generator 'given' needs {at}.curriculum.anchor_source='given' and config.view.anchors > 0.")
    if any(plan.anchor_source == 'given' for plan in plans) and config.view.anchors < 1:
      out.append(f"{at}.curriculum.anchor_source='given' needs config.view.anchors of at least 1.")
  return out


def check_model(config, model: models.Model) -> list[str]:
  """Problems that only the model's shape can tell."""
  c, out = model.config, []
  lengths = {'eval.prompt_length + eval.answer_length': config.eval.prompt_length + config.eval.answer_length}
  lengths |= {'view.text_length': config.view.text_length, 'eval.heldout_length': config.eval.heldout_length}
  for name in config.stages:
    if config[name].generator.name == 'sampler':
      total = config.view.prompt_length + config[name].generator.length
      lengths[f'view.prompt_length + {name}.generator.length'] = total
  out += [f'config.{k} = {n} tokens; the model has room for {c.context}.' for k, n in lengths.items() if n > c.context]
  tensor = config.mesh.tensor
  if tensor > 0 and (c.heads % tensor or c.kv_heads % tensor):
    out.append(f'config.mesh.tensor={tensor} does not divide the {c.heads} and {c.kv_heads} heads of the model.')
  return out


# --- build --------------------------------------------------------------------------------------------------------


def load_examples(config) -> sources.Loaded:
  d = config.data
  fields = ('text', 'prompt', 'target', 'questions', 'anchors')
  world = d.source.startswith('world:')
  return sources.load(
    d.source,
    columns={field: d[field] for field in fields},
    split=d.split,
    on_error=d.on_error,
    limit=d.limit,
    world=plain(d.world) if world else None,
  )


def build_stage(config, name: str, model: models.Model, mesh_, total: int) -> Stage:
  s, at = config[name], f'config.{name}'
  resources = dict(policy=model.policy, tokenizer=model.tokenizer)
  plan = component(curricula.TABLE, s.curriculum, f'{at}.curriculum')
  plans = [plan(r) for r in range(s.rounds)]
  o = plain(config.optimizer)
  rate = update.schedule(lr=o.pop('lr'), warmup=o.pop('warmup'), end=o.pop('end'), total=total)
  terms = {}
  for term, named in s.losses.items():
    parts = [
      (keys['weight'], loss, losses.TABLE[loss](**{k: v for k, v in keys.items() if k != 'weight'}))
      for loss, keys in plain(named).items()
    ]
    terms[term] = (1.0, losses.add(parts))
  step = update.gradient(
    policy=model.policy,
    losses=terms,
    optimizer=OPTIMIZERS[o.pop('name')](learning_rate=rate, **o),
    learning_rate=rate,
  )
  collect, reference = None, None
  if 'group' in s.losses:
    collect = collector(
      policy=model.policy,
      generate=component(generators.TABLE, s.generator, f'{at}.generator', **resources),
      judge=component(judges.TABLE, s.judge, f'{at}.judge', **resources),
      select=component(selects.TABLE, s.select, f'{at}.select'),
      mesh=mesh_,
      prompts_per_call=s.sample_prompts,
    )
    reference = Reference(
      role=s.reference.role,
      sampled_by=s.generator.role,
      one_update=all(p.prompts == s.batch and p.epochs == 1 for p in plans),
      same_view=config.view.train_view == 'same' and s.generator.name == 'sampler',
      max_gap=s.reference.max_gap,
      chunk=s.batch,
    )
  view = plain(config.view)
  length = s.generator.length if s.generator.name == 'sampler' else view['text_length']
  return Stage(
    name=name,
    rounds=s.rounds,
    batch=s.batch,
    plan=plan,
    collector=collect,
    reference=reference,
    render=render.renderer(tokenizer=model.tokenizer, completion_length=length, **view),
    update=step,
    terms=tuple(s.losses),
    beta=s.losses.group.dpo.beta if 'group' in s.losses and 'dpo' in s.losses.group else 0.0,
    refreshes=(reference is not None and reference.role == 'ref') or any(p.refresh for p in plans),
    replay=worlds.general('replay') if 'replay' in s.losses else (),
    replay_batch=s.replay_batch,
    replay_length=s.replay_length,
  )


def build(config, model: models.Model) -> Run:
  """The whole run as functions. Reads the data; touches no device."""
  loaded = load_examples(config)
  mesh_ = mesh.make({axis: config.mesh[axis] for axis in mesh.AXES})
  shuffle = config.data.shuffle
  stream = Stream(len(loaded.examples), config.seed, shuffle)
  totals = {}
  for name in config.stages:
    s = config[name]
    plan = component(curricula.TABLE, s.curriculum, f'config.{name}.curriculum')
    totals[name] = sum(plan(r).prompts // s.batch * plan(r).epochs for r in range(s.rounds))
  stages = tuple(build_stage(config, name, model, mesh_, totals[name]) for name in config.stages)
  evaluate, calls = build_evaluation(config, model, mesh_, loaded.examples)
  return Run(
    seed=config.seed,
    model=model,
    mesh=mesh_,
    examples=loaded.examples if isinstance(loaded.examples, tuple) else tuple(loaded.examples),
    skipped=loaded.skipped,
    stream=stream,
    stages=stages,
    evaluate=evaluate,
    eval_calls=calls,
    eval_every=config.eval.every,
    checkpoint_every=config.checkpoint.every,
    checkpoint_keep=config.checkpoint.keep,
    log_groups=config.log.groups,
  )


def build_evaluation(config, model, mesh_, examples):
  e = config.eval
  resources = dict(policy=model.policy, tokenizer=model.tokenizer, mesh=mesh_)
  questions = [q for example in examples for q in example.questions]
  if e.questions:
    questions = questions[:: max(1, len(questions) // e.questions)][: e.questions]
  parts, calls = [], 0
  if questions:
    shape = dict(prompt_length=e.prompt_length, answer_length=e.answer_length, chunk=e.chunk)
    parts.append(closed_book(questions=questions, template=e.template, **shape, **resources))
    calls += 2 * -(-len(questions) // e.chunk)
  if e.heldout:
    texts = worlds.general('heldout')[: e.heldout_texts]
    parts.append(perplexity(texts=texts, text_length=e.heldout_length, chunk=e.heldout_chunk, **resources))
    calls += -(-len(texts) // e.heldout_chunk)

  def evaluate(params, tick=lambda x: x):
    metrics, samples = {}, []
    for part in parts:
      m, s = part(params, tick)
      metrics |= m
      samples += s
    return metrics, samples

  return evaluate, calls
