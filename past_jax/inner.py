"""Inner runs: hundreds of small trainings of one model, each with questions afterwards, in one program.

A run fits adapters, or a copy of all parameters, to a few rows of tokens and is then asked without them. Runs are
stacked on a leading axis: their leaves are batched, the model's own are not, so its product with a kernel is one for
all runs, and it is in memory once (arXiv 2506.10943 trains one after the other). No run sees another: each has its own
seed, moments, learning rate and number of steps, and comes out as it would alone (tests/inner_test.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from past_jax import lora
from past_jax.logps import group_logps, token_mask
from past_jax.mesh import BATCH, batch_ways, constrain, host, put, put_batch, stacked
from past_jax.text import Tokenizer, pack_completions, pack_prompts
from past_jax.types import Array, Params, Policy, Prompts, UserError, device_type
from past_jax.update import OPTIMIZERS

LOGITS = 4096  # tokens of a device whose logits exist at once, over all of its runs


class Row(NamedTuple):
  """A text to train on."""

  ids: Sequence[int]
  start: int = 0  # its first token that is learned


class Asked(NamedTuple):
  """A question, and the answer whose log-prob is taken."""

  prompt: Sequence[int]
  answer: Sequence[int]


class Job(NamedTuple):
  """One inner run. Without rows it is the model as it is that is asked."""

  rows: Sequence[Row] = ()
  asked: Sequence[Asked] = ()
  seed: int = 0
  lr: float | None = None  # None: that of all runs; the same of epochs
  epochs: int | None = None
  kept: Sequence[Row] = ()  # with `Recipe.kl`: on these the model is to stay as it is


class Outcome(NamedTuple):
  answers: list[list[int]]  # greedy, one for each question, without the token that ended it
  logps: list[float]  # nats, of the expected answers
  losses: list[float]  # nats per learned token, one for each step, before it


@device_type
class Work:
  """N runs of one shape."""

  seed_N: Array  # uint32
  ids_NxRxL: Array  # rows, left-aligned
  length_NxR: Array
  start_NxR: Array
  order_NxKxb: Array  # which rows a step takes; -1: none
  lr_N: Array
  steps_N: Array
  kept_NxCxL: Array
  kept_length_NxC: Array


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How inner runs are trained and asked: the keys of config.inner that are about tokens.

  rank: of the adapters; 0: every run trains a copy of all parameters. alpha: adapters are scaled by alpha / rank.
  targets: regexes on the paths of linear layers; (): all within the layers.
  lr: with schedule 'linear' it goes down to 0 over a run's own steps. batch: rows per step, whose learned tokens' mean
  loss is the step's. epochs: each in an order of its own. steps: most of a run; 0: those of `epochs` over `rows`.
  rows: most of a run; further ones are left out. length: tokens of a row, cut on the right.
  questions: asked at a time. prompt_length, answer_length: tokens. until: an answer ends with its `line`, or its `end`.
  chunk: runs at a time.
  kl: weight of KL(the model as it is || the run's) in nats per token of `kept` further rows, the same in every step.
  """

  rank: int = 8
  alpha: float = 8.0
  targets: Sequence[str] = ()
  optimizer: str = 'adamw'
  lr: float = 1e-3
  schedule: str = 'constant'
  clip: float = 1.0
  epochs: int = 10
  steps: int = 0
  batch: int = 1
  rows: int = 16
  length: int = 128
  questions: int = 8
  prompt_length: int = 64
  answer_length: int = 16
  until: str = 'line'
  chunk: int = 64
  kl: float = 0.0
  kept: int = 0

  @property
  def most_steps(self) -> int:
    return self.steps or self.epochs * -(-self.rows // self.batch)


def order_of(rows: int, batch: int, epochs: int, seed: int) -> np.ndarray:
  """[steps, batch]: all rows, in another order in every epoch; -1 where its last minibatch is smaller."""
  out = np.full((epochs, -(-rows // batch) * batch), -1, np.int32)
  for epoch in range(epochs):
    out[epoch, :rows] = np.random.default_rng((seed, epoch)).permutation(rows)
  return out.reshape(-1, batch)


def greedy(policy: Policy, params: Params, prompts: Prompts, T: int) -> Array:
  """ids_QxT: the likeliest token, T times; what follows an end token means nothing.

  `sampler.sample` ends when all have ended. Of stacked runs that would be a loop that copies every cache at every step,
  to leave those alone that have ended; a fixed number of steps copies nothing.
  """
  best = lambda params, hidden: jnp.argmax(policy.head(params, hidden), axis=-1).astype(jnp.int32)
  hidden, prompt_cache = policy.prefill(params, prompts)
  first, params = best(params, hidden), policy.unstack(params)

  def step(carry, age):
    ids_Q, cache = carry
    ages = jnp.full((len(ids_Q), 1), age)
    hidden, cache = policy.decode(params, prompt_cache, cache, ids_Q[:, None], ages)
    ids_Q = best(params, hidden[:, 0])
    return (ids_Q, cache), ids_Q

  _, rest = jax.lax.scan(step, (first, policy.start(prompt_cache, 1, T)), jnp.arange(T - 1))
  return jnp.concatenate([first[None], rest]).T


def shards() -> int:
  """That a batch is split into, under `jax.set_mesh(mesh)`."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else batch_ways(mesh)


def spread(tree):
  """Stacked arrays, each device its own runs."""
  return jax.tree.map(lambda x: constrain(x, BATCH), tree)


class Inner(NamedTuple):
  """Jitted programs over N stacked runs.

  fit   (params, Work) -> (leaves, each [N, ...], losses_NxK); NaN where a run has no such step
  ask   (params, leaves, prompts of N x Q, (answers_NxQxT, length_NxQ)) -> (logps_NxQ, ids_NxQxT)
  merge (params, leaves, n) -> params of the n-th run, a model
  plain (params) -> the model with its adapters merged; without any, itself
  """

  fit: Callable
  ask: Callable
  merge: Callable
  plain: Callable


def inner_update(policy: Policy, empty: Sequence[int], recipe: Recipe, input_axes) -> Inner:
  """The programs of a recipe. `params` may be a model with adapters: inner runs begin where it is, and merge them.

  Args:
    empty: ids that begin every row, a BOS or none.
    input_axes: as `lora.init` takes them.

  Raises:
    UserError: no such optimizer or schedule.
  """
  r = recipe
  if r.optimizer not in OPTIMIZERS:
    raise UserError(f'optimizer={r.optimizer!r}: choose one of {", ".join(OPTIMIZERS)}.')
  if r.schedule not in ('constant', 'linear'):
    raise UserError(f'schedule={r.schedule!r}: choose one of constant, linear.')
  # Rates are the runs' own: the optimizer's is 1, and what it says is multiplied.
  more = {'input_axes': input_axes} if r.optimizer == 'muon' else {}
  optimizer = OPTIMIZERS[r.optimizer](learning_rate=1.0, clip=r.clip, **more)

  empties = Prompts(np.array([empty or [0]], np.int32), np.array([len(empty)], np.int32))

  def begin(params, seed):
    if not r.rank:
      return params
    return lora.init(jax.random.key(seed), params, targets=r.targets, rank=r.rank, input_axes=input_axes)

  def whole(params, leaves):
    return lora.attach(params, leaves, r.alpha / r.rank) if r.rank else leaves

  def chunk_of(N: int) -> int:
    """Tokens of one run whose logits exist at once."""
    return max(1, LOGITS * shards() // N)

  def loss(leaves, params, ids_bxL, length_b, start_b, chunk):
    logps = group_logps(policy, whole(params, leaves), empties, ids_bxL[None], length_b[None], chunk=chunk)[0]
    L = ids_bxL.shape[1]
    learned = token_mask(empties, length_b[None], L)[0] & (jnp.arange(L)[None] >= start_b[:, None])
    return -jnp.where(learned, logps, 0.0).sum() / jnp.maximum(learned.sum(), 1)

  def drift(leaves, params, ids_CxL, length_C):
    """Mean over the tokens of rows of KL(params || params with leaves), over all of the vocabulary."""
    rows = empties, ids_CxL[None], length_C[None]
    logp = lambda model: jax.nn.log_softmax(policy.head(model, policy.groups(model, [rows])[0]))
    was, now = jax.lax.stop_gradient(logp(params)), logp(whole(params, leaves))
    kl = (jnp.exp(was) * (was - now)).sum(-1)
    counted = token_mask(empties, length_C[None], ids_CxL.shape[1])
    return jnp.where(counted, kl, 0.0).sum() / jnp.maximum(counted.sum(), 1)

  def objective(leaves, params, rows, kept, chunk):
    value = loss(leaves, params, *rows, chunk)
    return value + r.kl * drift(leaves, params, *kept) if r.kl else value, value

  def step(leaves, moments, work: Work, params, i, chunk):
    """Step i of one run, whose `work` this is; one that has fewer stays as it is."""
    chosen_b = work.order_NxKxb[i]
    length_b = jnp.where(chosen_b < 0, 0, work.length_NxR[chosen_b])
    rows = work.ids_NxRxL[chosen_b], length_b, work.start_NxR[chosen_b]
    kept = work.kept_NxCxL, work.kept_length_NxC
    (_, value), grads = jax.value_and_grad(objective, has_aux=True)(leaves, params, rows, kept, chunk)
    updates, moments_ = optimizer.update(grads, moments, leaves)
    rate = work.lr_N * (1 - i / jnp.maximum(work.steps_N, 1) if r.schedule == 'linear' else 1.0)
    leaves_ = optax.apply_updates(leaves, jax.tree.map(lambda u: (u * rate).astype(u.dtype), updates))
    live = i < work.steps_N
    new, old = (leaves_, moments_), (leaves, moments)
    return *jax.tree.map(lambda a, b: jnp.where(live, a, b), new, old), jnp.where(live, value, jnp.nan)

  @jax.jit
  def fit(params, work: Work):
    params, work = lora.merged(params), spread(work)
    N, K, _ = work.order_NxKxb.shape
    leaves = spread(stacked(functools.partial(begin, params), 0)(work.seed_N))
    moments = spread(stacked(optimizer.init, 0)(leaves))
    steps = stacked(functools.partial(step, chunk=chunk_of(N)), (0, 0, 0, None, None))

    def one(i, carry):
      leaves, moments, losses = carry
      leaves, moments, value = steps(leaves, moments, work, params, i)
      return spread(leaves), spread(moments), losses.at[:, i].set(value)

    carry = leaves, moments, jnp.full((N, K), jnp.nan)
    leaves, _, losses = jax.lax.fori_loop(0, work.steps_N.max(), one, carry)
    return leaves, constrain(losses)

  @jax.jit
  def ask(params, leaves, prompts_N: Prompts, expected_N):
    params, N = lora.merged(params), len(prompts_N.length_B)

    def one(leaves, prompts: Prompts, expected, params):
      model, (ids_QxT, length_Q) = whole(params, leaves), expected
      rows = prompts, ids_QxT[:, None], length_Q[:, None]
      logps = group_logps(policy, model, *rows, chunk=chunk_of(N))
      return logps.sum(axis=(1, 2)), greedy(policy, model, prompts, ids_QxT.shape[1])

    return constrain(stacked(one, (0, 0, 0, None))(leaves, spread(prompts_N), spread(expected_N), params))

  @jax.jit
  def merge(params, leaves, n):
    return lora.merged(whole(lora.merged(params), jax.tree.map(lambda x: x[n], leaves)))

  plain = lambda params: jax.jit(lora.merged)(params) if lora.is_adapters(params) else params
  return Inner(fit, ask, merge, plain)


class Runner(NamedTuple):
  """run   (params, jobs, tick) -> an `Outcome` for each
  learn (params, job, tick) -> (params of the model after it, losses)
  lower name -> (params, or their shapes) -> a program of a whole chunk, lowered
  """

  run: Callable[..., list[Outcome]]
  learn: Callable
  lower: Mapping[str, Callable]


def runner(*, policy: Policy, tokenizer: Tokenizer, mesh, recipe: Recipe, input_axes) -> Runner:
  """Inner runs of any number of jobs, `recipe.chunk` at a time, longest first; a chunk is filled up with idle ones.

  `tick` is given the arrays of every device call and returns them.

  Raises:
    UserError: as `inner_update`; from `run`, a question or an answer that does not fit.
  """
  r = recipe
  program = inner_update(policy, tokenizer.plain(''), r, input_axes)
  newline = tokenizer.encode('\n')
  ends = {*tokenizer.stop_ids, *(newline if r.until == 'line' and len(newline) == 1 else ())}

  def epochs_of(job: Job) -> int:
    return r.epochs if job.epochs is None else job.epochs

  def steps_of(job: Job) -> int:
    return min(epochs_of(job) * -(-min(len(job.rows), r.rows) // r.batch), r.most_steps)

  def work_of(jobs: Sequence[Job]) -> Work:
    N = len(jobs)
    rows = [list(job.rows[: r.rows]) for job in jobs]
    full = lambda values, filler: values + [filler] * (r.rows - len(values))
    ids, lengths, _ = pack_completions([full([list(row.ids) for row in some], []) for some in rows], r.length)
    kept, kept_lengths, _ = pack_completions([[list(row.ids) for row in job.kept[: r.kept]] for job in jobs], r.length)
    short = ((0, 0), (0, r.kept - kept.shape[1]))
    order = np.full((N, r.most_steps, r.batch), -1, np.int32)
    for n, job in enumerate(jobs):
      own = order_of(len(rows[n]), r.batch, epochs_of(job), job.seed)[: r.most_steps]
      order[n, : len(own)] = own
    return Work(
      seed_N=np.array([job.seed for job in jobs], np.uint32),
      ids_NxRxL=ids,
      length_NxR=lengths,
      start_NxR=np.array([full([row.start for row in some], 0) for some in rows], np.int32),
      order_NxKxb=order,
      lr_N=np.array([r.lr if job.lr is None else job.lr for job in jobs], np.float32),
      steps_N=np.array([steps_of(job) for job in jobs], np.int32),
      kept_NxCxL=np.pad(kept, (*short, (0, 0))),
      kept_length_NxC=np.pad(kept_lengths, short),
    )

  def questions_of(jobs: Sequence[Job], start: int):
    """The questions from number `start` on, as many as are asked at a time."""
    some = [list(job.asked[start : start + r.questions]) for job in jobs]
    flat = [q for asked in some for q in asked + [Asked([], [])] * (r.questions - len(asked))]
    for key, longest in (
      ('prompt_length', max(len(q.prompt) for q in flat)),
      ('answer_length', max(len(q.answer) for q in flat)),
    ):
      if longest > getattr(r, key):
        raise UserError(f'config.inner.{key}={getattr(r, key)} is too short: a question needs {longest} tokens.')
    split = lambda x: x.reshape(len(jobs), r.questions, *x.shape[1:])
    ids, length, _ = pack_prompts([list(q.prompt) or [0] for q in flat], r.prompt_length)
    answers, answer_length, _ = pack_completions([[list(q.answer)] for q in flat], r.answer_length)
    return Prompts(split(ids), split(length)), (split(answers[:, 0]), split(answer_length[:, 0]))

  def body(ids) -> list[int]:
    ids = ids.tolist()
    return ids[: next((i for i, id_ in enumerate(ids) if id_ in ends), len(ids))]

  def part(params, jobs: Sequence[Job], tick) -> list[Outcome]:
    leaves, losses = tick(program.fit(params, put_batch(mesh, work_of(jobs))))
    blocks = []
    for start in range(0, max(len(job.asked) for job in jobs), r.questions):
      blocks.append(host(tick(program.ask(params, leaves, *put_batch(mesh, questions_of(jobs, start))))))
    losses = host(losses)
    logps = np.concatenate([block[0] for block in blocks], axis=1) if blocks else np.zeros((len(jobs), 0))
    ids = np.concatenate([block[1] for block in blocks], axis=1) if blocks else None
    return [
      Outcome(
        [body(ids[n, q]) for q in range(len(job.asked))],
        logps[n, : len(job.asked)].tolist(),
        losses[n, : steps_of(job)].tolist(),
      )
      for n, job in enumerate(jobs)
    ]

  def run(params, jobs: Sequence[Job], tick: Callable = lambda arrays: arrays) -> list[Outcome]:
    size, params = r.chunk, program.plain(params)
    order = sorted(range(len(jobs)), key=lambda n: -steps_of(jobs[n]))
    out: list = [None] * len(jobs)
    for start in range(0, len(jobs), size):
      numbers = order[start : start + size]
      some = [jobs[n] for n in numbers] + [Job()] * (size - len(numbers))
      for n, outcome in zip(numbers, part(params, some, tick)):
        out[n] = outcome
    return out

  def learn(params, job: Job, tick: Callable = lambda arrays: arrays):
    ways = batch_ways(mesh)  # the fewest runs that can be split over the devices
    leaves, losses = tick(program.fit(params, put_batch(mesh, work_of([job] + [Job()] * (ways - 1)))))
    # Laid out as it was: what comes of replicated leaves would be replicated.
    learned = put(program.merge(params, leaves, 0), jax.tree.map(lambda x: x.sharding, lora.detach(params)))
    return learned, host(losses)[0, : steps_of(job)].tolist()

  def lower_fit(params):
    return program.fit.lower(params, work_of([Job()] * r.chunk))

  def lower_ask(params):
    leaves, _ = jax.eval_shape(program.fit, params, work_of([Job()] * r.chunk))
    return program.ask.lower(params, leaves, *questions_of([Job()] * r.chunk, 0))

  return Runner(run, learn, {'train': lower_fit, 'ask': lower_ask})
