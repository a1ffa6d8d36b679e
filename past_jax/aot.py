"""Every program of a config, compiled for a TPU slice that is not here: does it fit, what does it cost at least?

The programs are those that the loop runs, lowered from shapes alone, in their full lengths. Nothing is loaded: neither
weights nor data, of which one round of `batch` prompts is assumed where the config says all.

A program's HBM is what it takes itself (arguments, results that replace none, temporaries) and what the loop keeps on
the devices beside it, such as the optimizer's moments while it samples.

The roofline time is a bound from below: products at the peak of the matrix units, arrays at the full rate of HBM, and
collectives over all links of a device at once, all three overlapped. A real step takes longer.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from past_jax import build, hlo, judges, mesh, models, render, scores, train
from past_jax.chips import Topology, amount
from past_jax.render import text_batch
from past_jax.settings import arguments, completion_length, improve_of, rows_of, samplers_of
from past_jax.types import Completions, Judgement, Prompts

UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}


class Program(NamedTuple):
  name: str
  lower: Callable[[], jax.stages.Lowered]
  beside: float  # bytes per device that the loop keeps in HBM while it runs, and that are no arguments of it
  keys: tuple[str, ...] = ()  # what to change if it does not fit, the best first


@dataclasses.dataclass(frozen=True)
class Report:
  """Of one program, per device; bytes, seconds. What a program that does not fit would do is not known."""

  name: str
  fits: bool
  verdict: str
  peak_bytes: float
  hbm_bytes: float  # that a device has
  argument_bytes: float | None = None
  temporary_bytes: float | None = None
  beside_bytes: float = 0
  flops: float | None = None
  bytes: float | None = None
  collectives: Mapping[str, Mapping[str, float]] | None = None
  roofline: Mapping[str, float] | None = None  # compute, hbm, interconnect: seconds
  seconds: float | None = None  # the longest of these
  bound_by: str = ''
  mfu_bound: float | None = None  # products that are not computed twice, by the peak in `seconds`
  compile_seconds: float = 0.0


# --- programs -----------------------------------------------------------------------------------------------------


def programs(config, topology: Topology) -> list[Program]:
  """All programs of a config without problems, in the order in which the loop runs them.

  Raises:
    UserError: the model's shape is not known, libtpu is missing, a component refuses its keys.
  """
  config = type(config)(config.to_dict())
  for name in config.stages:
    if 'stop' in config[name].generator:
      config[name].generator.stop = ()  # texts of one token of the real tokenizer; how many there are changes nothing
  m = config.model
  model = models.described(m.spec, dtype=m.dtype, remat=m.remat, rope=m.rope)
  teacher = None
  if config.teacher.spec not in ('', 'policy'):
    teacher = models.described(config.teacher.spec, dtype=m.dtype, rope=m.rope)
  mesh_ = mesh.make(config.mesh, topology.devices())
  trained, whole = build.build_adapters(config)
  rows = max(config[name].batch for name in config.stages)
  out = []
  for i, stage in enumerate(build.build_stages(config, model, mesh_, whole, rows, teacher)):
    made = Stage(config, stage, model, teacher, mesh_, trained, whole)
    prefix = f'{stage.name}: ' if len(config.stages) > 1 else ''
    with jax.set_mesh(mesh_):  # nothing can be run under it, only traced
      found = [*([made.place()] if i == 0 else []), *made.collecting(), made.update()]
    out += [program._replace(name=f'{prefix}{program.name}', lower=within(mesh_, program.lower)) for program in found]
  return out


def within(mesh_, lower: Callable):
  def lowered():
    with jax.set_mesh(mesh_):
      return lower()

  return lowered


def on_device(tree) -> float:
  """Bytes of a device's shards."""
  size = lambda x: float(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
  return sum(size(x) for x in jax.tree.leaves(tree))


class Stage:
  """The programs of one stage, from shapes."""

  def __init__(self, config, stage, model, teacher, mesh_, trained, whole):
    self.config, self.stage, self.model, self.mesh = config, stage, model, mesh_
    self.keys = config[stage.name]
    self.trained = trained
    self.state = train.abstract_state(model, trained, mesh_, stage)
    self.base = self.placed(jax.eval_shape(model.policy.init, jax.random.key(0)))
    self.adapters = bool(config.model.lora.rank)
    self.frozen = {'base': self.base} if self.adapters else {}
    leaves = train.abstract(model, mesh_, trained)
    policy = self.placed(jax.eval_shape(whole, self.frozen, leaves))
    # Role -> what programs take; and what it has in HBM of its own: adapters share the base, which is there anyway.
    self.roles, self.own = {'policy': policy}, {'policy': leaves}
    if stage.refreshes:
      self.roles['ref'], self.own['ref'] = policy, leaves
    if stage.reads_base:
      self.roles['base'], self.own['base'] = self.base, {} if self.adapters else self.base
    if stage.reads_teacher:
      other = teacher and self.placed(jax.eval_shape(teacher.policy.init, jax.random.key(0)))
      self.roles['teacher'], self.own['teacher'] = other or policy, other or leaves
    if stage.reads_judge:
      head = train.abstract(model, mesh_, lambda params: scores.with_head(trained(params), model.config.width))
      self.roles['judge'], self.own['judge'] = self.placed(jax.eval_shape(whole, self.frozen, head)), head

  def placed(self, shapes):
    rules = mesh.shardings(self.mesh, shapes, models.RULES)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, rules)

  def batch(self, tree, rows: int | None = None):
    """Arrays or shapes, as `put_batch` places them; with `rows` of them."""
    sharding = mesh.batch_sharding(self.mesh)
    shape = lambda x: x.shape if rows is None else (rows, *x.shape[1:])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x), x.dtype, sharding=sharding), tree)

  def beside(self, *used: str) -> float:
    """While groups are collected: the moments, and the roles that the program does not read."""
    own = sum(on_device(tree) for role, tree in self.own.items() if role not in used)
    return on_device(self.state.opt_state) + own

  @property
  def plan(self):
    return self.stage.plan(0)

  @property
  def rows(self) -> int:
    """Of the batch that updates go over."""
    return self.stage.buffer.size or rows_of(self.plan, self.stage.batch)

  def prompts(self, rows: int, given: bool = True) -> Prompts:
    length = completion_length(self.config, self.stage.name)[1]
    P, A, T = render.sizes(self.config.view, improve_of(self.config), self.plan, length)
    ints = lambda *shape: np.zeros((rows, *shape), np.int32)
    anchors = Completions(ints(A, T), ints(A)) if given and self.plan.anchor_source == 'given' else None
    return Prompts(ints(P), ints(), anchors)

  def train_prompts(self, rows: int) -> Prompts:
    if self.config.view.train_view == 'none':
      return text_batch(self.model.tokenizer, [''] * rows, 1)[0].prompts
    return self.prompts(rows, given=False)

  @functools.cached_property
  def sampling(self):
    """Arguments of the generator, but for the share."""
    rows = self.keys.sample_prompts
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    return self.roles, self.batch(keys), self.batch(self.prompts(rows)), np.float32(1)

  @functools.cached_property
  def group(self):
    """Of a whole round."""
    return self.batch(jax.eval_shape(self.stage.collector.generate.whole, *self.sampling), self.rows)

  def place(self) -> Program:
    program = train.state_program(self.stage, self.state)
    beside = on_device(self.base) if self.adapters else 0
    return Program('place weights', lambda: program.lower(self.state.params), beside, ('config.mesh.fsdp=-1',))

  def collecting(self) -> Iterator[Program]:
    s, stage, c = self.keys, self.stage, self.stage.collector
    if c is None:
      return
    ways = mesh.batch_ways(self.mesh)
    samplers = tuple(samplers_of(s))
    args, group = self.sampling, self.group
    at, fewer = f'config.{stage.name}', (f'config.{stage.name}.sample_prompts={ways}',) * (s.sample_prompts > ways)
    if samplers:
      turn = (*fewer, f'{at}.generator.slots={ways}', 'config.model.dtype=bfloat16')
      yield Program('sample', lambda: c.generate.lower(*args), self.beside(*samplers), turn)
    if stage.reference.sampled_by:
      few = self.batch(group, min(self.rows, 4 * ways))
      whole = few.prompts, few.ids_BxGxT, few.length_BxG
      role = stage.reference.sampled_by
      yield Program(
        'sampler gap', lambda: c.logps.lower(self.roles[role], *whole), self.beside(role), (f'{at}.batch={ways}',)
      )
    chunk = f'config.inner.chunk={ways}' if s.judge.name == 'inner_update' else f'{at}.judge.chunk={ways}'
    for name, lower in c.judge.lower.items():
      role = arguments(judges.TABLE, s.judge)['role']
      yield Program(name, functools.partial(lower, self.roles, group), self.beside(role), (chunk,))
    scored = {r.role for r in (stage.reference, stage.old) if r.mode(float('inf')) == 'score'}
    if scored:  # one program: all roles have the policy's shape
      one, of = self.batch(self.collected(group), stage.reference.chunk), self.roles[min(scored)]
      args_ = of, one.prompts, one.ids_BxGxT, one.length_BxG
      turn = (f'{at}.micro={ways}',) if stage.reference.chunk > ways else ()
      yield Program('score', lambda: c.score.lower(*args_), self.beside(min(scored)), turn)

  def collected(self, group):
    """The batch of a round, from the group it was sampled as."""
    judgement = Judgement(jax.ShapeDtypeStruct(group.length_BxG.shape, jnp.float32))
    if self.keys.judge.name == 'preference':
      G = group.length_BxG.shape[1]
      judgement = dataclasses.replace(judgement, wins_BxGxG=jax.ShapeDtypeStruct((self.rows, G, G), jnp.float32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    _, batch, _ = jax.eval_shape(self.stage.collector.select, key, group, judgement, self.train_prompts(self.rows))
    logps = jax.ShapeDtypeStruct(batch.ids_BxGxT.shape, jnp.float32)
    has = lambda reference: reference.mode(float('inf')) in ('score', 'sampler')
    fields = {'ref_logps_BxGxT': self.stage.reference, 'old_logps_BxGxT': self.stage.old}
    fields = {name: logps if has(reference) else None for name, reference in fields.items()}
    return self.batch(dataclasses.replace(batch, **fields))

  def update(self) -> Program:
    s, stage, model = self.keys, self.stage, self.config.model
    batches = {}
    if 'text' in stage.terms:
      batches['text'] = self.batch(text_batch(self.model.tokenizer, [''] * self.rows, self.config.view.text_length)[0])
    if stage.collector is not None:
      batches['group'] = self.collected(self.group)
    replay = {}
    if stage.replay:
      texts = text_batch(self.model.tokenizer, [''] * stage.replay_batch, stage.replay_length)[0]
      replay = {'replay': self.batch(texts)}
    step = train.bucketed_step(stage, self.state)
    ways, at = mesh.batch_ways(self.mesh), f'config.{stage.name}'
    turn = [
      *['config.model.remat=layer'] * (model.remat != 'layer'),
      *[f'{at}.micro={ways}'] * (s.batch > ways and s.micro != ways),
      *['config.model.dtype=bfloat16'] * (model.dtype != 'bfloat16'),
      *['config.mesh.fsdp=-1 with config.mesh.data=1'] * (self.mesh.shape['data'] > 1),
      *['config.model.lora.rank=16'] * (not model.lora.rank),
    ]
    index_b = np.arange(stage.batch)
    return Program('update', lambda: step.lower(self.state, self.frozen, batches, index_b, replay), 0, tuple(turn))


# --- compiling ----------------------------------------------------------------------------------------------------


def memory(text: str) -> float | None:
  """Bytes that a program needs, from what XLA says when it runs out of memory; None: it says something else."""
  found = re.search(r'Used ([\d.]+)([KMGT]?) of', text) or re.search(r'required for [^(]*\(([\d.]+)([KMGT]?)\)', text)
  return float(found[1]) * UNITS[found[2]] if found else None


def compile_(program: Program, topology: Topology) -> tuple[list[Report], str]:
  """(reports of a program, its optimised HLO: '' if it does not fit). A sampler has two: its prompts, and a token."""
  started, hbm = time.monotonic(), topology.chip.hbm
  try:
    compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error) or (needs := memory(str(error))) is None:
      raise
    peak = needs + program.beside
    spent = time.monotonic() - started
    verdict = verdict_of(peak, topology, program)
    return [Report(program.name, False, verdict, peak, hbm, beside_bytes=program.beside, compile_seconds=spent)], ''
  spent, text, found = time.monotonic() - started, compiled.as_text(), compiled.memory_analysis()
  extra = found.output_size_in_bytes - found.alias_size_in_bytes
  temporary = found.temp_size_in_bytes + found.generated_code_size_in_bytes
  peak = found.argument_size_in_bytes + extra + temporary + program.beside
  costs = hlo.costs(text)
  token = [cost for cost in costs if cost.loop]
  parts = {program.name: costs}
  if program.name.endswith('sample') and token:
    parts = {f'{program.name}: prompts': [cost for cost in costs if not cost.loop], f'{program.name}: a token': token}
  common = dict(
    fits=peak <= hbm,
    verdict=verdict_of(peak, topology, program),
    peak_bytes=peak,
    hbm_bytes=hbm,
    argument_bytes=found.argument_size_in_bytes,
    temporary_bytes=temporary,
    beside_bytes=program.beside,
    compile_seconds=spent,
  )
  return [Report(name=name, **common, **roofline(part, topology)) for name, part in parts.items()], text


def roofline(costs: list[hlo.Cost], topology: Topology) -> dict[str, Any]:
  counts, chip = hlo.total(costs), topology.chip
  times = {
    'compute': sum(cost.flops * cost.passes for cost in costs) / chip.device_flops,
    'hbm': counts.bytes / chip.device_hbm_rate,
    'interconnect': counts.sent / topology.device_link_rate,
  }
  bound = max(times, key=times.get)
  once = sum(cost.flops for cost in costs if 'rematted_computation' not in cost.source)
  return dict(
    flops=counts.flops,
    bytes=counts.bytes,
    collectives=counts.collectives,
    roofline=times,
    seconds=times[bound],
    bound_by=bound,
    mfu_bound=once / chip.device_flops / times[bound] if times[bound] else 0.0,
  )


def verdict_of(peak: float, topology: Topology, program: Program) -> str:
  hbm = topology.chip.hbm
  if peak <= hbm:
    return f'fits: {amount(peak)} of {amount(hbm)}, {amount(hbm - peak)} are left'
  turn = program.keys[0] if program.keys else ''
  hint = f'; try --{turn}, or more chips' if turn else '; it takes more chips'
  more = f'{amount(peak - hbm)} more than the {amount(hbm)} of a {topology.chip.name} device'
  return f'does not fit: it needs {amount(peak)}, {more}{hint}'


def as_json(reports: list[Report], topology: Topology) -> dict:
  return {
    'topology': str(topology),
    'devices': topology.size,
    'fits': all(report.fits for report in reports),
    'programs': [dataclasses.asdict(report) for report in reports],
  }
