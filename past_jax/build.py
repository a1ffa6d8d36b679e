"""Config -> functions. The only module that knows component names, and the only one that reads a config.

`check` lists every problem in the user's words before a device is touched, `check_examples` and `check_model` what only
the data and the model can tell; `build` makes a `Run` of functions.
"""

import dataclasses
import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax

from past_jax import (
  answers,
  buffer,
  curricula,
  evals,
  generators,
  judges,
  lora,
  losses,
  mesh,
  models,
  pairs,
  render,
  sampler,
  selects,
  update,
)
from past_jax.buffer import Buffer
from past_jax.collect import Collector, Reference, collector
from past_jax.coverage import coverage
from past_jax.data import recorded, related, sources, worlds
from past_jax.data.stream import Stream, permutation
from past_jax.data.worlds.general import general
from past_jax.evals.perplexity import perplexity
from past_jax.evals.setting import Evaluation, Setting
from past_jax.judges.likelihood_gain import NEEDS
from past_jax.models.transformer import INPUT_AXES, REMAT
from past_jax.types import Example, Loss, Params, Plan, Policy, Question, Update, UserError, Weights

KINDS = {
  'generator': generators.TABLE,
  'judge': judges.TABLE,
  'select': selects.TABLE,
  'curriculum': curricula.TABLE,
  'buffer': buffer.TABLE,
}
TERMS = ('text', 'group', 'replay')
ROLES = ('policy', 'base', 'ref')
MODELS = (*ROLES, 'teacher')  # roles that sample and judge
PAIRWISE = ('best_vs', 'all_pairs')
# What a loss needs -> who gives it.
SELECTS = {
  **{'': (), 'scores': ('everything',), 'group': ('everything',)},
  **dict.fromkeys(('pairs', 'differences', 'wins'), PAIRWISE),
}
SELF_REWARDS = ('likelihood', 'length_normalised', 'majority')
# Parameters that come from the run, not from the config.
RESOURCES = ('policy', 'tokenizer', 'learning_rate', 'input_axes', 'setting')
ADAPTERS = 1 << 31  # the branch of the run's key for new adapters; rounds use those of the stages' numbers
MAY_CHANGE = ('checkpoint.', 'log.', 'eval.every')  # on resume; and every stage's `rounds`

# Keys that are no component's: a type, or the least value of that type.
KEYS = {
  'seed': 0,
  'stages': tuple,
  'mesh': dict.fromkeys(mesh.AXES, -1),
  'model': {
    'spec': str,
    'dtype': str,
    'remat': str,
    'rope': str,
    'lora': {'rank': 0, 'alpha': 0.0, 'targets': tuple},
  },
  'teacher': {'spec': str, 'restart': bool},
  'data': {
    **dict.fromkeys(('source', 'split', *sources.FIELDS, 'recorded', 'on_error', 'replay'), str),
    **{'related': 0, 'limit': 0, 'shuffle': bool, 'world': Mapping},
  },
  'view': {
    **dict.fromkeys(('instruction', 'train_view', 'train_instruction'), str),
    **{'chat': bool, 'prompt_length': 1, 'text_length': 1, 'anchors': 0, 'transforms': tuple, 'segment': 1},
  },
  'pairs': {'size': 0, 'most': 1, 'instruction': str, 'prompt_length': 2, 'length': 1, 'chunk': 1},
  'optimizer': Mapping,
  'eval': {
    **{'every': 0, 'questions': 0, 'template': str, 'prompt_length': 1, 'answer_length': 1, 'chunk': 1},
    **{'heldout': str, 'heldout_texts': 1, 'heldout_length': 2, 'heldout_chunk': 1},
    **{'tasks': Mapping, 'sources': Mapping, 'split': str, 'skip': 0},
  },
  'checkpoint': {'every': 1, 'keep': 1},
  'log': {'groups': 0},
}
STAGE_KEYS = {
  **{'trains': str, 'rounds': 1, 'batch': 1, 'micro': 0, 'sample_prompts': 1, 'buckets': tuple, 'answers': str},
  **dict.fromkeys(KINDS, Mapping),
  **{'reference': {'role': str, 'max_gap': 0.0, 'rate': 0.0}, 'losses': Mapping, 'replay_batch': 1, 'replay_length': 2},
}
# The same for components' keys, where the type of the default does not say it all; or (least, most).
BOUNDS = {
  **dict.fromkeys(('group', 'length', 'chunk', 'ngram', 'target_length', 'count', 'samples', 'distractors', 'size'), 1),
  **dict.fromkeys(('seconds', 'memory'), 1),
  **{'prompt_length': 2, 'seed': 0, 'opponents': 0, 'slots': 0, 'top_k': 0},
  **dict.fromkeys(('max_overlap', 'lr', 'eps', 'weight_decay', 'clip'), 0.0),
  **dict.fromkeys(('flips', 'top_p', 'min_p', 'b1', 'b2', 'momentum', 'decay'), (0.0, 1.0)),
}
CHOICES = {
  'model.dtype': ('float32', 'bfloat16'),
  'model.remat': tuple(REMAT),
  'model.rope': ('short', 'long'),
  'data.on_error': ('stop', 'skip'),
  'data.replay': ('general', ''),
  'view.train_view': render.VIEWS,
  'eval.heldout': ('general', ''),
}
WORDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a string', tuple: 'a tuple'}


class Stage(NamedTuple):
  name: str
  rounds: int
  batch: int  # prompts per update
  plan: Callable[[int], Plan]
  buffer: Buffer  # of the rows that are collected
  collector: Collector | None  # None: nothing is sampled
  reference: Reference | None
  render: Callable
  update: Update
  terms: tuple[str, ...]
  old: Reference | None  # the same for the log-probs of the policy that sampled
  at_reference: Mapping[str, tuple[float, float]]  # `Loss.at_reference` of the group's losses, for the self-test
  rate: float  # a refresh moves the role `ref` this far towards the policy; 1: a copy
  refreshes: bool  # the role `ref` is in use
  reads_base: bool
  reads_teacher: bool
  replay: tuple[str, ...]
  replay_batch: int
  replay_length: int
  buckets: tuple[float, ...]  # shares of all lengths that programs are compiled for


class Run(NamedTuple):
  seed: int
  model: models.Model
  teacher: models.Model | None  # the role `teacher`, where it is a model of its own
  copies_teacher: bool  # the role `teacher` is the policy as it was when the stage began
  restarts: bool  # every stage trains the base anew: what the stage before has made of it is the teacher only
  trained: Callable[[Params], Params]  # of the base, or its shapes: all of it, or new adapters
  whole: Callable[[Weights, Params], Params]  # (frozen roles, trained) -> the model
  keeps_base: bool  # some stage reads it, or adapters do; else its memory is free
  mesh: jax.sharding.Mesh
  examples: tuple[Example, ...]
  stream: Stream
  stages: tuple[Stage, ...]
  evaluate: Callable  # (params, tick, samples of the first evaluation) -> (metrics, samples)
  eval_calls: int
  eval_every: int
  checkpoint_every: int
  checkpoint_keep: int
  log_groups: int


# --- names and keys -----------------------------------------------------------------------------------------------


def nearest(word: str, words) -> str:
  near = difflib.get_close_matches(str(word), [str(w) for w in words], 1)
  return f' Did you mean {near[0]!r}?' if near else ''


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
  a, b = flat(old), {key: json_like(value) for key, value in flat(new).items()}
  rounds = {f'{stage}.rounds' for stage in plain(new)['stages']}
  free = lambda key: key in rounds or key.startswith(MAY_CHANGE)
  show = lambda d, key: repr(d[key]) if key in d else 'absent'
  same = lambda key: key in a and key in b and a[key] == b[key]
  return [f'{k}: {show(a, k)} -> {show(b, k)}' for k in sorted({*a, *b}) if not same(k) and not free(k)]


def json_like(value):
  """Tuples as lists, also inside: what a value is after a round through JSON."""
  if isinstance(value, Mapping):
    return {key: json_like(v) for key, v in value.items()}
  return [json_like(v) for v in value] if isinstance(value, tuple | list) else value


def wrong_value(value, wanted) -> str:
  """What `value` should be instead, or ''. `wanted`: a type, a number: that type and at least it, or (least, most)."""
  least, most = wanted if isinstance(wanted, tuple) else (None if isinstance(wanted, type) else wanted, None)
  kind = wanted if isinstance(wanted, type) else type(least)
  fits = {float: int | float, tuple: tuple | list}.get(kind, kind)
  if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
    return WORDS.get(kind, 'a dict of keys')
  if most is not None and not least <= value <= most:
    return f'{WORDS[kind]} from {least} to {most}'
  if least is not None and not least <= value < math.inf:
    return f'{WORDS[kind]} of at least {least}'
  return ''


def key_problems(config: Mapping, keys: Mapping, where: str = 'config', more: Sequence[str] = ()) -> list[str]:
  """Keys of `config` that are missing, unknown (unless among `more`), or of a wrong type."""
  out = []
  for key in config:
    if key not in keys and key not in more:
      out.append(f'{where}.{key}: there is no such key.{nearest(key, keys)}')
  for key, wanted in keys.items():
    if key not in config:
      out.append(f'{where}.{key} is missing.')
    elif isinstance(wanted, Mapping) and isinstance(config[key], Mapping):
      out += key_problems(config[key], wanted, f'{where}.{key}')
    elif problem := wrong_value(config[key], Mapping if isinstance(wanted, Mapping) else wanted):
      out.append(f'{where}.{key}={config[key]!r} must be {problem}.')
  return out


def component_problems(table: Mapping[str, Callable], config: Mapping, where: str, more: Mapping = {}) -> list[str]:
  """What is wrong with {'name': NAME, key: value, ...} as a call of table[NAME]; `more`: further keys it needs."""
  if 'name' not in config:
    return [f'{where}.name is missing: choose one of {", ".join(table)}.']
  name = config['name']
  if name not in table:
    return [f'{where}.name={name!r}: choose one of {", ".join(table)}.{nearest(name, table)}']
  takes = {k: p for k, p in inspect.signature(table[name]).parameters.items() if k not in RESOURCES}
  needed = [*more, *(k for k, p in takes.items() if p.default is p.empty)]
  out = [f'{where}.{k} is missing.' for k in needed if k not in config]
  strange = [k for k in config if k not in takes and k not in more and k != 'name']
  if strange:
    kind = where.rpartition('.')[2]
    near = nearest(strange[0], takes)
    hint = near or (
      f' To change the name, replace all of it: --{where}="{{\'name\': {name!r}}}"'
      + (f', or :{kind}={name} after the config file.' if kind in ('judge', 'select') else '.')
    )
    out.append(f'{where}: {name!r} does not take {", ".join(strange)}; it takes {", ".join(takes) or "no keys"}.{hint}')
  for key, value in config.items():
    default = takes[key].default if key in takes else None
    wanted = more.get(key, BOUNDS.get(key, type(default)))
    choices = MODELS if key in ('role', 'opponent') else literal(takes[key].annotation) if key in takes else ()
    typed = wanted in WORDS or not isinstance(wanted, type)
    if typed and (problem := wrong_value(value, wanted)):
      out.append(f'{where}.{key}={value!r} must be {problem}.')
    elif choices and value not in choices:
      out.append(f'{where}.{key}={value!r}: choose one of {", ".join(choices)}.{nearest(value, choices)}')
  return out


def literal(annotation) -> tuple[str, ...]:
  return get_args(annotation) if get_origin(annotation) is Literal else ()


def arguments(table: Mapping[str, Callable], config: Mapping) -> dict[str, Any]:
  """The keys of a component with the defaults of those that the config leaves out."""
  parameters = inspect.signature(table[config['name']]).parameters
  defaults = {k: p.default for k, p in parameters.items() if k not in RESOURCES and p.default is not p.empty}
  return defaults | plain(config)


def component(table: Mapping[str, Callable], config: Mapping, where: str, **resources):
  """table[config.name](**the other keys, **the resources it names)."""
  make = table[config['name']]
  wanted = {k: v for k, v in resources.items() if k in inspect.signature(make).parameters}
  try:
    return make(**{k: v for k, v in plain(config).items() if k != 'name'}, **wanted)
  except UserError as error:
    raise UserError(f'{where}: {error}') from error


def plans_of(stage, rows: int = 0) -> tuple[Callable[[int], Plan], list[Plan]]:
  """The curriculum, and the plan of every round; one for all prompts is for all `rows`."""
  curriculum = component(curricula.TABLE, stage.curriculum, 'curriculum')

  def plan(round_: int) -> Plan:
    made = curriculum(round_)
    return dataclasses.replace(made, prompts=made.prompts or rows)

  return plan, [plan(round_) for round_ in range(stage.rounds)]


def rows_of(plan: Plan, batch: int) -> int:
  """Rows that a round collects: its prompts, and what fills up the last minibatch."""
  return -(-plan.prompts // batch) * batch


def updates(plans: Sequence[Plan], batch: int, buffer_: Buffer) -> list[int]:
  """How many each round does, over all rows that the buffer then holds."""
  before = [0, *itertools.accumulate(rows_of(plan, batch) for plan in plans)]
  filled = [buffer_.filled(n, rows_of(plan, batch)) for n, plan in zip(before, plans)]
  return [rows // batch * plan.epochs for rows, plan in zip(filled, plans)]


def losses_of(stage) -> dict[str, dict[str, tuple[float, Mapping]]]:
  """{term: {loss: (weight, its keys as of a component)}}."""

  def split(loss, keys):
    return keys['weight'], {'name': loss, **{k: v for k, v in keys.items() if k != 'weight'}}

  terms = plain(stage.losses).items()
  return {term: {loss: split(loss, keys) for loss, keys in named.items()} for term, named in terms}


# --- check --------------------------------------------------------------------------------------------------------


def check(config, devices: int) -> list[str]:
  """Every problem that can be told without data, weights or devices, one sentence each; empty: none."""
  tree, values = plain(config), flat(config)
  stages = tree['stages'] if isinstance(tree.get('stages'), tuple | list) else ()
  unlisted = [k for k, v in tree.items() if isinstance(v, Mapping) and 'rounds' in v]  # stages left out of the run
  out = key_problems(tree, KEYS, more=(*stages, *unlisted))
  if 'stages' in tree and not stages:
    out.append("config.stages is empty: name at least one stage, as in ('study',).")
  for name in stages:
    if isinstance(tree.get(name), Mapping):
      out += key_problems(tree[name], STAGE_KEYS, f'config.{name}')
    else:
      out.append(f'config.stages names {name!r}, but there is no config.{name}.{nearest(name, unlisted)}')
  if out:
    return out  # what follows reads these keys

  shape = plain(config.mesh)
  fixed = math.prod(n for n in shape.values() if n != -1)
  if list(shape.values()).count(-1) > 1 or fixed == 0:
    return [f'config.mesh={shape}: sizes are positive, and at most one is -1 (all devices that are left).']
  if fixed > devices:
    return [f'config.mesh={shape} needs {fixed} devices; this machine has {devices}.']
  sizes = {axis: devices // fixed if n == -1 else n for axis, n in shape.items()}
  ways = sizes['data'] * sizes['fsdp']

  for key, choices in CHOICES.items():
    if (value := values[key]) not in choices:
      out.append(f'config.{key}={value!r}: choose one of {", ".join(map(repr, choices))}.{nearest(value, choices)}')
  form, _, name = config.data.source.partition(':')
  if form == 'world':
    out += component_problems(worlds.TABLE, {'name': name, **tree['data']['world']}, 'config.data.world')
  for task, keys in tree['eval']['tasks'].items():
    if isinstance(keys, Mapping):
      out += component_problems(evals.TABLE, {'name': task, **keys}, f'config.eval.tasks.{task}')
    else:
      out.append(f'config.eval.tasks.{task}={keys!r} must be a dict of its keys, such as {{}}.')
  for kind, source in tree['eval']['sources'].items():
    if not isinstance(source, str):
      out.append(f'config.eval.sources.{kind}={source!r} must be a source, as config.data.source is.')
  adapters = config.model.lora
  if adapters.targets and not adapters.rank:
    out.append('config.model.lora.targets are set, but rank=0 trains all parameters: set config.model.lora.rank too.')
  if adapters.rank and not adapters.alpha:
    out.append('config.model.lora.alpha=0 scales the adapters away: rank is a good value.')
  out += optimizer_problems(tree)
  if config.teacher.restart and config.teacher.spec != 'policy':
    out.append("config.teacher.restart needs config.teacher.spec='policy', or nothing of a stage is left to the next.")
  if config.pairs.size == 1:
    out.append('config.pairs.size=1: give 2 for pairs, 3 for triples, or 0 to study passages as they are.')
  names = config.view.transforms
  for name in names:
    if name not in render.TRANSFORMS:
      near = nearest(name, render.TRANSFORMS)
      out.append(f'config.view.transforms={names}: choose from {", ".join(render.TRANSFORMS)}.{near}')
  if len(names) > config.view.anchors:
    out.append(f'config.view.anchors={config.view.anchors} has no room for the {len(names)} of config.view.transforms.')
  for name in config.stages:
    out += stage_problems(config, name)
  batches = ['eval.chunk', 'eval.heldout_chunk', *['pairs.chunk'] * bool(config.pairs.size)]
  for name in config.stages:
    replay = ['replay_batch'] if 'replay' in config[name].losses else []
    batches += [f'{name}.{key}' for key in ('batch', 'micro', 'sample_prompts', *replay)]
  for key in batches:
    if (value := values[key]) % ways:
      out.append(f'config.{key}={value} must be a multiple of {ways}, the devices of the mesh axes data x fsdp.')
  if out:
    return out  # what follows shares these out

  for name in config.stages:
    s = config[name]
    if 'group' in s.losses and s.generator.name == 'sampler':
      generator = arguments(generators.TABLE, s.generator)
      try:
        for size in (generator['group'], generator['opponents'] or generator['group']):
          sampler.layout(generator['slots'], s.sample_prompts, size, ways)
      except UserError as error:
        out.append(f'config.{name}.generator.{error}')
  return out


def optimizer_problems(tree: Mapping) -> list[str]:
  rate = {'lr': 0.0, 'schedule': str, 'warmup': (0.0, 1.0), 'end': (0.0, 1.0)}
  out = component_problems(update.OPTIMIZERS, tree['optimizer'], 'config.optimizer', rate)
  if out:
    return out
  choices = literal(inspect.signature(update.schedule).parameters['schedule'].annotation)
  if (value := tree['optimizer']['schedule']) not in choices:
    near = nearest(value, choices)
    out.append(f'config.optimizer.schedule={value!r}: choose one of {", ".join(choices)}.{near}')
  if tree['optimizer']['name'] == 'muon' and tree['model']['lora']['rank']:
    out.append(
      "config.optimizer 'muon' orthogonalizes whole kernels, and config.model.lora trains none: choose another."
    )
  return out


def stage_problems(config, name: str) -> list[str]:
  s, at = config[name], f'config.{name}'
  out = [p for kind, table in KINDS.items() for p in component_problems(table, plain(s[kind]), f'{at}.{kind}')]
  if not s.losses:
    out.append(f'{at}.losses is empty: give at least one term of {", ".join(TERMS)}.')
  for term, named in plain(s.losses).items():
    if term not in TERMS:
      out.append(f'{at}.losses.{term}: choose from {", ".join(TERMS)}.{nearest(term, TERMS)}')
    if not isinstance(named, Mapping) or not named or not all(isinstance(keys, Mapping) for keys in named.values()):
      out.append(f'{at}.losses.{term}={named!r} must be losses with their keys, like {{"nll": {{"weight": 1.0}}}}.')
      continue
    for loss, keys in named.items():
      where = f'{at}.losses.{term}.{loss}'
      if loss not in losses.TABLE:
        out.append(f'{where}: choose from {", ".join(losses.TABLE)}.{nearest(loss, losses.TABLE)}')
      else:
        out += component_problems(losses.TABLE, {'name': loss, **keys}, where, {'weight': 0.0})
  numbers = bool(s.buckets) and all(isinstance(share, int | float) and 0 < share <= 1 for share in s.buckets)
  if not numbers or tuple(s.buckets) != tuple(sorted(set(s.buckets))) or s.buckets[-1] != 1:
    out.append(f'{at}.buckets={s.buckets}: give ascending shares of the lengths, the last 1, like (0.25, 0.5, 1.0).')
  if s.answers not in ('', *answers.RULES):
    out.append(
      f"{at}.answers={s.answers!r}: choose one of {', '.join(answers.RULES)}, or '': nothing is asked of answers."
    )
  if s.buffer.get('name') != 'fresh' and 'text' in s.losses:
    out.append(f"{at}.losses.text is about the round's own texts, which no buffer keeps: take {at}.buffer 'fresh'.")
  if s.trains != 'policy':
    out.append(f"{at}.trains={s.trains!r}: only 'policy' can be trained so far.")
  if s.reference.role not in ROLES:
    out.append(f'{at}.reference.role={s.reference.role!r}: choose one of {", ".join(ROLES)}.')
  if not 0 < s.reference.rate <= 1:
    out.append(f'{at}.reference.rate={s.reference.rate}: a refresh moves the reference by a share above 0, up to 1.')
  elif s.reference.rate < 1 and config.model.lora.rank:
    out.append(f'{at}.reference.rate={s.reference.rate}: a mean of adapters is no mean of models; with them give 1.0.')
  if 'replay' in s.losses:
    if not config.data.replay:
      out.append(f"{at}.losses.replay needs texts: set config.data.replay='general' or drop the term.")
    if s.replay_batch > (most := len(general('replay'))):
      out.append(f'{at}.replay_batch={s.replay_batch}: there are {most} texts to replay.')
  if out:
    return out  # what follows makes the components

  try:
    _, plans = plans_of(s)
    component(selects.TABLE, s.select, 'select')
    terms = {
      term: {name: component(losses.TABLE, keys, 'losses') for name, (_, keys) in named.items()}
      for term, named in losses_of(s).items()
    }
  except UserError as error:
    return [f'{at}.{error}']
  select = arguments(selects.TABLE, s.select)
  scores, keeps_ties = 'win' if s.judge.name == 'preference' else select.get('score'), select.get('ties') == 'keep'
  for term, named in terms.items():
    for name, loss in named.items():
      gives = SELECTS[loss.needs]
      if loss.needs and term != 'group':
        out.append(f'{at}.losses.{term}.{name} learns from judged completions: only the term group has them.')
      elif loss.needs and s.select.name not in gives:
        what = 'pairs' if gives == PAIRWISE else 'the score of every completion'
        out.append(f'{at}.losses.group.{name} needs {what}: not select {s.select.name!r}, but {" or ".join(gives)}.')
      elif loss.needs == 'wins' and scores != 'win':
        out.append(
          f"{at}.losses.group.{name} learns probabilities of winning: set {at}.select to best_vs with score='win', "
          "or take the judge 'preference'."
        )
      elif loss.needs == 'pairs' and keeps_ties:
        out.append(f"{at}.losses.group.{name} learns who won, and {at}.select.ties='keep' has pairs that nobody won.")
  judge = arguments(judges.TABLE, s.judge)
  frozen = {'base'} if config.teacher.spec == 'policy' else {'base', 'teacher'}
  if judge['name'] in SELF_REWARDS and judge['role'] not in frozen:
    out.append(
      f'{at}.judge.role={judge["role"]!r}: {judge["name"]!r} would reward what the model has just become, and '
      "whatever it says most would win; a self-reward is that of the frozen role 'base', or of another model."
    )
  for count in sorted({plan.prompts for plan in plans}):
    for key in ('batch', 'sample_prompts'):
      if count % s[key]:
        out.append(f'{at}.curriculum.prompts={count} must be a multiple of {at}.{key}={s[key]}.')
  if strange := {role for plan in plans for role in plan.refresh} - {'ref'}:
    out.append(f"{at}.curriculum.refresh={sorted(strange)}: only the role 'ref' can be refreshed.")
  size = arguments(buffer.TABLE, s.buffer).get('size', 0)
  if size % s.batch:
    out.append(f'{at}.buffer.size={size} must be a multiple of {at}.batch={s.batch}.')
  replay = ['replay_batch'] if 'replay' in s.losses else []
  for key in ('batch', *replay):
    if s.micro and s[key] > s.micro and s[key] % s.micro:
      out.append(f'{at}.{key}={s[key]} must be a multiple of {at}.micro={s.micro}, or no larger.')
  if 'group' not in s.losses:
    return out

  given, generator = s.generator.name == 'given', arguments(generators.TABLE, s.generator)
  reads_anchors = given or generator['anchors']
  if 'teacher' in roles_of(s) and not config.teacher.spec:
    out.append(f"{at} uses the role 'teacher': set config.teacher.spec to a model, or to 'policy'.")
  size_key = 'config.view.anchors' if given else f'{at}.generator.group'
  size = 0 if given else generator['group'] + generator['opponents']
  size += config.view.anchors * reads_anchors
  sources = () if given else (0, 1) if generator['opponents'] else (0,)
  for name, loss in terms['group'].items():
    if lacking := set(loss.sources) - set(sources):
      how = f'set {at}.generator.opponents' if lacking == {1} else f"take {at}.generator 'sampler'"
      out.append(f'{at}.losses.group.{name} learns from members of source {min(lacking)}, and there are none: {how}.')
  if s.reference.rate < 1 and not (s.reference.role == 'ref' and any(plan.refresh for plan in plans)):
    out.append(
      f"{at}.reference.rate={s.reference.rate} moves the role 'ref' when it is refreshed: set {at}.reference.role="
      f"'ref' and {at}.curriculum.refresh=('ref',)."
    )
  if any(plan.anchor_source == 'self' for plan in plans):
    out.append(f"{at}.curriculum.anchor_source='self' is not built yet: choose 'none' or 'given'.")
  if not reads_anchors and any(plan.anchor_source == 'given' for plan in plans):
    out.append(
      f"{at}.curriculum.anchor_source='given' needs {at}.generator 'given', or the sampler's key anchors=True: nothing "
      'else reads the anchors.'
    )
  if any(plan.anchor_source == 'given' for plan in plans) and config.view.anchors < 1:
    out.append(f"{at}.curriculum.anchor_source='given' needs config.view.anchors of at least 1.")
  elif reads_anchors and any(plan.anchor_source != 'given' for plan in plans):
    what = "generator 'given'" if given else 'generator.anchors'
    out.append(f"{at}.{what} needs {at}.curriculum.anchor_source='given'.")
  elif size < 2 and s.select.name in PAIRWISE:
    out.append(f'{size_key}={size}, but select {s.select.name!r} compares completions: at least 2.')
  elif size < 2 and (compare := [name for name, loss in terms['group'].items() if loss.needs == 'group']):
    out.append(f'{size_key}={size}, but {at}.losses.group.{compare[0]} compares completions: at least 2.')
  return out


def check_examples(config, examples: Sequence[Example]) -> list[str]:
  """What the stages need of the rows and some row lacks; names the first such row."""
  needs = {}  # field -> who needs it
  for name in config.stages:
    s, at = config[name], f'config.{name}'
    if 'text' in s.losses:
      needs.setdefault('text', f'{at}.losses.text')
    if 'group' in s.losses:
      judge = arguments(judges.TABLE, s.judge)
      if judge['name'] == 'likelihood_gain':
        needs.setdefault(NEEDS[judge['target']], f'{at}.judge with target={judge["target"]!r}')
      if judge['name'] == 'text' and judge['rule'] in ('exact', 'numeric'):
        needs.setdefault('target', f'{at}.judge with rule={judge["rule"]!r}')
      if judge['name'] == 'tool':
        needs.setdefault('target', f'{at}.judge with tool={judge["tool"]!r}')
      generator = arguments(generators.TABLE, s.generator)
      if (generator['name'] == 'given' or generator['anchors']) and not config.view.transforms:
        needs.setdefault('anchors', f'{at}.generator')
      if config.view.transforms:
        needs.setdefault('text', 'config.view.transforms')
  out = []
  for name in config.stages:
    s, at = config[name], f'config.{name}'
    held, rows = component(buffer.TABLE, s.buffer, at), [rows_of(p, s.batch) for p in plans_of(s, len(examples))[1]]
    if held.size and 'group' in s.losses and (most := max(rows) if held.forgets else sum(rows)) > held.size:
      what = 'the largest round has' if held.forgets else "all rounds have, and 'append' keeps them all"
      out.append(f'{at}.buffer.size={held.size} is less than the {most} prompts that {what}.')
  chats = [e.where for e in examples if e.messages]
  if chats and config.view.instruction != render.AS_IT_IS:
    out.append(
      f'{chats[0]}: its prompt is a list of messages, which the chat template writes. '
      f'Set --config.view.instruction={render.AS_IT_IS}'
    )
  for field, who in needs.items():
    lacking = [e.where or f'row {i}' for i, e in enumerate(examples) if not getattr(e, field)]
    if lacking:
      keys = f'--config.data.{field}=COLUMN'
      if field == 'anchors':
        keys += ', or --config.data.chosen=COLUMN with --config.data.rejected=COLUMN,'
      out.append(
        f'{who} needs {field!r}, which {len(lacking)} of {len(examples)} rows lack, {lacking[0]} first. '
        f'{keys} names where it is; leave rows without it out of the data.'
      )
  return out


def check_model(config, model: models.Model) -> list[str]:
  """Problems that only the model's shape can tell."""
  c, view, e = model.config, config.view, config.eval
  lengths = {
    'eval.prompt_length + eval.answer_length': e.prompt_length + e.answer_length,
    'view.text_length': view.text_length,
    'eval.heldout_length': e.heldout_length,
  }
  if 'pair_accuracy' in e.tasks:
    lengths['view.prompt_length + view.text_length'] = view.prompt_length + view.text_length
  for name in config.stages:
    s = config[name]
    if 'replay' in s.losses:
      lengths[f'{name}.replay_length'] = s.replay_length
    if 'group' in s.losses:
      key, completion = completion_length(config, name)
      lengths[f'view.prompt_length + {key}'] = view.prompt_length + completion
      judge = arguments(judges.TABLE, s.judge)
      if 'target_length' in judge:
        lengths[f'{key} + {name}.judge.target_length'] = completion + judge['target_length']
      if 'prompt_length' in judge:
        lengths[f'{name}.judge.prompt_length'] = judge['prompt_length']
  hint = f' --config.model.rope=long makes it {c.longer}, for short rows too.' if c.longer else ''
  room = f'the model has room for {c.context}.{hint}'
  out = [f'config.{key} = {n} tokens; {room}' for key, n in lengths.items() if n > c.context]
  if config.model.lora.rank:
    try:
      lora.choose(jax.eval_shape(model.policy.init, jax.random.key(0)), config.model.lora.targets)
    except UserError as error:
      out.append(f'config.model.lora.targets: {error}')
  tensor = config.mesh.tensor
  if tensor > 0 and (c.heads % tensor or c.kv_heads % tensor):
    out.append(f'config.mesh.tensor={tensor} does not divide the {c.heads} and {c.kv_heads} heads of the model.')
  return out


def check_teacher(config, model: models.Model, teacher: models.Model) -> list[str]:
  """Problems of a role `teacher` that is a model of its own: the ids that it samples are the policy's."""
  spec = config.teacher.spec
  out = [f'teacher {spec}: {problem}' for problem in check_model(config, teacher)]
  if part := model.tokenizer.differs(teacher.tokenizer):
    out.append(
      f'config.teacher.spec={spec} has another tokenizer ({part}) than {config.model.spec}, which is to learn its '
      'completions: choose a teacher of the same family, or sample its text first and give it as config.data.recorded.'
    )
  for name in config.stages:
    s = config[name]
    mixed = 'group' in s.losses and len(samplers_of(s)) == 2 and 'teacher' in samplers_of(s)
    if 'group' in s.losses and 'teacher' in samplers_of(s) and losses_by_term(s)['group'].old:
      out.append(f"config.{name}.losses.group has a loss that learns from the policy's own samples, not a teacher's.")
    if mixed and teacher.config != model.config:
      out.append(
        f'config.{name}.generator has the roles {" and ".join(samplers_of(s))}, and {spec} is no {config.model.spec}: '
        'members of one group are sampled by models of one architecture.'
      )
  return out


def samplers_of(stage) -> list[str]:
  """The roles that sample."""
  generator = arguments(generators.TABLE, stage.generator)
  if 'role' not in generator:
    return []
  return list(dict.fromkeys([generator['role'], *[generator['opponent']] * bool(generator['opponents'])]))


def roles_of(stage) -> set[str]:
  """The roles that sample or judge."""
  return {*samplers_of(stage), arguments(judges.TABLE, stage.judge).get('role', 'policy')}


def completion_length(config, name: str) -> tuple[str, int]:
  """The key that says how long a stage's completions are, and T: what is given may be as long as texts."""
  if config[name].generator.name == 'sampler':
    return f'{name}.generator.length', arguments(generators.TABLE, config[name].generator)['length']
  return 'view.text_length', config.view.text_length


# --- build --------------------------------------------------------------------------------------------------------


def load_examples(config) -> sources.Loaded:
  """The data, read on the host."""
  d = config.data
  loaded = load(config, d.source, d.split, d.limit)
  examples = recorded.attach(loaded.examples, d.recorded) if d.recorded else loaded.examples
  return loaded._replace(examples=related.attach(examples, d.related) if d.related else examples)


def load_questions(config, examples: Sequence[Example]) -> tuple[list[Example], list[tuple[int, Question]]]:
  """(rows that are evaluated on, (number of the row, question) pairs): the studied rows, or those of eval.sources.

  A row without questions is asked its prompt, unless it is a world's. The kinds of a source's questions are its key in
  config.eval.sources, or, where its rows have questions of several kinds, these after it.

  Raises:
    UserError: a source cannot be read, or has no row left after the first config.eval.skip.
  """
  e = config.eval

  def asked(x: Example, source: str) -> tuple[Question, ...]:
    bare = x.prompt and not x.messages and not source.startswith('world:')
    return x.questions or ((Question(x.prompt, x.target.strip()),) if bare else ())

  if not e.sources:
    return list(examples), [(i, q) for i, x in enumerate(examples) for q in asked(x, config.data.source)]
  rows, questions = [], []
  for kind, source in e.sources.items():
    found = load(config, source, e.split, 0).examples[e.skip :]
    if not found:
      raise UserError(f'config.eval.skip={e.skip} leaves no row of config.eval.sources.{kind}={source!r}.')
    several = len({q.kind for x in found for q in asked(x, source)}) > 1
    for x in found:
      for q in asked(x, source):
        questions.append((len(rows), q._replace(kind=f'{kind}/{q.kind}' if several else kind)))
      rows.append(x)
  return rows, questions


def load(config, source: str, split: str, limit: int) -> sources.Loaded:
  d = config.data
  return sources.load(
    source,
    columns={field: d[field] for field in sources.FIELDS},
    split=split,
    on_error=d.on_error,
    limit=limit,
    world=plain(d.world) if source.startswith('world:') else None,
  )


def find_names(config, model: models.Model, examples: Sequence[Example]) -> list[tuple[str, ...]]:
  """The names in every passage, for `pairs.combined`: those that `model` finds with the weights that it comes with."""
  mesh_, keys = mesh.make(config.mesh), plain(config.pairs)
  shape = {name: keys[name] for name in ('instruction', 'prompt_length', 'length', 'chunk')}
  find = pairs.finder(policy=model.policy, tokenizer=model.tokenizer, mesh=mesh_, **shape)
  with jax.set_mesh(mesh_):
    return find(model.read(mesh_), examples)


def build(
  config,
  model: models.Model,
  examples: Sequence[Example],
  teacher: models.Model | None = None,
  asked: Sequence[Example] | None = None,
) -> Run:
  """The whole run as functions, of a config without problems. Nothing runs on a device yet.

  Args:
    teacher: the role `teacher`, if it is a model of its own.
    asked: the rows that questions come from, if they are others than those that are studied.

  Raises:
    UserError: what a component says about its keys.
  """
  mesh_ = mesh.make(config.mesh)
  trained, whole = build_adapters(config)
  evaluate, calls = build_evaluation(config, model, mesh_, examples if asked is None else asked)
  teacher_policy = model.policy if teacher is None else within(teacher.policy, model.config.vocab)
  stages = tuple(
    build_stage(config, name, model, mesh_, whole, len(examples), teacher_policy) for name in config.stages
  )
  return Run(
    seed=config.seed,
    model=model,
    teacher=teacher,
    copies_teacher=config.teacher.spec == 'policy',
    restarts=config.teacher.restart,
    trained=trained,
    whole=whole,
    keeps_base=bool(config.model.lora.rank) or config.teacher.restart or any(stage.reads_base for stage in stages),
    mesh=mesh_,
    examples=tuple(examples),
    stream=Stream(len(examples), config.seed, config.data.shuffle),
    stages=stages,
    evaluate=evaluate,
    eval_calls=calls,
    eval_every=config.eval.every,
    checkpoint_every=config.checkpoint.every,
    checkpoint_keep=config.checkpoint.keep,
    log_groups=config.log.groups,
  )


def build_adapters(config):
  """(trained, whole) of a `Run`. Adapters go on from stage to stage, so they are the run's and not a stage's."""
  c = config.model.lora
  if not c.rank:
    return lambda base: base, lambda weights, trained: trained
  key = jax.random.fold_in(jax.random.key(config.seed), ADAPTERS)
  init = functools.partial(lora.init, key, targets=c.targets, rank=c.rank, input_axes=INPUT_AXES)
  return init, lambda weights, trained: lora.attach(weights['base'], trained, c.alpha / c.rank)


def within(policy: Policy, vocab: int) -> Policy:
  """A policy that gives ids below `vocab` only: large models pad their embedding further than small ones."""
  return policy._replace(head=lambda params, hidden: policy.head(params, hidden)[..., :vocab])


def build_stage(config, name: str, model: models.Model, mesh_, whole, rows: int, teacher) -> Stage:
  """`teacher`: the policy of that role."""
  s, at = config[name], f'config.{name}'
  plan, plans = plans_of(s, rows)
  collect = reference = old = None
  held = component(buffer.TABLE, s.buffer, f'{at}.buffer')
  counts = updates(plans, s.batch, held)
  terms = losses_by_term(s)
  group = terms['group'] if 'group' in terms else None
  roles = {role for p in plans for role in p.refresh}
  if 'group' in s.losses:
    generator, judge = arguments(generators.TABLE, s.generator), arguments(judges.TABLE, s.judge)
    of = lambda keys: teacher if keys.get('role') == 'teacher' else model.policy
    make = functools.partial(component, tokenizer=model.tokenizer)
    collect = collector(
      policy=model.policy,
      sampler=of(generator),
      generate=make(generators.TABLE, s.generator, f'{at}.generator', policy=of(generator)),
      judge=make(judges.TABLE, s.judge, f'{at}.judge', policy=of(judge)),
      select=make(selects.TABLE, s.select, f'{at}.select'),
      mesh=mesh_,
      prompts_per_call=s.sample_prompts,
      shares=tuple(s.buckets),
      **({'measure': coverage(model.tokenizer, s.answers, generator['role'] == 'base')} if 'role' in generator else {}),
    )
    samplers = samplers_of(s)
    sampled_by = samplers[0] if len(samplers) == 1 and not generator['anchors'] else ''
    roles |= roles_of(s)
    roles |= {s.reference.role} if group.reference else set()
    reference = Reference(
      needed=group.reference,
      role=s.reference.role,
      sampled_by=sampled_by,
      # Rows that are kept are learned from again, when the policy has moved on.
      one_update=not held.size and set(counts) == {1},
      same_view=config.view.train_view == 'same',
      max_gap=s.reference.max_gap,
      chunk=min(s.micro or s.batch, s.batch),
    )
    old = reference._replace(needed=group.old, role=sampled_by or 'policy')
  return Stage(
    name=name,
    rounds=s.rounds,
    batch=s.batch,
    plan=plan,
    buffer=held,
    collector=collect,
    reference=reference,
    render=render.renderer(
      tokenizer=model.tokenizer, completion_length=completion_length(config, name)[1], **plain(config.view)
    ),
    update=build_update(config.optimizer, s.micro, model, terms, sum(counts), whole),
    terms=tuple(s.losses),
    old=old,
    at_reference=group.at_reference if group else {},
    rate=s.reference.rate,
    refreshes=collect is not None and 'ref' in roles,
    reads_base=collect is not None and 'base' in roles,
    reads_teacher=collect is not None and 'teacher' in roles,
    replay=general('replay') if 'replay' in s.losses else (),
    replay_batch=s.replay_batch,
    replay_length=s.replay_length,
    buckets=tuple(s.buckets),
  )


def losses_by_term(stage) -> dict[str, Loss]:
  return {
    term: losses.add([(w, name, component(losses.TABLE, keys, 'losses')) for name, (w, keys) in named.items()])
    for term, named in losses_of(stage).items()
  }


def build_update(optimizer, micro: int, model: models.Model, terms, total: int, whole) -> Update:
  """One optimizer step on the stage's losses; the learning rate's schedule spans the stage's `total` updates."""
  o = plain(optimizer)
  rate = update.schedule(total=total, **{key: o.pop(key) for key in ('lr', 'schedule', 'warmup', 'end')})
  return update.gradient(
    policy=model.policy,
    losses={term: (1.0, loss) for term, loss in terms.items()},
    optimizer=component(update.OPTIMIZERS, o, 'config.optimizer', learning_rate=rate, input_axes=INPUT_AXES),
    learning_rate=rate,
    whole=whole,
    micro=micro,
  )


def some(questions: list, most: int) -> list:
  """`most` of the (text number, question) pairs (0: all): kinds in turn, each kind's in a fixed random order."""
  if not most:
    return questions
  shuffled = [questions[i] for i in permutation(len(questions), 0)]
  kinds = dict.fromkeys(q.kind for _, q in questions)
  turns = itertools.zip_longest(*([pair for pair in shuffled if pair[1].kind == kind] for kind in kinds))
  return [pair for turn in turns for pair in turn if pair is not None][:most]


def build_evaluation(config, model: models.Model, mesh_, examples: Sequence[Example]):
  """(evaluate, how many device calls it makes): config.eval.tasks, and held-out perplexity."""
  e, resources = config.eval, dict(policy=model.policy, tokenizer=model.tokenizer, mesh=mesh_)
  shape = dict(template=e.template, prompt_length=e.prompt_length, answer_length=e.answer_length, chunk=e.chunk)
  rows, questions = load_questions(config, examples)
  asked, view, parts = some(questions, e.questions), plain(config.view), []
  setting = Setting(**resources, examples=rows, questions=asked, view=view, **shape)
  for name, keys in plain(e.tasks).items():
    where = f'config.eval.tasks.{name}'
    parts.append(component(evals.TABLE, {'name': name, **keys}, where, setting=setting))
  if e.heldout:
    texts = general('heldout')[: e.heldout_texts]
    held = perplexity(texts=texts, text_length=e.heldout_length, chunk=e.heldout_chunk, **resources)
    parts.append(Evaluation(lambda params, tick, before: held(params, tick), -(-len(texts) // e.heldout_chunk)))

  def evaluate(params, tick=lambda x: x, before=()):
    metrics, samples = {}, []
    for part in parts:
      m, s = part.run(params, tick, before)
      metrics |= m
      samples += s
    return metrics, samples

  return evaluate, sum(part.calls for part in parts)
