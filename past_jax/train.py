"""The loop: the only impure place. Data position, host judges, logging, signals and checkpoints happen here.

A run is at a `Cursor`: stage, round, update. Where its weights come from, in this order: an intact checkpoint in the
workdir; else the model that the config names. Every random choice is a function of (seed, stage, round), so a run that
was killed and started again ends with the same bits.
"""

import dataclasses
import functools
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from past_jax import buckets, hosts, lora, models, report, storage
from past_jax import mesh as mesh_lib
from past_jax.build import Run, Stage
from past_jax.checkpoint import Checkpoints
from past_jax.collect import Collected, collect
from past_jax.data.stream import permutation
from past_jax.diversity import diversity
from past_jax.drafts import SAMPLED
from past_jax.metrics import CompileCounter, Late, MetricsWriter, NoWriter, nonfinite, rows
from past_jax.profile import Profile, StepClock, peak
from past_jax.progress import Progress
from past_jax.render import filled, text_batch
from past_jax.settings import rows_of
from past_jax.stop import Stop, wait
from past_jax.text import completion_text
from past_jax.types import Batch, Completions, Example, Prompts, Selection, TrainState, UserError
from past_jax.update import public_name

DRAFTS = 3  # the branch of a round's key for drafts; sampling, judging and selecting have 0 to 2
EARLIER = Example(text='a row of an earlier round')  # for messages; a resumed buffer does not know its examples


class Cursor(NamedTuple):
  """Where a run is: `update` updates of round `round` of stage `stage` are done; `step` counts all updates."""

  stage: int
  round: int
  update: int
  step: int
  position: dict  # of the data stream, at the start of the round


class Stopped(Exception):
  """A signal asked to stop; raised between device calls."""


class SelfTestFailed(UserError):
  """The run is not computing what it should: see docs/design.md, rules that stop silent wrong training."""


class Loop:
  """What one process holds while it studies.

  What must survive it: `cursor`, `state`, `ref`, `batch`, `scored_by`, `resting`, and `teacher` if it is a copy of the
  policy.

  While the updates of a round run, the only model on the devices is the one that is trained: `ref`, `teacher`, `judge`
  (or, while that is trained, `policy`), and `base` unless adapters compute with it, wait in host memory and are placed
  for what samples, judges or scores.
  """

  def __init__(self, run: Run, config: dict, home: storage.Workdir, stop: Stop, progress: Progress, profile: Profile):
    self.run, self.config, self.stop, self.progress = run, config, stop, progress
    self.home, self.workdir = home, home.local
    self.profile, self.peak = profile, peak(run.mesh.devices.flat[0].device_kind)
    self.compiles = CompileCounter()
    self.late_compiles = 0  # programs compiled after a stage's first whole round; should stay 0
    self.seconds = defaultdict(float)
    self.checkpoints = Checkpoints(home.path / storage.CHECKPOINTS, run.checkpoint_keep)
    self.late = Late()
    self.phase, self.phase_start = '', time.monotonic()
    self.bad: dict = {}
    self.batch: Batch | None = None  # of the round under way, once it has been collected; a buffer outlives its round
    self.examples: dict = {}  # row of the batch -> its example, as far as they are known
    self.scored_by: dict | None = None  # role and fingerprint of the weights behind its reference log-probs
    self.told: set = set()  # what the terminal has said once

  # --- weights ----------------------------------------------------------------------------------------------------

  def abstract_state(self, stage: Stage):
    """Shapes and shardings of the train state: nothing is ever materialised unsharded."""
    return abstract_state(self.run.model, self.run.trained, self.run.mesh, stage)

  def abstract(self, role: str):
    """The same of the trained leaves of the role `policy`, which `ref` and a copied `teacher` have, too, or `judge`."""
    headed = next((s.headed for s in self.run.stages if s.trains == role), lambda leaves: leaves)
    return abstract(self.run.model, self.run.mesh, lambda params: headed(self.run.trained(params)))

  def new_state(self, stage: Stage, params) -> TrainState:
    return state_program(stage, self.abstract_state(stage))(params)

  def restore(self) -> bool:
    """The rule of where weights come from. True: from a checkpoint."""
    run = self.run
    first = self.checkpoints.latest_host()
    if first is None:
      self.cursor = Cursor(0, 0, 0, 0, run.stream.start())
      params, stage = run.model.read(run.mesh), run.stages[0]
      self.state, self.ref = self.new_state(stage, stage.headed(run.trained(params))), None
      self.resting = {} if stage.trains == 'policy' else {'policy': mesh_lib.park(run.trained(params))}
      self.keep_base(params)
      self.keep_teacher()
      return False

    def abstract(specs: dict):
      """The tree that a checkpoint with these arrays holds; the round's batch comes back as plain host arrays."""
      tree = {'state': self.abstract_state(run.stages[self.stage_of(first)])}
      for role in ('ref', 'teacher', 'policy', 'judge'):
        if any(name.startswith(f'{role}/') for name in specs):
          tree[role] = self.abstract('judge' if role == 'judge' else 'policy')
      batch = {name: spec for name, spec in specs.items() if name.startswith('batch/')}
      if batch:
        replicated = mesh_lib.replicated(run.mesh)
        make = lambda spec: jax.ShapeDtypeStruct(tuple(spec[1]), spec[0], sharding=replicated)
        tree['batch'] = {name.removeprefix('batch/').replace('/', '.'): make(spec) for name, spec in batch.items()}
      return tree

    restored = self.checkpoints.restore(abstract)
    for sentence in restored.skipped:
      self.progress.note(sentence)
    host, tree = restored.host, restored.tree
    self.cursor = Cursor(**host['cursor'])
    self.state, self.ref = tree['state'], mesh_lib.park(tree['ref']) if 'ref' in tree else None
    self.resting = {role: mesh_lib.park(tree[role]) for role in ('policy', 'judge') if role in tree}
    self.batch = unpack(tree['batch'], run.mesh) if 'batch' in tree else None
    for name, value in host['seconds'].items():
      self.seconds[name] += value
    self.keep_base(run.model.read(run.mesh) if run.keeps_base else None)
    if self.base_bits != host['base']:
      what = f'The weights of {self.config["model"]["spec"]} are not those that the adapters'
      raise UserError(f'{what} in {self.home} were trained on. Put them back, or choose another workdir.')
    self.keep_teacher(tree.get('teacher'))
    self.check_scored(host['scored_by'])
    self.progress.note(f'resuming from checkpoint {restored.step}')
    return True

  def check_scored(self, scored_by: dict | None) -> None:
    """Refuses stored reference log-probs if the weights that they are of have changed. The policy's own always do."""
    self.scored_by = scored_by
    if scored_by is None or (role := scored_by['role']) == 'policy':
      return
    stage = self.run.stages[self.cursor.stage]
    if int(lora.fingerprint(self.weights(stage)[role])) != scored_by['fingerprint']:
      raise UserError(
        f'The reference log-probs of the round under way in {self.home} are of other weights than the role {role!r} '
        f'has now: {self.config["model"]["spec"]} has changed. Put it back, or choose another workdir.'
      )

  def keep_base(self, params) -> None:
    """The frozen base, if the run reads it. `base_bits` tells that of adapters from another; None: no adapters."""
    adapters = lora.is_adapters(self.abstract('policy'))
    self.base = params if adapters else mesh_lib.park(params) if self.run.keeps_base else None
    self.base_bits = int(lora.fingerprint(params)) if adapters else None

  def keep_teacher(self, copy=None) -> None:
    """The role `teacher` in host memory: `copy`, if the run had one; else the policy as it is now, or a model's own."""
    run = self.run
    if run.copies_teacher:
      self.teacher = mesh_lib.park(self.leaves('policy') if copy is None else copy)
    else:
      self.teacher = mesh_lib.park(run.teacher.read(run.mesh)) if run.teacher else None

  def stage_of(self, host: dict) -> int:
    return min(host['cursor']['stage'], len(self.run.stages) - 1)

  def save(self, batch: Batch | None = None) -> None:
    tree = {'state': self.state}
    whole = lambda parked, role='policy': self.placed(parked, role) if hosts.several() else parked
    tree |= {role: whole(parked, role) for role, parked in self.resting.items()}
    if self.ref is not None:
      tree['ref'] = whole(self.ref)
    if self.run.copies_teacher:
      tree['teacher'] = whole(self.teacher)
    if batch is not None:
      tree['batch'] = pack(batch)
    host = {'cursor': self.cursor._asdict(), 'config': self.config, 'seconds': dict(self.seconds)}
    within = batch is not None and self.cursor.update
    host |= {'base': self.base_bits, 'scored_by': self.scored_by if within else None}
    self.home.push()  # a run that resumes from this checkpoint does not write the rows before it again
    self.checkpoints.save(self.cursor.step, tree, host)

  def batch_to_keep(self) -> Batch | None:
    """What is still to be learned from. A round without an update yet is collected again."""
    stage = self.run.stages[self.cursor.stage]
    return self.batch if self.cursor.update or stage.buffer.size else None

  # --- progress ---------------------------------------------------------------------------------------------------

  def enter(self, phase: str, total: int, round_: int = 0, rounds: int = 0, stage: str = '') -> None:
    now = time.monotonic()
    if self.phase:
      self.seconds[self.phase] += now - self.phase_start
    self.phase, self.phase_start = phase, now
    if phase:
      self.progress.phase(phase, total, round=round_, rounds=rounds, stage=stage)

  def tick(self, arrays):
    """Waits for a device call, looking for signals; counts it."""
    if not wait(arrays, self.stop) or self.stop.here():
      raise Stopped
    self.progress.advance(1)
    return arrays

  # --- a round ----------------------------------------------------------------------------------------------------

  def frozen(self) -> dict:
    """What the trained parameters need beside them to be a model."""
    return {} if self.base_bits is None else {'base': self.base}

  def leaves(self, role: str):
    """What is trained of the role `policy` or `judge`, on the devices."""
    trains = self.run.stages[self.cursor.stage].trains
    return self.state.params if role == trains else self.placed(self.resting[role], role)

  def model(self, role: str):
    return self.run.whole(self.frozen(), self.leaves(role))

  def placed(self, parked, role: str = 'policy'):
    """What waits in host memory, shaped as the trained leaves of a role, on the devices."""
    return mesh_lib.put(parked, jax.tree.map(lambda x: x.sharding, self.abstract(role)))

  def base_weights(self):
    return self.frozen().get('base') or self.placed(self.base)

  def weights(self, stage: Stage) -> dict:
    """The roles that the stage's collecting reads, on the devices."""
    roles, frozen = {'policy': self.model('policy')}, self.frozen()
    if stage.refreshes:
      roles['ref'] = self.run.whole(frozen, self.placed(self.ref))
    if stage.reads_base:
      roles['base'] = self.base_weights()
    if stage.reads_judge:
      roles['judge'] = self.model('judge')
    if stage.reads_teacher and self.run.copies_teacher:
      roles['teacher'] = self.run.whole(frozen, self.placed(self.teacher))
    elif stage.reads_teacher:
      shapes = jax.eval_shape(self.run.teacher.policy.init, jax.random.key(0))
      roles['teacher'] = mesh_lib.put(self.teacher, mesh_lib.shardings(self.run.mesh, shapes, models.RULES))
    return roles

  def collect(self, stage: Stage, examples, rendered, plan) -> Collected:
    c, rounds = self.cursor, stage.rounds
    calls = lambda size: -(-len(examples) // size)
    totals = {'sample': calls(stage.collector.prompts_per_call), 'judge': None if stage.collector.judge.ticks else 1}
    totals['reference'] = calls(stage.reference.chunk)
    totals['compile'] = len(stage.buckets)

    def tick(arrays):
      self.tick(arrays)
      if self.phase == 'sample':
        self.progress.advance(0, tokens=int(mesh_lib.host(arrays.length_BxG).sum()))
      return arrays

    return collect(
      stage.collector,
      self.weights(stage),
      self.key(),
      rendered,
      examples,
      temperature=plan.temperature,
      reference=stage.reference,
      real=plan.prompts,
      old=stage.old,
      phase=lambda name: self.enter(name, totals[name], c.round + 1, rounds, stage.name),
      tick=tick,
    )

  def round(self, stage: Stage, step, writer: MetricsWriter) -> None:
    run, c, started = self.run, self.cursor, time.monotonic()
    self.profile.before(c.step + 1)
    plan = stage.plan(c.round)
    indices, position = run.stream.take(c.position, plan.prompts)
    examples = [run.examples[i] for i in indices]
    if plan.draft in SAMPLED and c.update == 0:
      examples = self.drafted(stage, examples, plan)
    rendered = stage.render(examples, plan)
    facts = {f'study/trimmed_{name}': count for name, count in rendered.trimmed.items()}
    for name, count in rendered.trimmed.items():
      whole = plan.prompts * (2 if name == 'drafts' else 1)  # both of a pair's orders
      if count and name == 'anchors':
        whole = np.count_nonzero(rendered.sample.given.length_BxA)
      what = f'{count} of {whole} {name} were cut to fit the lengths of config.view'
      self.count_aloud(stage, f'study/trimmed_{name}', count, what)
    # The last minibatch of an epoch may be smaller: it is filled up with rows that have no tokens and weigh nothing.
    rows_ = rows_of(plan, stage.batch)
    rendered, examples = filled(rendered, rows_), [examples[i % plan.prompts] for i in range(rows_)]
    before = sum(rows_of(stage.plan(r), stage.batch) for r in range(c.round))
    kept = stage.buffer.size and before > 0  # rows of earlier rounds
    first = self.ref is None
    refreshed = stage.refreshes and c.update == 0 and (first or 'ref' in plan.refresh)
    if refreshed:
      old = self.state.params if first else self.placed(self.ref)
      self.ref = mesh_lib.park(self.state.params if stage.rate == 1 else mixed(self.state.params, old, stage.rate))
    # Whether the reference is, as this round begins, the policy itself; only then can the first update be checked.
    copied = refreshed and (first or stage.rate == 1)
    self.anchored = {'policy': not kept, 'ref': copied and not kept, 'base': c.step == 0}
    if stage.collector and c.update == 0:
      got, held = self.collect(stage, examples, rendered, plan), self.batch
      seen = mesh_lib.host((got.group, got.judgement, got.selection))
      facts |= got.metrics | sampled_diversity(run.model.tokenizer, seen[0])
      self.batch = got.batch
      if stage.buffer.size:
        filled_ = stage.buffer.put(*mesh_lib.host((held, got.batch)), before)
        self.batch = mesh_lib.put_batch(run.mesh, filled_)
      role = stage.reference.role
      self.scored_by = None if got.scored_by is None else {'role': role, 'fingerprint': got.scored_by}
      count = int(got.metrics['study/unpaired'])
      what = f'{count} of {plan.prompts} prompts have no pair to learn from: one is empty, both are the same, or a tie'
      self.count_aloud(stage, 'study/unpaired', count, what)
      for row in group_rows(run, stage, c, examples[: plan.prompts], rendered, *seen):
        writer.group(row)
    batches = {'text': mesh_lib.put_batch(run.mesh, rendered.text)} if 'text' in stage.terms else {}
    if stage.collector:
      batches['group'] = self.batch
    places, real = stage.buffer.places(before, rows_), plan.prompts
    self.examples |= dict(zip(places.tolist(), examples))
    if stage.collector and stage.buffer.size:
      rows_ = real = stage.buffer.filled(before, rows_)
    order = update_order(run.seed if run.stream.shuffle else None, c, plan.epochs, real, rows_, stage.batch)
    enter = lambda name, total: self.enter(name, total, c.round + 1, stage.rounds, stage.name)
    args = self.frozen(), batches, order[0], mesh_lib.put_batch(run.mesh, self.replay(stage, c))
    step.prepare(self.state, *args, phase=lambda name: enter(name, len(stage.buckets)), tick=self.tick)
    enter('update', len(order))
    self.progress.advance(c.update)
    measured = [lengths_of(batch) for batch in batches.values()]
    facts['perf/collect_seconds'] = time.monotonic() - started
    clock = StepClock()
    for update in range(c.update, len(order)):
      self.profile.before(c.step + 1)
      with clock.spent('input'):
        replay = self.replay(stage, c)
        needed = [n for lengths in measured for n in lengths(order[update])]
        needed += [n for lengths in map(lengths_of, replay.values()) for n in lengths()]
        replay = mesh_lib.put_batch(run.mesh, replay)
      with jax.profiler.StepTraceAnnotation('update', step_num=c.step + 1):
        self.state, metrics = step(needed, self.state, self.frozen(), batches, order[update], replay)
      self.profile.after(c.step + 1, metrics)
      host = {'stage': stage.name, 'round': c.round + 1, **(facts if update == 0 else {})}
      host['perf/compile_count'] = self.compiles.count
      if self.peak:
        host['perf/flops'] = step.flops()
      self.bad, previous = {k: v for k, v in metrics.items() if v.ndim}, self.bad
      with clock.spent('device'):
        row = self.late.push(c.step + 1, host, {k: v for k, v in metrics.items() if not v.ndim})
      self.log(row, stage, writer, clock.lap(), previous)
      c = self.cursor = c._replace(update=update + 1, step=c.step + 1)
      self.order = order
      if c.update < len(order) and self.stop.here():
        self.log_last(stage, writer, clock)
        raise Stopped
    self.log_last(stage, writer, clock)
    self.cursor = Cursor(c.stage, c.round + 1, 0, c.step, position)
    self.batch = self.batch if stage.buffer.size else None

  def drafted(self, stage: Stage, examples: Sequence[Example], plan) -> list[Example]:
    """The examples with a sampled response as their last anchor, which the prompts then ask to improve."""
    improved = plan.draft == 'improved'
    calls = -(-len(examples) // stage.collector.prompts_per_call) * (1 + improved)
    self.enter('draft', calls, self.cursor.round + 1, stage.rounds, stage.name)
    weights = {'base': self.base_weights(), 'policy': self.model('policy')}
    texts = stage.draft(weights, jax.random.fold_in(self.key(), DRAFTS), examples, improved, self.tick)
    return [dataclasses.replace(e, anchors=(*e.anchors, text)) for e, text in zip(examples, texts)]

  def key(self):
    """Of the round."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.run.seed), self.cursor.stage), self.cursor.round)

  def count_aloud(self, stage: Stage, metric: str, count: int, what: str) -> None:
    """Says it once a stage, if there is anything to count."""
    if count and (stage.name, metric) not in self.told:
      self.told.add((stage.name, metric))
      self.progress.note(f'{what} (round {self.cursor.round + 1}; later ones: {metric} in metrics.jsonl)')

  def replay(self, stage: Stage, c: Cursor) -> dict[str, Batch]:
    """The term `replay` of this step, if the stage has one; host arrays."""
    if not stage.replay:
      return {}
    order = permutation(len(stage.replay), self.run.seed, c.stage, c.step)
    texts = [stage.replay[i] for i in order[: stage.replay_batch]]
    batch, _ = text_batch(self.run.model.tokenizer, texts, stage.replay_length)
    return {'replay': batch}

  def log_last(self, stage: Stage, writer: MetricsWriter, clock: StepClock) -> None:
    with clock.spent('device'):
      row = self.late.flush()
    self.log(row, stage, writer, clock.lap(), self.bad)

  def log(self, row: dict | None, stage: Stage, writer: MetricsWriter, spent: dict, bad: dict) -> None:
    """Writes a step's row after its checks. The step after it is already under way."""
    if row is None:
      return
    self.progress.advance(1, tokens=row['num_tokens'])
    seconds = max(spent['perf/step_seconds'], 1e-9)
    row |= spent
    row['perf/tokens_per_second'] = row['num_tokens'] / seconds
    if self.peak:
      row['perf/mfu'] = row['perf/flops'] / seconds / self.peak
    if not row.pop('finite'):
      raise self.not_finite(row, bad)
    self.check_reference(row, stage)
    writer.metrics(row)

  def check_reference(self, row: dict, stage: Stage) -> None:
    """The self-test of a round's first update, or one line that says why there is none."""
    if 'check/sampler_gap' not in row or not stage.at_reference:
      return
    if self.anchored[stage.reference.role]:
      self_test(row, stage)
    elif 'no self-test' not in self.told:
      self.told.add('no self-test')
      role = stage.reference.role
      self.progress.note(f'No self-test of this update: its reference, the role {role!r}, is not the policy now.')

  def not_finite(self, row: dict, bad: dict) -> UserError:
    names = nonfinite(row)
    step_rows = [self.examples.get(i, EARLIER) for i in self.order[self.cursor.update - 1].tolist()]
    marked = np.zeros(len(step_rows), bool)
    for term in ('bad/text', 'bad/group'):
      marked |= mesh_lib.host(bad[term]) if term in bad else False
    shown = [e for e, mark in zip(step_rows, marked) if mark or not marked.any()]
    which = '; '.join(f'{e.where or "row"}: {(e.text or e.prompt)[:60]!r}' for e in shown)
    return UserError(
      f'Step {row["step"]}: {", ".join(names)} not finite, with '
      f'{"non-finite log-probs in" if marked.any() else "finite log-probs in all of"} the rows {which}. '
      f'Nothing of this step is saved. Lower config.optimizer.lr or look at these rows; '
      f'the checkpoints in {self.checkpoints.directory} are intact.'
    )

  # --- the run ----------------------------------------------------------------------------------------------------

  def evaluate(self, when: str, writer: MetricsWriter) -> None:
    self.enter('evaluate', self.run.eval_calls)
    done = rows(self.workdir / 'evaluations.jsonl') if hosts.is_first() else []
    before = next((row['samples'] for row in done if row['when'] == 'before'), ())
    trained = {'policy', self.run.stages[self.cursor.stage].trains, *self.resting}
    weights = {role: self.model(role) for role in sorted(trained & {'policy', *self.run.eval_roles})}
    if 'base' in self.run.eval_roles:
      weights['base'] = self.base_weights()
    metrics, samples = self.run.evaluate(weights, self.tick, before)
    writer.evaluation({'when': when, 'step': self.cursor.step, 'metrics': metrics, 'samples': samples})

  def evaluated(self, when: str) -> bool:
    is_it = lambda row: row['when'] == when and row['step'] == self.cursor.step
    return hosts.first('evaluated', lambda: any(map(is_it, rows(self.workdir / 'evaluations.jsonl'))))

  def finished(self) -> bool:
    return self.cursor.stage == len(self.run.stages) - 1 and self.cursor.round >= self.run.stages[-1].rounds

  def study(self) -> bool:
    """Runs to the end, or until a signal (False). What is on disk then is enough to go on."""
    self.enter('load', 1)
    resumed = self.restore()
    if resumed and self.finished() and self.evaluated('after' if self.cursor.step else 'before'):
      self.progress.note('This run is finished; raise the rounds to study on, or choose another workdir.')
      if not (self.workdir / 'report.html').exists():  # killed between its last row and its report
        self.write_timing()
      return True
    step = self.cursor.step if resumed else None
    with MetricsWriter(self.workdir, step) if hosts.is_first() else NoWriter() as writer:
      try:
        if self.cursor.step == 0 and not self.evaluated('before'):
          self.evaluate('before', writer)
        self.stages(writer)
        if self.cursor.step:
          self.evaluate('after', writer)
        else:  # a run without rounds: there is nothing that came after
          self.enter('checkpoint', 1)
          self.save(self.batch_to_keep())
      except Stopped:
        self.enter('', 0)
        self.save(self.batch_to_keep())
        self.checkpoints.wait()
        return False
      self.enter('', 0)
      self.checkpoints.wait()
    self.write_timing()
    return True

  def stages(self, writer: MetricsWriter) -> None:
    while not self.finished():
      stage = self.run.stages[self.cursor.stage]
      if self.cursor.round >= stage.rounds:
        self.cursor = Cursor(self.cursor.stage + 1, 0, 0, self.cursor.step, self.cursor.position)
        self.begin(stage.trains, self.run.stages[self.cursor.stage])
        continue
      begins = self.cursor.step and self.cursor.round == self.cursor.update == 0
      if self.run.eval_every and begins and not self.evaluated(when := f'stage {stage.name}'):
        self.evaluate(when, writer)
      step, warm = bucketed_step(stage, self.abstract_state(stage)), False
      while self.cursor.round < stage.rounds:
        when = f'round {self.cursor.round}'
        due = self.run.eval_every and self.cursor.round and self.cursor.round % self.run.eval_every == 0
        # Here, not after the round: a run that was stopped within an evaluation comes by again.
        if due and self.cursor.update == 0 and not self.evaluated(when):
          self.evaluate(when, writer)
        whole, compiled = self.cursor.update == 0, self.compiles.count
        self.round(stage, step, writer)
        self.late_compiles += (self.compiles.count - compiled) * warm
        warm = warm or whole
        if self.cursor.round == stage.rounds or self.cursor.round % self.run.checkpoint_every == 0:
          self.enter('checkpoint', 1)
          self.save(self.batch_to_keep())
        if self.stop.here():
          raise Stopped

  def begin(self, before: str, stage: Stage) -> None:
    """Hands the weights over to the next stage; `before`: the role that the last one trained.

    A judge that was not trained yet begins as the policy is, with a head.
    """
    if stage.trains != before:
      self.resting[before] = mesh_lib.park(self.state.params)
    if stage.trains in self.resting:
      start = self.placed(self.resting.pop(stage.trains), stage.trains)
    else:
      start = self.state.params if stage.trains == before else stage.headed(self.state.params)
    self.state = None  # its moments make room
    if self.run.copies_teacher:
      self.teacher = mesh_lib.park(start if stage.trains == 'policy' else self.resting['policy'])
    if self.run.restarts and stage.trains == 'policy':
      start = self.run.trained(self.base_weights())
    self.state, self.ref = self.new_state(stage, start), None
    self.batch, self.examples = None, {}

  def write_timing(self) -> None:
    if not hosts.is_first():
      return
    timing = {**{k: round(v, 2) for k, v in self.seconds.items()}, 'total': round(sum(self.seconds.values()), 2)}
    timing |= {'compile_count': self.compiles.count, 'compile_count_after_first_round': self.late_compiles}
    if self.late_compiles:
      self.progress.note(f'{self.late_compiles} programs were compiled after the first round: shapes changed.')
    (self.workdir / 'timing.json').write_text(json.dumps(timing, indent=2))
    report.write(self.workdir)


def abstract(model: models.Model, mesh, make):
  """Shapes and shardings of make(the model's parameters)."""
  tree = jax.eval_shape(lambda key: make(model.policy.init(key)), jax.random.key(0))
  placed = mesh_lib.shardings(mesh, tree, models.RULES)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed)


def abstract_state(model: models.Model, trained, mesh, stage: Stage) -> TrainState:
  """The same of a stage's train state."""
  return abstract(model, mesh, lambda params: stage.update.init(stage.headed(trained(params))))


def state_program(stage: Stage, abstract: TrainState):
  """(params) -> a new train state, placed as `abstract` says."""
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  # A copy of the parameters: the step donates them, and `params` may be another role's weights.
  return jax.jit(lambda params: stage.update.init(jax.tree.map(jnp.copy, params)), out_shardings=placed)


def bucketed_step(stage: Stage, abstract: TrainState) -> buckets.Bucketed:
  """(state, frozen roles, batches of the round, index_b, replay) -> (state, metrics): a step on these prompts of each.

  The state is donated and kept in its shardings. All terms are cut to one share of their lengths.
  """
  placed = jax.tree.map(lambda x: x.sharding, abstract)

  def step(share, state, weights, batches, index_b, replay):
    chosen = jax.tree.map(lambda x: mesh_lib.constrain(x[index_b], mesh_lib.BATCH), batches)
    short = {term: buckets.cut_batch(batch, share) for term, batch in (chosen | replay).items()}
    return stage.update.step(state, weights, short)

  return buckets.Bucketed(step, stage.buckets, donate_argnums=0, out_shardings=(placed, None))


def lengths_of(batch: Batch):
  """lengths(rows of the batch) as `buckets.lengths`; fetched here, once for all minibatches."""
  prompts, length = mesh_lib.host((batch.prompts.length_B, batch.length_BxG))
  prompts = dataclasses.replace(batch.prompts, length_B=prompts)
  return functools.partial(buckets.lengths, prompts, batch.ids_BxGxT, length)


@functools.partial(jax.jit, static_argnames='rate')
def mixed(params, ref, rate: float):
  """rate * params + (1 - rate) * ref, in float32: TR-DPO's soft update, arXiv 2404.09656."""

  def one(new, old):
    old_, new_ = old.astype(jnp.float32), new.astype(jnp.float32)
    return (old_ + rate * (new_ - old_)).astype(old.dtype)  # exact where both are the same

  return jax.tree.map(one, params, ref)


def update_order(seed: int | None, c: Cursor, epochs: int, real: int, total: int, size: int) -> list[np.ndarray]:
  """Minibatches of the `total` rows for all epochs of a round, in their order without a seed.

  Those after the first `real` only fill up, and stay last.
  """
  out = []
  for epoch in range(epochs):
    order = np.arange(total)
    if seed is not None:
      order[:real] = permutation(real, seed, c.stage, c.round, epoch)
    out += list(order.reshape(-1, size))
  return out


def pack(batch: Batch) -> dict:
  """A batch as a flat dict, for the checkpoint."""
  named = jax.tree_util.tree_leaves_with_path(batch)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): x for path, x in named}


def unpack(arrays: dict, mesh) -> Batch:
  def make(cls, prefix, **parts):
    values = {}
    for field in dataclasses.fields(cls):
      name = f'{prefix}{field.name}'
      values[field.name] = parts[field.name] if field.name in parts else arrays[name] if name in arrays else None
    return cls(**values)

  given = make(Completions, 'prompts.given.') if 'prompts.given.ids_BxAxT' in arrays else None
  prompts = make(Prompts, 'prompts.', given=given)
  batch = make(Batch, '', prompts=prompts, selection=make(Selection, 'selection.'))
  return mesh_lib.put_batch(mesh, mesh_lib.host(batch))


def self_test(row: dict, stage: Stage) -> None:
  """With the policy as its own reference every loss of the group has its value there, and rewards are 0.

  Exactly where the reference is the step's own log-probs; else within what the sampler-trainer gap, measured or
  allowed, may move them by. A batch in which nothing has weight has nothing to test.
  """
  own = stage.reference.role == 'policy' and stage.reference.one_update
  gap = 0.0 if own else max(stage.reference.max_gap, row['check/sampler_gap'])
  for metric, (value, slope) in stage.at_reference.items():
    loss = metric.partition('/')[0]
    weight = next(row[key] for name in ('pairs', 'rows') if (key := f'group/{loss}/{name}') in row)
    if not weight:
      continue
    key = f'group/{metric}' if f'group/{metric}' in row else public_name('group', metric)
    off = row[key] - value
    if metric.endswith('/loss'):
      row[f'check/{loss}_at_reference'] = off
    if not abs(off) <= slope * gap + 1e-6 * max(1.0, abs(value)):
      raise SelfTestFailed(
        f'Step {row["step"]}: with the policy as its own reference {key} must be {value:.6f}; it is {row[key]:.6f}. '
        f'The reference log-probs are not those of the policy: the run stops before it learns from them.'
      )


def sampled_diversity(tokenizer, group) -> dict[str, float]:
  """`diversity` of what models sampled, not of what was given; of host arrays."""
  ids, length, source = group.ids_BxGxT, group.length_BxG, group.source_BxG
  ids = [row[:n].tolist() for row, n in zip(ids[source >= 0], length[source >= 0]) if n]
  return diversity(ids, [completion_text(tokenizer, row, len(row)) for row in ids])


def figures(x):
  """A number, or a list of them with None where one is missing."""
  return float(x) if x.ndim == 0 else [float(value) if math.isfinite(value) else None for value in x]


def group_rows(run: Run, stage: Stage, c: Cursor, examples, rendered, group, judgement, selection) -> list[dict]:
  """What a person reads: each text with its completions, scores and what was chosen; of host arrays."""
  tokenizer, out = run.model.tokenizer, []
  for b, example in list(enumerate(examples))[: run.log_groups]:
    paired = selection.pair_weight_BxJ[b] > 0
    chosen = {int(g) for g in selection.chosen_BxJ[b][paired]} | set(np.flatnonzero(selection.row_weight_BxG[b] > 0))
    rejected = {int(g) for g in selection.rejected_BxJ[b][paired]} - chosen
    completions = []
    for g in range(group.ids_BxGxT.shape[1]):
      score = float(judgement.score_BxG[b, g])
      completions.append(
        {
          'text': completion_text(tokenizer, group.ids_BxGxT[b, g], int(group.length_BxG[b, g])),
          'score': score if math.isfinite(score) else None,
          'source': int(group.source_BxG[b, g]),
          'chosen': g in chosen,
          'rejected': g in rejected,
          'tokens': int(group.length_BxG[b, g]),
          'finished': bool(group.finished_BxG[b, g]),
          'info': {name: figures(x[b, g]) for name, x in judgement.info.items()},
        }
      )
    n, P = int(rendered.sample.length_B[b]), rendered.sample.ids_BxP.shape[1]
    prompt = tokenizer.decode([int(i) for i in rendered.sample.ids_BxP[b, P - n :]], start=True)
    # The step is that of the first update that learns from it: a checkpoint within the round keeps the row.
    out.append(
      {
        'step': c.step + 1,
        'stage': stage.name,
        'round': c.round + 1,
        'text': example.text or example.prompt,
        'prompt': prompt,
        **({'questions': [[q.question, q.answer] for q in example.questions]} if 'after' in judgement.info else {}),
        'completions': completions,
      }
    )
  return out
