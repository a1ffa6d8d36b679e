"""The records that pass between stages. Everything else in the package is a function over these.

Letters, in names and docstrings alike: `B` prompts, `G` completions per prompt, `P` prompt length, `T` completion
length, `N` rows, `L` row length, `V` vocabulary, `D` model width, `H`/`K` query/key heads, `J` pairs per prompt,
`A` given completions per prompt, `M` group members that an update looks at.

Device types are frozen pytrees of arrays only. Masks come from lengths, never from `id != pad`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array  # a typed PRNG key; a function that takes one consumes it
Params = Any  # nested dict of arrays
Weights = Mapping[str, Params]  # role -> params: policy (trained), ref, base, teacher, judge
Metrics = dict[str, Array]


class UserError(Exception):
  """Something the user can mend. `main` prints the message, without a traceback, and exits with 2."""


def device_type(cls):
  """A frozen dataclass that is a pytree of its fields."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  fields = [f.name for f in dataclasses.fields(cls)]
  return jax.tree_util.register_dataclass(cls, data_fields=fields, meta_fields=[])


# --- host ---------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
  """A closed-book question. `kind` groups the scores: forward, reversed, two_hop, or any name of the user's."""

  question: str
  answer: str
  kind: str = 'forward'
  choices: tuple[str, ...] = ()  # to choose from, the answer among them; (): not given


@dataclasses.dataclass(frozen=True)
class Example:
  """One item to study. All strings, or chat messages; `where` (file:line) is for error messages."""

  prompt: str = ''
  text: str = ''  # the raw passage
  anchors: tuple[Any, ...] = ()  # given responses: PIT's reference, a teacher's recorded text, chosen and rejected
  messages: tuple[Mapping[str, Any], ...] = ()  # the prompt as a chat; each anchor is then a tuple of messages, too
  target: str = ''  # what a likelihood_gain judge predicts, or the answer a text judge compares with
  questions: tuple[Question, ...] = ()
  related: tuple[str, ...] = ()  # other texts of the corpus, nearest first
  where: str = ''


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one round does; a pure function of the round's number."""

  temperature: float = 1.0
  anchor_source: str = 'none'  # none | given
  prompts: int = 8  # prompts per round; 0: all rows of the data
  epochs: int = 1  # passes of the update over the round's batch
  # The response that the prompt asks to improve, {draft} of config.improve.instruction. none: the prompt is
  # config.view.instruction | rejected | chosen | given: one of both, in turn | sampled: the base's | improved: the
  # base's, improved by the policy | orders: of a pair either, for both of them (`losses.judges.gap`)
  draft: str = 'none'
  refresh: frozenset[str] = frozenset()  # roles that move to the policy, or towards it, before the round
  stage: str = ''


# --- device -------------------------------------------------------------------------------------------------------


@device_type
class Completions:
  """Completions that came with the example, as ids."""

  ids_BxAxT: Array  # int32, left-aligned
  length_BxA: Array  # int32, end token included; 0: absent


@device_type
class Prompts:
  ids_BxP: Array  # int32, right-aligned: the last real token is at P-1
  length_B: Array  # int32; 0: the empty prompt of a tokenizer without BOS
  given: Completions | None = None


@device_type
class Group:
  """`G` completions for each of `B` prompts. Log-probs are 0 beyond a completion's length."""

  prompts: Prompts
  ids_BxGxT: Array  # int32, left-aligned
  length_BxG: Array  # int32, end token included
  finished_BxG: Array  # bool: ended by its end token, not by T
  logps_BxGxT: Array | None  # float32, temperature 1, untruncated, under the policy that sampled; None: all are given
  behaviour_logps_BxGxT: Array | None  # float32, the processed distribution that was sampled from
  source_BxG: Array  # int32: which generator drew it; -1: given; -2: given with another prompt, never learned from


@device_type
class Judgement:
  """Scores; higher is better, NaN abstains. `info` is for people (log, report), nothing downstream reads it."""

  score_BxG: Array  # float32
  var_BxG: Array | None = None  # of the score, a mean over judge seeds, as far as it sets members apart
  wins_BxGxG: Array | None = None  # [b, i, j]: probability that i beats j
  info: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # name -> [B, G] or [B, G, n] float32


@device_type
class Selection:
  """What an update learns from. Indices are of group members; weight 0 stands for dropping, so shapes are static."""

  chosen_BxJ: Array  # int32
  rejected_BxJ: Array  # int32
  pair_weight_BxJ: Array  # float32
  row_weight_BxG: Array  # float32: weight of a member under losses of single completions
  score_BxG: Array  # float32; an abstention is 0 with weight 0
  members_BxM: Array  # int32: every member with any weight is among these; the others cost the update nothing


@device_type
class Batch:
  """What an update's term sees: training-view prompts, the members `M` of each group (as `G`) and the selection."""

  prompts: Prompts
  ids_BxGxT: Array
  length_BxG: Array
  ref_logps_BxGxT: Array | None  # None: the step's own log-probs under stop_gradient
  old_logps_BxGxT: Array | None
  source_BxG: Array
  selection: Selection


@device_type
class TrainState:
  step: Array  # int32 scalar: optimizer updates done
  params: Params  # the trained leaves only: all of a model, or adapters
  opt_state: Any


# --- functions ----------------------------------------------------------------------------------------------------


class Policy(NamedTuple):
  """The only view of a model outside `models/`. Hidden states are those that `head` turns into logits.

  init    (key) -> params
  rows    (params, ids_NxL, length_N) -> hidden_NxLxD, left-aligned rows
  groups  (params, [(prompts, ids_BxGxT, length_BxG), ...]) -> [hidden_BxGxTxD, ...]: states that predict completions'
          tokens, of several batches in one pass; with an empty prompt the state of the first token means nothing
  head    (params, hidden_...xD) -> logits_...xV, float32; call it on chunks only
  prefill (params, prompts) -> (hidden_BxD of the last prompt token, prompt cache); B leads every array of the cache
  unstack (params) -> what decode, and head too, take as params in a loop: layers apart, in the dtype of the products,
          and on a mesh in the layout that decoding wants: parts of kernels that stay where they are
  start   (prompt cache, G, T) -> cache: room for G completions of up to T tokens beside each prompt of the prompt cache
  decode  (params, prompt cache, cache, ids_BxG, age_BxG) -> (hidden_BxGxD, cache): feed to every completion its token
          number `age`, from 0. Ages grow by 1 from call to call, or start again at 0: another completion takes over
  unembed (params) -> what head takes as params in a loop: laid out for its product, once
  """

  init: Callable[[Key], Params]
  rows: Callable[..., Array]
  groups: Callable[..., list[Array]]
  head: Callable[..., Array]
  prefill: Callable[..., Any]
  unstack: Callable[[Params], Any]
  start: Callable[..., Any]
  decode: Callable[..., Any]
  unembed: Callable[[Params], Params] = lambda params: params


Generator = Callable[[Weights, Key, Prompts, Any], Group]  # (weights, key, prompts, temperature)
Select = Callable[[Key, Group, Judgement], Selection]  # pure, static shapes
Curriculum = Callable[[int], Plan]  # pure


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
  """(outputs, batch) -> (scalar, metrics), and what it asks of the run. It never sees the model.

  `outputs['logps_BxGxT']` are the policy's log-probs of the batch's members; a named statistic is `NAME_BxGxT`. With
  `scores` there is `outputs['score_BxG']` instead.
  """

  value: Callable[[Mapping[str, Array], Batch], tuple[Array, Metrics]]
  statistics: tuple[str, ...] = ()  # per token, beside logps: log_sum_sq (log sum_v p(v)^2), entropy (nats)
  reference: bool = True  # reads `ref_logps`; if no loss does, none are computed
  old: bool = False  # reads `old_logps`, those of the policy that sampled
  # `pairs`; `differences`: pairs, of which some may be ties; `wins`: pairs, scored by the probability of winning;
  # `scores` of every member; `group`: the same, of several; `orders`: pairs given in four orders (`Plan.draft`); '':
  # any row will do, raw texts included
  needs: str = ''
  scores: bool = False  # reads `score_BxG` of a judge that is trained, not log-probs of a policy
  sources: tuple[int, ...] = ()  # it learns from members of these, and from nothing where there are none
  # Metric -> (what it is where the policy is the reference, by how much it moves at most if every completion's
  # log-ratio is off by up to a nat). The self-test of a run.
  at_reference: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  def __call__(self, outputs: Mapping[str, Array], batch: Batch) -> tuple[Array, Metrics]:
    return self.value(outputs, batch)


class Judge(NamedTuple):
  """score: (weights, key, group, examples) -> Judgement. It may run on the host; examples are the B `Example`s.

  One that learns has its weights in the role `judge`, which a stage with `trains='judge'` updates.

  With `on_host` it asks nothing of a device and sees no weights: each host scores its own prompts.
  ticks: it makes many device calls: score takes tick=, which is given the arrays of each and returns them.
  lower: name -> (weights, group) -> a program of it for a group of these shapes, lowered; {}: it has none.
  """

  score: Callable[..., Judgement]
  on_current_policy: bool = False
  on_host: bool = False
  lower: Mapping[str, Callable] = {}
  ticks: bool = False


class Update(NamedTuple):
  """optax's pair, one level up.

  init: (params) -> TrainState
  step: (state, weights, batches: {term: Batch}) -> (state, metrics); pure, to be jitted with the state donated.
        Of the weights it reads the frozen `base` that adapters belong to.
  """

  init: Callable[[Params], TrainState]
  step: Callable[..., tuple[TrainState, Metrics]]
