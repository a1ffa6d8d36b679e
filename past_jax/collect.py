"""One round's batch: sample groups, judge them, select, and attach reference log-probs."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from past_jax import buckets, hosts, lora, selects
from past_jax.logps import CHUNK, group_logps
from past_jax.mesh import batch_ways, host, put_batch
from past_jax.types import Batch, Example, Generator, Group, Judge, Judgement, Policy, Prompts, Select, Selection

Measure = Callable[[Group, Judgement, Sequence[Example]], dict[str, float]]  # figures of a round, for people


class Collected(NamedTuple):
  batch: Batch  # the term `group`: B prompts, the selected members
  group: Group
  judgement: Judgement
  selection: Selection
  metrics: dict[str, float]
  scored_by: int | None  # fingerprint of the weights whose log-probs are the batch's reference; None: it has none


def compact(group: Group, selection: Selection, train: Prompts) -> Batch:
  """Joins the members that carry weight with their training view; indices become those of the batch's own members."""
  pick = lambda x: jnp.take_along_axis(x, selection.members_BxM, axis=1)
  pick3 = lambda x: jnp.take_along_axis(x, selection.members_BxM[..., None], axis=1)
  place = lambda index_BxJ: jnp.argmax(selection.members_BxM[:, None, :] == index_BxJ[..., None], axis=-1)
  B, M = selection.members_BxM.shape
  return Batch(
    prompts=train,
    ids_BxGxT=pick3(group.ids_BxGxT),
    length_BxG=pick(group.length_BxG),
    ref_logps_BxGxT=None,
    old_logps_BxGxT=None if group.logps_BxGxT is None else pick3(group.logps_BxGxT),
    source_BxG=pick(group.source_BxG),
    selection=Selection(
      chosen_BxJ=place(selection.chosen_BxJ),
      rejected_BxJ=place(selection.rejected_BxJ),
      pair_weight_BxJ=selection.pair_weight_BxJ,
      row_weight_BxG=pick(selection.row_weight_BxG),
      score_BxG=pick(selection.score_BxG),
      members_BxM=jnp.broadcast_to(jnp.arange(M)[None], (B, M)),
    ),
  )


class Collector(NamedTuple):
  """The jitted programs of a round. All take weights as arguments; nothing is captured."""

  generate: buckets.Bucketed  # (weights, keys_B, prompts, temperature) -> Group
  judge: Judge
  select: Callable  # (key, group, judgement, train prompts) -> (Selection, Batch, metrics)
  logps: Callable  # (params, prompts, ids_BxGxT, length_BxG) -> logps_BxGxT, of the role that samples
  score: buckets.Bucketed  # the same of the policy's shape, for reference log-probs
  measure: Measure
  mesh: jax.sharding.Mesh
  prompts_per_call: int


def collector(
  *,
  policy: Policy,
  sampler: Policy | None = None,
  generate: Generator,
  judge: Judge,
  select: Select,
  measure: Measure = lambda group, judgement, examples: {},
  mesh,
  prompts_per_call: int,
  shares: Sequence[float] = (1.0,),
  chunk: int = CHUNK,
) -> Collector:
  """`policy` is trained; `sampler` is that of the role that samples, where it is another: a teacher's."""

  def selected(key, group, judgement, train):
    selection = select(key, group, judgement)
    return selection, compact(group, selection, train), selects.summary(group, selection, judgement)

  def generated(share, weights, keys_B, prompts, temperature):
    group = generate(weights, keys_B, buckets.cut_prompts(prompts, share), temperature)
    return dataclasses.replace(group, prompts=prompts)

  def scored(policy, share, params, prompts, ids, length):
    cut = (buckets.cut_prompts(prompts, share), buckets.cut(ids, share), length)
    logps = group_logps(policy, params, *cut, chunk=chunk)
    return jnp.pad(logps, ((0, 0), (0, 0), (0, ids.shape[2] - logps.shape[2])))

  return Collector(
    generate=buckets.Bucketed(generated, shares),
    judge=judge,
    select=jax.jit(selected),
    logps=jax.jit(lambda *args: scored(sampler or policy, 1.0, *args)),
    score=buckets.Bucketed(functools.partial(scored, policy), shares),
    measure=measure,
    mesh=mesh,
    prompts_per_call=prompts_per_call,
  )


def parts(total: int, size: int) -> list[np.ndarray]:
  """Row numbers 0..total, `size` at a time; the last part is filled up with the last row."""
  return [np.minimum(np.arange(start, start + size), total - 1) for start in range(0, total, size)]


def rows_of(tree, rows: np.ndarray):
  return jax.tree.map(lambda x: x[rows], tree)


def concatenate(trees, total: int):
  """Joins host arrays on the batch axis: joining arrays split over devices would replicate them."""
  return jax.tree.map(lambda *xs: np.concatenate(xs)[:total], *trees)


@jax.jit
def fold(key, rows):
  """One key per row."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def sample(c: Collector, weights, key, prompts: Prompts, temperature, real: int, phase, tick) -> Group:
  """The round's groups, `prompts_per_call` prompts at a time. Cutting differently changes no token.

  Those beyond `real` only fill up a minibatch: their completions are taken away, so nothing is judged or learned there.
  """
  B = prompts.ids_BxP.shape[0]
  calls = parts(B, c.prompts_per_call)
  part = lambda rows: put_batch(c.mesh, (fold(key, rows), rows_of(prompts, rows)))
  c.generate.prepare(weights, *part(calls[0]), np.float32(temperature), phase=phase, tick=tick)
  phase('sample')
  groups = []
  for rows in calls:
    group = c.generate(buckets.lengths(prompts, rows=rows), weights, *part(rows), np.float32(temperature))
    groups.append(host(tick(group)))
  group = concatenate(groups, B)
  keep = np.arange(B) < real
  kept = jax.tree.map(lambda x: np.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, np.zeros_like(x)), group)
  return put_batch(c.mesh, dataclasses.replace(kept, prompts=group.prompts))


def sampler_gap(c: Collector, params, group: Group) -> float:
  """Largest |sum of log-probs by the sampler - by the trainer's function| over 4 prompts a data shard, in nats.

  Both at temperature 1 and in the sampling view; given completions are left out.
  """
  few = put_batch(c.mesh, rows_of(host(group), np.arange(min(len(group.length_BxG), 4 * batch_ways(c.mesh)))))
  again = c.logps(params, few.prompts, few.ids_BxGxT, few.length_BxG)
  again, own, source = host((again, few.logps_BxGxT, few.source_BxG))
  return float(np.where(source >= 0, np.abs(again.sum(-1) - own.sum(-1)), 0.0).max())


def score(c: Collector, params, batch: Batch, size: int, phase, tick):
  """logps_BxGxT of a batch from one scoring pass, in the update's own shapes and by its own function."""
  batch = host(batch)
  whole, calls = (batch.prompts, batch.ids_BxGxT, batch.length_BxG), parts(len(batch.length_BxG), size)
  part = lambda rows: put_batch(c.mesh, rows_of(whole, rows))
  c.score.prepare(params, *part(calls[0]), phase=phase, tick=tick)
  phase('reference')
  scored = []
  for rows in calls:
    logps = c.score(buckets.lengths(*whole, rows=rows), params, *part(rows))
    scored.append(host(tick(logps)))
  return concatenate(scored, len(batch.length_BxG))


def judged(judge: Judge, weights, key, group: Group, examples: Sequence[Example], tick) -> Judgement:
  """Of all prompts; a judge that works on the host scores on each host its own share of them."""
  if judge.ticks:
    return judge.score(weights, key, group, examples, tick=tick)
  if not judge.on_host or not hosts.several():
    return tick(judge.score(weights, key, group, examples))
  own = hosts.share(len(examples), jax.process_index(), jax.process_count())
  judgement = judge.score(weights, key, rows_of(host(group), own), [examples[b] for b in own])
  return tick(hosts.gathered(judgement, len(examples)))


def attach(c: Collector, weights, batch: Batch, sources, gap: float, phase, tick) -> Batch:
  """`batch` with the log-probs that losses read: {field: `Reference`}. No role is scored twice."""
  found, scored = {}, {}
  for field, source in sources.items():
    mode = source.mode(gap)
    if mode == 'score' and source.role not in scored:
      scored[source.role] = score(c, weights[source.role], batch, source.chunk, phase, tick)
    found[field] = {'sampler': batch.old_logps_BxGxT, 'score': scored.get(source.role)}.get(mode)
  return dataclasses.replace(batch, **found)


def collect(
  c: Collector,
  weights,
  key,
  rendered,
  examples: Sequence[Example],
  *,
  temperature: float,
  reference,
  real: int,
  old,
  phase=lambda name: None,
  tick=lambda x: x,
) -> Collected:
  """Stages 3 to 6 of a round (see docs/design.md).

  Args:
    real: how many of the prompts are the round's; the others fill up its last minibatch.
    reference: a `Reference`: which log-probs the preference is measured against, and whether they are free.
    old: the same of the policy that sampled.
    phase: told the name of what comes next (compile, sample, judge, reference), for progress.
    tick: given the arrays of every device call, for progress and to stop early; returns them.
  """
  key_sample, key_judge, key_select = (jax.random.fold_in(key, i) for i in range(3))
  group = sample(c, weights, key_sample, rendered.sample, temperature, real, phase, tick)
  gap = sampler_gap(c, weights[reference.sampled_by], group) if reference.sampled_by else 0.0
  phase('judge')
  judgement = judged(c.judge, weights, key_judge, group, examples, tick)
  train = put_batch(c.mesh, rendered.train)
  selection, batch, metrics = c.select(key_select, group, judgement, train)
  batch = attach(c, weights, batch, {'ref_logps_BxGxT': reference, 'old_logps_BxGxT': old}, gap, phase, tick)
  metrics = {name: float(value) for name, value in host(metrics).items()}
  metrics |= c.measure(group, judgement, examples)
  batch = put_batch(c.mesh, batch)  # laid out alike in every mode: the update's programs are compiled once
  scored_by = None if batch.ref_logps_BxGxT is None else int(lora.fingerprint(weights[reference.role]))
  return Collected(batch, group, judgement, selection, metrics | {'check/sampler_gap': gap}, scored_by)


class Reference(NamedTuple):
  """Where reference log-probs come from.

  `none`: no loss reads them. `self`: one update per round, so the step's own log-probs are the reference, exactly.
  `sampler`: the sampler's, where it was the policy itself in the training view and the measured gap is at most
  `max_gap` nats. Else `score`: one scoring pass, before the first update of the round.
  """

  needed: bool  # some loss reads them
  role: str  # the role whose log-probs are the reference; `policy`: the policy at the start of the round
  sampled_by: str  # '': no one role: completions are given, or some are of another role
  one_update: bool
  same_view: bool  # completions are trained in the view they were sampled in, and all are the policy's own samples
  max_gap: float
  chunk: int  # prompts per scoring call: those whose activations an update holds at once

  def mode(self, gap: float) -> str:
    if not self.needed:
      return 'none'
    if self.role == 'policy' and self.one_update:
      return 'self'
    if self.role == self.sampled_by and self.same_view and gap <= self.max_gap:
      return 'sampler'
    return 'score'
