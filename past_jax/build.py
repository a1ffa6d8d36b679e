"""Config -> functions: `build` makes a `Run` of a config in which `checks` has found nothing wrong."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from past_jax import (
  buffer,
  evals,
  generators,
  judges,
  lora,
  mesh,
  models,
  pairs,
  render,
  scores,
  selects,
  self_edits,
  update,
)
from past_jax.buffer import Buffer
from past_jax.collect import Collector, Reference, collector
from past_jax.coverage import coverage
from past_jax.data import recorded, related, sources
from past_jax.data.stream import Stream, permutation
from past_jax.data.worlds.general import general
from past_jax.drafts import SAMPLED, drafter
from past_jax.evals.perplexity import perplexity
from past_jax.evals.setting import Evaluation, Setting
from past_jax.models.transformer import INPUT_AXES
from past_jax.settings import (
  arguments,
  completion_length,
  component,
  grader_of,
  improve_of,
  inner_of,
  losses_by_term,
  optimizer_of,
  plain,
  plans_of,
  roles_of,
  samplers_of,
  updates,
)
from past_jax.types import Example, Params, Plan, Policy, Question, Update, UserError, Weights

ADAPTERS = 1 << 31  # the branch of the run's key for new adapters; rounds use those of the stages' numbers


class Stage(NamedTuple):
  name: str
  trains: str  # the role that learns: policy or judge
  headed: Callable[[Params], Params]  # of the policy's trained leaves, or their shapes: those of that role
  rounds: int
  batch: int  # prompts per update
  plan: Callable[[int], Plan]
  buffer: Buffer  # of the rows that are collected
  collector: Collector | None  # None: nothing is sampled
  reference: Reference | None
  render: Callable
  draft: Callable | None  # (weights, key, examples, improved, tick) -> responses to improve; None: none are sampled
  update: Update
  terms: tuple[str, ...]
  old: Reference | None  # the same for the log-probs of the policy that sampled
  at_reference: Mapping[str, tuple[float, float]]  # `Loss.at_reference` of the group's losses, for the self-test
  rate: float  # a refresh moves the role `ref` this far towards the policy; 1: a copy
  refreshes: bool  # the role `ref` is in use
  reads_base: bool
  reads_teacher: bool
  reads_judge: bool
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
  trained: Callable[[Params], Params]  # the policy's: of the base, or its shapes, all of it, or new adapters
  whole: Callable[[Weights, Params], Params]  # (frozen roles, trained leaves of a role) -> its model
  keeps_base: bool  # some stage or evaluation reads it, or adapters do; else its memory is free
  mesh: jax.sharding.Mesh
  examples: tuple[Example, ...]
  stream: Stream
  stages: tuple[Stage, ...]
  evaluate: Callable  # (weights, tick, samples of the first evaluation) -> (metrics, samples)
  eval_calls: int
  eval_roles: frozenset[str]  # of the weights that some evaluation asks for
  eval_every: int
  checkpoint_every: int
  checkpoint_keep: int
  log_groups: int


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
    found = load(config, source, e.split, e.limit and e.skip + e.limit).examples[e.skip :]
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
  if 'inner' in config:
    self_edits.refuse_long(model.tokenizer, inner_of(config), examples)
  trained, whole = build_adapters(config)
  evaluate, calls, eval_roles = build_evaluation(config, model, mesh_, examples if asked is None else asked)
  stages = build_stages(config, model, mesh_, whole, len(examples), teacher)
  reads_base = 'base' in eval_roles or any(stage.reads_base for stage in stages)
  return Run(
    seed=config.seed,
    model=model,
    teacher=teacher,
    copies_teacher=config.teacher.spec == 'policy',
    restarts=config.teacher.restart,
    trained=trained,
    whole=whole,
    keeps_base=bool(config.model.lora.rank) or config.teacher.restart or reads_base,
    mesh=mesh_,
    examples=tuple(examples),
    stream=Stream(len(examples), config.seed, config.data.shuffle),
    stages=stages,
    evaluate=evaluate,
    eval_calls=calls,
    eval_roles=eval_roles,
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

  def whole(weights: Weights, trained: Params) -> Params:
    head = {name: leaves for name, leaves in trained.items() if name == scores.HEAD}  # a judge's, which has no base
    return lora.attach(weights['base'], scores.body(trained), c.alpha / c.rank) | head

  return init, whole


def within(policy: Policy, vocab: int) -> Policy:
  """A policy that gives ids below `vocab` only: large models pad their embedding further than small ones."""
  return policy._replace(head=lambda params, hidden: policy.head(params, hidden)[..., :vocab])


def build_stages(config, model: models.Model, mesh_, whole, rows: int, teacher: models.Model | None):
  """Every `Stage` of a config, for data of so many rows."""
  policy = model.policy if teacher is None else within(teacher.policy, model.config.vocab)
  return tuple(build_stage(config, name, model, mesh_, whole, rows, policy) for name in config.stages)


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
  draft = None
  if any(p.draft in SAMPLED for p in plans):
    roles.add('base')
    stop = arguments(generators.TABLE, s.generator)['stop']
    length = completion_length(config, name)[1]
    options = dict(view=plain(config.view), improve=improve_of(config), length=length, stop=stop)
    draft = drafter(policy=model.policy, tokenizer=model.tokenizer, mesh=mesh_, chunk=s.sample_prompts, **options)
  if 'group' in s.losses:
    generator, judge = arguments(generators.TABLE, s.generator), arguments(judges.TABLE, s.judge)
    of = lambda keys: teacher if keys.get('role') == 'teacher' else model.policy
    make = functools.partial(component, tokenizer=model.tokenizer)
    judge_resources = dict(
      plain=plain_prompts(config, model), mesh=mesh_, inner=inner_of(config), input_axes=INPUT_AXES
    )
    collect = collector(
      policy=model.policy,
      sampler=of(generator),
      generate=make(generators.TABLE, s.generator, f'{at}.generator', policy=of(generator)),
      judge=make(judges.TABLE, s.judge, f'{at}.judge', policy=of(judge), **judge_resources),
      select=make(selects.TABLE, s.select, f'{at}.select'),
      mesh=mesh_,
      prompts_per_call=s.sample_prompts,
      shares=tuple(s.buckets),
      **({'measure': coverage(model.tokenizer, s.answers, generator['role'] == 'base')} if 'role' in generator else {}),
    )
    samplers = samplers_of(s)
    sampled_by = samplers[0] if len(samplers) == 1 and not generator['anchors'] else ''
    roles |= roles_of(s) | (grader_of(config) if s.judge.name == 'inner_update' else set())
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
  is_judge = s.trains == 'judge'
  return Stage(
    name=name,
    trains=s.trains,
    headed=functools.partial(scores.with_head, width=model.config.width) if is_judge else lambda leaves: leaves,
    rounds=s.rounds,
    batch=s.batch,
    plan=plan,
    buffer=held,
    collector=collect,
    reference=reference,
    render=render.renderer(
      tokenizer=model.tokenizer,
      completion_length=completion_length(config, name)[1],
      improve=improve_of(config),
      **plain(config.view),
    ),
    draft=draft,
    update=build_update(optimizer_of(config, name), s.micro, model, terms, sum(counts), whole),
    terms=tuple(s.losses),
    old=old,
    at_reference=group.at_reference if group else {},
    rate=s.reference.rate,
    refreshes=collect is not None and 'ref' in roles,
    reads_base=collect is not None and 'base' in roles,
    reads_teacher=collect is not None and 'teacher' in roles,
    reads_judge=collect is not None and 'judge' in roles,
    replay=general('replay') if 'replay' in s.losses else (),
    replay_batch=s.replay_batch,
    replay_length=s.replay_length,
    buckets=tuple(s.buckets),
  )


def plain_prompts(config, model: models.Model) -> Callable:
  """plain(examples) -> their prompts by config.view.instruction, whatever drafts a round's have."""
  view = {**plain(config.view), 'train_view': 'same', 'anchors': 0, 'transforms': ()}
  draw = render.renderer(tokenizer=model.tokenizer, completion_length=1, **view)
  return lambda examples: draw(examples, Plan()).sample


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
    **({'outputs': scores.outputs} if any(loss.scores for loss in terms.values()) else {}),
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
  """(evaluate, how many device calls it makes, the roles it asks for): config.eval.tasks, and held-out perplexity."""
  e, resources = config.eval, dict(policy=model.policy, tokenizer=model.tokenizer, mesh=mesh_)
  shape = dict(template=e.template, prompt_length=e.prompt_length, answer_length=e.answer_length, chunk=e.chunk)
  rows, questions = load_questions(config, examples)
  asked, view, parts = some(questions, e.questions), plain(config.view), []
  shape |= dict(view=view, improve=improve_of(config), inner=inner_of(config), input_axes=INPUT_AXES)
  setting = Setting(**resources, examples=rows, questions=asked, **shape)
  for name, keys in plain(e.tasks).items():
    where = f'config.eval.tasks.{name}'
    parts.append(component(evals.TABLE, {'name': name, **keys}, where, setting=setting))
  if e.heldout:
    texts = general('heldout')[: e.heldout_texts]
    held = perplexity(texts=texts, text_length=e.heldout_length, chunk=e.heldout_chunk, **resources)
    parts.append(Evaluation(lambda params, tick, before: held(params, tick), -(-len(texts) // e.heldout_chunk)))

  def evaluate(weights, tick=lambda x: x, before=()):
    metrics, samples = {}, []
    for part in parts:
      if weights.keys() >= set(part.roles):
        m, s = part.run(*(weights[role] for role in part.roles), tick, before)
        metrics |= m
        samples += s
    return metrics, samples

  return evaluate, sum(part.calls for part in parts), frozenset(role for part in parts for role in part.roles)
