"""Every problem of a config, in the user's words, before a device is touched.

`check` tells what the config alone can, `check_examples` and `check_model` what only the data and the model can.
"""

import inspect
import math
from collections.abc import Mapping, Sequence

import jax

from past_jax import (
  answers,
  buffer,
  evals,
  generators,
  judges,
  lora,
  losses,
  mesh,
  model_grader,
  models,
  render,
  sampler,
  selects,
  self_edits,
  update,
)
from past_jax.data import sources, worlds
from past_jax.data.grids import example_task
from past_jax.data.worlds.general import general
from past_jax.drafts import SAMPLED
from past_jax.grading import GRADES
from past_jax.judges.likelihood_gain import NEEDS
from past_jax.models.transformer import REMAT
from past_jax.settings import (
  KINDS,
  ROLES,
  TRAINED,
  arguments,
  completion_length,
  component,
  component_problems,
  flat,
  grader_of,
  improve_of,
  key_problems,
  literal,
  losses_by_term,
  losses_of,
  nearest,
  optimizer_of,
  plain,
  plans_of,
  roles_of,
  rows_of,
  samplers_of,
)
from past_jax.types import Example, UserError

TERMS = ('text', 'group', 'replay')
PAIRWISE = ('best_vs', 'all_pairs')
# What a loss needs -> who gives it.
SELECTS = {
  **{'': (), 'scores': ('everything',), 'group': ('everything',), 'orders': ('everything',)},
  **dict.fromkeys(('pairs', 'differences', 'wins'), PAIRWISE),
}
SELF_REWARDS = ('likelihood', 'length_normalised', 'majority')
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
    **{'tasks': Mapping, 'sources': Mapping, 'split': str, 'skip': 0, 'limit': 0},
  },
  'checkpoint': {'every': 1, 'keep': 1},
  'log': {'groups': 0},
}
INNER = {  # of config.inner, if there is one
  **{'documents': str, 'document': str, 'question': str, 'passage': bool, 'grade': str},
  **{'rank': 0, 'alpha': 0.0, 'targets': tuple, 'optimizer': str, 'lr': 0.0, 'schedule': str, 'clip': 0.0},
  **{'epochs': 1, 'steps': 0, 'batch': 1, 'rows': 1, 'length': 2, 'questions': 1},
  **{'prompt_length': 2, 'answer_length': 1, 'until': str, 'chunk': 1},
}
IMPROVE = {'instruction': str, 'prompt_length': 2, 'temperature': 0.0}  # the keys of config.improve, if there is one
SECTIONS = {'improve': IMPROVE, 'inner': INNER}  # that a config may have
STAGE_KEYS = {
  **{'trains': str, 'rounds': 0, 'batch': 1, 'micro': 0, 'sample_prompts': 1, 'buckets': tuple, 'answers': str},
  **dict.fromkeys(KINDS, Mapping),
  **{'reference': {'role': str, 'max_gap': 0.0, 'rate': 0.0}, 'losses': Mapping, 'replay_batch': 1, 'replay_length': 2},
}
INNER_CHOICES = {
  'documents': tuple(self_edits.DOCUMENTS),
  'grade': (*GRADES, self_edits.MODEL),
  'optimizer': tuple(update.OPTIMIZERS),
  'schedule': ('constant', 'linear'),
  'until': ('line', 'end'),
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


def check(config, devices: int) -> list[str]:
  """Every problem that can be told without data, weights or devices, one sentence each; empty: none."""
  tree, values = plain(config), flat(config)
  stages = tree['stages'] if isinstance(tree.get('stages'), tuple | list) else ()
  unlisted = [k for k, v in tree.items() if isinstance(v, Mapping) and 'rounds' in v]  # stages left out of the run
  keys = KEYS | {name: section for name, section in SECTIONS.items() if name in tree}
  out = key_problems(tree, keys, more=(*stages, *unlisted))
  if 'stages' in tree and not stages:
    out.append("config.stages is empty: name at least one stage, as in ('study',).")
  for name in stages:
    if isinstance(tree.get(name), Mapping):
      out += key_problems(tree[name], STAGE_KEYS, f'config.{name}', more=('optimizer',))
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
  out += optimizer_problems(tree['optimizer'], tree)
  for name in stages:
    if 'optimizer' in tree[name]:
      out += optimizer_problems(optimizer_of(config, name), tree, f'config.{name}.optimizer')
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
  if 'inner' in tree:
    out += inner_problems(tree['inner'])
  for name in config.stages:
    out += stage_problems(config, name)
  idle = [name for name in config.stages if not config[name].rounds]
  if idle and len(idle) < len(config.stages):
    out.append(
      f'config.{idle[0]}.rounds=0, and other stages have rounds: leave it out of config.stages={config.stages}. A run '
      'that only evaluates has 0 in all of them.'
    )
  batches = [
    'eval.chunk',
    'eval.heldout_chunk',
    *['pairs.chunk'] * bool(config.pairs.size),
    *['inner.chunk'] * ('inner' in tree),
  ]
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


def inner_problems(inner: Mapping) -> list[str]:
  out = []
  for key, choices in INNER_CHOICES.items():
    if (value := inner[key]) not in choices:
      out.append(f'config.inner.{key}={value!r}: choose one of {", ".join(choices)}.{nearest(value, choices)}')
  for key, name in (('document', '{line}'), ('question', '{question}')):
    if name not in inner[key]:
      out.append(f'config.inner.{key} lacks {name}.')
  if inner['rank'] and not inner['alpha']:
    out.append('config.inner.alpha=0 scales the adapters away: rank is a good value.')
  if inner['targets'] and not inner['rank']:
    out.append('config.inner.targets are set, but rank=0 trains all parameters: set config.inner.rank too.')
  if not all(isinstance(target, str) for target in inner['targets']):
    out.append(f'config.inner.targets={inner["targets"]!r} must be regular expressions.')
  if inner['optimizer'] == 'muon' and inner['rank']:
    out.append("config.inner.optimizer 'muon' orthogonalizes whole kernels, and with rank above 0 none is trained.")
  return out


def optimizer_problems(optimizer: Mapping, tree: Mapping, at: str = 'config.optimizer') -> list[str]:
  rate = {'lr': 0.0, 'schedule': str, 'warmup': (0.0, 1.0), 'end': (0.0, 1.0)}
  out = component_problems(update.OPTIMIZERS, optimizer, at, rate)
  if out:
    return out
  choices = literal(inspect.signature(update.schedule).parameters['schedule'].annotation)
  if (value := optimizer['schedule']) not in choices:
    near = nearest(value, choices)
    out.append(f'{at}.schedule={value!r}: choose one of {", ".join(choices)}.{near}')
  if optimizer['name'] == 'muon' and tree['model']['lora']['rank']:
    out.append(f"{at} 'muon' orthogonalizes whole kernels, and config.model.lora trains none: choose another.")
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
  if s.trains not in TRAINED:
    out.append(f'{at}.trains={s.trains!r}: choose one of {", ".join(TRAINED)}.{nearest(s.trains, TRAINED)}')
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
    for loss_name, loss in named.items():
      gives = SELECTS[loss.needs]
      if loss.needs and term != 'group':
        out.append(f'{at}.losses.{term}.{loss_name} learns from judged completions: only the term group has them.')
      elif loss.needs and s.select.name not in gives:
        what = 'pairs' if gives == PAIRWISE else 'the score of every completion'
        out.append(
          f'{at}.losses.group.{loss_name} needs {what}: not select {s.select.name!r}, but {" or ".join(gives)}.'
        )
      elif loss.needs == 'wins' and scores != 'win':
        out.append(
          f'{at}.losses.group.{loss_name} learns probabilities of winning: set {at}.select to best_vs with '
          "score='win', or take the judge 'preference'."
        )
      elif loss.needs == 'pairs' and keeps_ties:
        out.append(
          f"{at}.losses.group.{loss_name} learns who won, and {at}.select.ties='keep' has pairs that nobody won."
        )
  judge = arguments(judges.TABLE, s.judge)
  out += trained_problems(config, name, terms, judge) + draft_problems(config, name, plans, terms)
  frozen = {'base'} if config.teacher.spec == 'policy' else {'base', 'teacher'}
  if judge['name'] == 'inner_update':
    if 'inner' not in config:
      out.append(f"{at}.judge 'inner_update' needs the section config.inner: see configs/seal.py.")
    if s.buffer.name != 'fresh' and judge['role'] == 'policy':
      out.append(
        f"{at}.buffer={s.buffer.name!r} keeps scores of models that the policy no longer is: the judge 'inner_update' "
        "takes 'fresh'."
      )
    if judge['role'] == 'teacher' and grader_of(config):
      out.append(f"config.inner.grade='model' is the role base, and {at}.judge.role='teacher' may be another model.")
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
  for loss_name, loss in terms['group'].items():
    if lacking := set(loss.sources) - set(sources):
      how = f'set {at}.generator.opponents' if lacking == {1} else f"take {at}.generator 'sampler'"
      out.append(
        f'{at}.losses.group.{loss_name} learns from members of source {min(lacking)}, and there are none: {how}.'
      )
  if s.reference.rate < 1 and not (s.reference.role == 'ref' and any(plan.refresh for plan in plans)):
    out.append(
      f"{at}.reference.rate={s.reference.rate} moves the role 'ref' when it is refreshed: set {at}.reference.role="
      f"'ref' and {at}.curriculum.refresh=('ref',)."
    )
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


def trained_problems(config, name: str, terms: Mapping, judge: Mapping) -> list[str]:
  """What a stage that trains a judge, or is judged by one, lacks."""
  s, at, out = config[name], f'config.{name}', []
  every = [(f'{at}.losses.{term}.{loss}', of.scores) for term, named in terms.items() for loss, of in named.items()]
  if s.trains == 'judge' and (wrong := [where for where, scores in every if not scores]):
    out.append(f"{wrong[0]} is of a policy; {at}.trains='judge' takes losses of scores: bradley_terry, gap.")
  if s.trains != 'judge' and (wrong := [where for where, scores in every if scores]):
    out.append(f"{wrong[0]} trains a judge: set {at}.trains='judge'.")
  before = config.stages[: config.stages.index(name)]
  if judge.get('role') == 'judge' and not any(config[other].trains == 'judge' for other in before):
    out.append(f"{at}.judge {judge['name']!r} reads the role 'judge', which no stage before {name!r} trains.")
  return out


def draft_problems(config, name: str, plans: Sequence, terms: Mapping) -> list[str]:
  """What stages that improve drafts lack; `plans`: of the stage's rounds."""
  at, drafts = f'config.{name}.curriculum', {plan.draft for plan in plans}
  needs = any(loss.needs == 'orders' for named in terms.values() for loss in named.values())
  if needs != ('orders' in drafts):
    return [f"{at}.draft='orders' and the loss gap belong together: one has what the other needs."]
  if drafts == {'none'}:
    return []
  improve, view, out = improve_of(config), config.view, []
  if not improve:
    keys = ', '.join(IMPROVE)
    return [f'{at}.draft={min(drafts - {"none"})!r} needs config.improve with the keys {keys}: see configs/pit.py.']
  if '{draft}' not in improve['instruction']:
    out.append('config.improve.instruction lacks {draft}, where the response to improve goes.')
  if improve['prompt_length'] <= view.prompt_length:
    out.append(
      f'config.improve.prompt_length={improve["prompt_length"]} must be above config.view.prompt_length='
      f'{view.prompt_length}: what it has more is the room for a draft.'
    )
  if view.train_view != 'same':
    out.append(f"config.view.train_view={view.train_view!r}: what improves a draft is trained with it in view, 'same'.")
  if view.transforms:
    out.append('config.view.transforms are of passages; prompts with drafts have none.')
  if len(drafts & {'none'}) and len(drafts) > 1 or len(drafts & {'orders'}) and len(drafts) > 1:
    out.append(
      f"{at} mixes drafts {sorted(drafts)}: prompts of a stage have one length, and 'none' and 'orders' others."
    )
  if 'orders' in drafts and any(plan.anchor_source != 'given' for plan in plans):
    out.append(f"{at}.draft='orders' needs {at}.anchor_source='given' and the generator 'given'.")
  return out


def check_examples(config, examples: Sequence[Example]) -> list[str]:
  """What the stages need of the rows and some row lacks; names the first such row."""
  needs, paired = {}, set()  # field -> who needs it; who needs two anchors
  for name in config.stages:
    s, at = config[name], f'config.{name}'
    if 'text' in s.losses:
      needs.setdefault('text', f'{at}.losses.text')
    if 'group' in s.losses:
      judge = arguments(judges.TABLE, s.judge)
      if judge['name'] == 'likelihood_gain':
        needs.setdefault(NEEDS[judge['target']], f'{at}.judge with target={judge["target"]!r}')
      if judge['name'] == 'inner_update':
        needs.setdefault('questions', f"{at}.judge 'inner_update'")
      if judge['name'] == 'text' and judge['rule'] in ('exact', 'numeric'):
        needs.setdefault('target', f'{at}.judge with rule={judge["rule"]!r}')
      if judge['name'] == 'tool':
        needs.setdefault('target', f'{at}.judge with tool={judge["tool"]!r}')
      generator = arguments(generators.TABLE, s.generator)
      if (generator['name'] == 'given' or generator['anchors']) and not config.view.transforms:
        needs.setdefault('anchors', f'{at}.generator')
      if config.view.transforms:
        needs.setdefault('text', 'config.view.transforms')
      if any(plan.draft not in ('none', *SAMPLED) for plan in plans_of(s, 1)[1]):
        needs.setdefault('anchors', f'{at}.curriculum.draft')
        paired |= {f'{at}.curriculum.draft'}
  out = []
  if 'inner' in config and config.inner.documents == 'choice':
    for example in examples:
      try:
        example_task(example)
      except UserError as error:
        out.append(f"config.inner.documents='choice' trains on tasks on grids. {error}.")
        break
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
  if lone := [e.where or f'row {i}' for i, e in enumerate(examples) if len(e.anchors) < 2][: len(paired)]:
    out.append(
      f'{min(paired)} needs pairs, a better and a worse response, and {lone[0]} has none: name their columns by '
      '--config.data.chosen and --config.data.rejected.'
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
  if 'improvement' in e.tasks and 'improve' in config:
    lengths['view.prompt_length + eval.answer_length'] = view.prompt_length + e.answer_length + 1  # an end token
    lengths['improve.prompt_length + eval.answer_length'] = config.improve.prompt_length + e.answer_length
  if 'inner' in config:
    inner = config.inner
    lengths |= {
      'inner.length': inner.length,
      'inner.prompt_length + inner.answer_length': inner.prompt_length + inner.answer_length,
    }
    if grader_of(config):
      tokens = model_grader.prompt_length(model.tokenizer, inner) + 1
      lengths["inner.prompt_length + 2 inner.answer_length + the prompt of grade='model'"] = tokens
  for name in config.stages:
    s = config[name]
    if 'replay' in s.losses:
      lengths[f'{name}.replay_length'] = s.replay_length
    if 'group' in s.losses:
      key, completion = completion_length(config, name)
      for plan in plans_of(s, 1)[1]:
        P, _, T = render.sizes(view, improve_of(config), plan, completion)
        at = 'view' if plan.draft == 'none' else 'improve'
        lengths[f'{at}.prompt_length + {key}'] = P + T
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
  if 'inner' in config and config.inner.rank:
    try:
      lora.choose(jax.eval_shape(model.policy.init, jax.random.key(0)), config.inner.targets)
    except UserError as error:
      out.append(f'config.inner.targets: {error}')
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
