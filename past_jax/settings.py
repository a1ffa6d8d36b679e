"""Reading a config: its keys and values, components by name, what a stage makes use of."""

import dataclasses
import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from past_jax import (
  buffer,
  curricula,
  generators,
  judges,
  losses,
  selects,
)
from past_jax.buffer import Buffer
from past_jax.self_edits import MODEL
from past_jax.types import Loss, Plan, UserError

ROLES = ('policy', 'base', 'ref')
TRAINED = ('policy', 'judge')
KINDS = {
  'generator': generators.TABLE,
  'judge': judges.TABLE,
  'select': selects.TABLE,
  'curriculum': curricula.TABLE,
  'buffer': buffer.TABLE,
}
MODELS = (*ROLES, 'teacher')  # roles that sample and judge
# Parameters that come from the run, not from the config.
RESOURCES = ('policy', 'tokenizer', 'learning_rate', 'input_axes', 'setting', 'plain', 'mesh', 'inner')
MAY_CHANGE = ('checkpoint.', 'log.', 'eval.every', 'mesh.')  # on resume; and every stage's `rounds`

# The same for components' keys, where the type of the default does not say it all; or (least, most).
BOUNDS = {
  **dict.fromkeys(('group', 'length', 'chunk', 'ngram', 'target_length', 'count', 'samples', 'distractors', 'size'), 1),
  **dict.fromkeys(('seconds', 'memory'), 1),
  **{'prompt_length': 2, 'seed': 0, 'seeds': 1, 'limit': 0, 'opponents': 0, 'slots': 0, 'top_k': 0},
  **dict.fromkeys(('max_overlap', 'lr', 'eps', 'weight_decay', 'clip'), 0.0),
  **dict.fromkeys(('flips', 'top_p', 'min_p', 'b1', 'b2', 'momentum', 'decay'), (0.0, 1.0)),
}
WORDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a string', tuple: 'a tuple'}


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
    choices = (
      roles_for(table[name]) if key in ('role', 'opponent') else literal(takes[key].annotation) if key in takes else ()
    )
    typed = wanted in WORDS or not isinstance(wanted, type)
    if typed and (problem := wrong_value(value, wanted)):
      out.append(f'{where}.{key}={value!r} must be {problem}.')
    elif choices and value not in choices:
      out.append(f'{where}.{key}={value!r}: choose one of {", ".join(choices)}.{nearest(value, choices)}')
  return out


def roles_for(make: Callable) -> tuple[str, ...]:
  """Those that a component may name: one whose own role is the judge's reads a scalar head, and no policy has one."""
  own = inspect.signature(make).parameters
  return ('judge', 'teacher') if 'role' in own and own['role'].default == 'judge' else MODELS


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
  """The curriculum, and the plan of every round; one for all prompts is for all `rows`.

  A stage without rounds, which is evaluated only, has the plan that its first one would have.
  """
  curriculum = component(curricula.TABLE, stage.curriculum, 'curriculum')

  def plan(round_: int) -> Plan:
    made = curriculum(round_)
    return dataclasses.replace(made, prompts=made.prompts or rows)

  return plan, [plan(round_) for round_ in range(max(stage.rounds, 1))]


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


def losses_by_term(stage) -> dict[str, Loss]:
  return {
    term: losses.add([(w, name, component(losses.TABLE, keys, 'losses')) for name, (w, keys) in named.items()])
    for term, named in losses_of(stage).items()
  }


def samplers_of(stage) -> list[str]:
  """The roles that sample."""
  generator = arguments(generators.TABLE, stage.generator)
  if 'role' not in generator:
    return []
  return list(dict.fromkeys([generator['role'], *[generator['opponent']] * bool(generator['opponents'])]))


def roles_of(stage) -> set[str]:
  """The roles that sample or judge."""
  return {*samplers_of(stage), arguments(judges.TABLE, stage.judge).get('role', 'policy')}


def improve_of(config) -> dict[str, Any]:
  """config.improve, which only configs have whose stages improve drafts."""
  return plain(config.improve) if 'improve' in config else {}


def inner_of(config) -> dict[str, Any]:
  """config.inner, which only configs have that try what they write by training on it."""
  return plain(config.inner) if 'inner' in config else {}


def grader_of(config) -> set[str]:
  """The role that grades answers after inner runs, if a model does."""
  return {'base'} if 'inner' in config and config.inner.grade == MODEL else set()


def optimizer_of(config, name: str) -> dict[str, Any]:
  """config.optimizer with what the stage changes of it, if it does."""
  return plain(config.optimizer) | (plain(config[name].optimizer) if 'optimizer' in config[name] else {})


def completion_length(config, name: str) -> tuple[str, int]:
  """The key that says how long a stage's completions are, and T: what is given may be as long as texts."""
  if config[name].generator.name == 'sampler':
    return f'{name}.generator.length', arguments(generators.TABLE, config[name].generator)['length']
  return 'view.text_length', config.view.text_length
