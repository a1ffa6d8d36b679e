"""The update: losses of several terms added up in one gradient, one optimizer step, one program."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

from past_jax import logps as logps_lib
from past_jax.logps import CHUNK, token_mask
from past_jax.lora import STACKED
from past_jax.mesh import BATCH, constrain, path_string
from past_jax.types import Loss, Policy, TrainState, Update

# --- optimizers ---------------------------------------------------------------------------------------------------


def schedule(
  *,
  lr: float,
  warmup: float,
  total: int,
  schedule: Literal['cosine', 'linear', 'constant'] = 'cosine',
  end: float = 0.0,
) -> optax.Schedule:
  """Linear warm-up over the share `warmup` of `total` updates, then by `schedule` to `end` * lr; `constant` stays."""
  rise = max(1, round(warmup * total))
  steps = total - rise + 1  # `end` would come after the last update: at end=0 no update has rate 0
  after = {
    'cosine': optax.cosine_decay_schedule(lr, steps, end),
    'linear': optax.linear_schedule(lr, lr * end, steps),
    'constant': optax.constant_schedule(lr),
  }
  return optax.join_schedules([optax.linear_schedule(lr / rise, lr, rise - 1), after[schedule]], [rise - 1])


def clipped(clip: float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Behind clipping of the global gradient norm (`clip` 0: off)."""
  return optax.chain(*([optax.clip_by_global_norm(clip)] if clip else []), optimizer)


def adamw(*, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0) -> optax.GradientTransformation:
  """Adam with decoupled weight decay: arXiv 1711.05101."""
  return clipped(clip, optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay))


def adafactor(*, learning_rate, decay=0.8, weight_decay=0.0, clip=1.0) -> optax.GradientTransformation:
  """arXiv 1804.04235: steps relative to the size of the parameters, without first moments.

  Second moments of a matrix, whose sides are 128 or more, are kept as sums of its rows and columns. The layers are
  stacked, so sizes of parameters and of updates are those of all layers of a kind.
  """
  parts = (
    *(optax.scale_by_factored_rms(decay_rate=decay), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()),
    # optax.adafactor would decay after the learning rate: by a share of the weights that no schedule changes.
    *(optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)),
  )
  return clipped(clip, optax.chain(*parts))


def lion(*, learning_rate, b1=0.9, b2=0.99, weight_decay=0.0, clip=1.0) -> optax.GradientTransformation:
  """arXiv 2302.06675: the sign of an interpolated first moment; a learning rate of a tenth of AdamW's suits."""
  return clipped(clip, optax.lion(learning_rate, b1, b2, weight_decay=weight_decay))


def sgd(*, learning_rate, momentum=0.0, clip=1.0) -> optax.GradientTransformation:
  return clipped(clip, optax.sgd(learning_rate, momentum or None))


def muon(
  *, learning_rate, input_axes: Mapping[str, int], momentum=0.95, weight_decay=0.0, b1=0.9, b2=0.99, clip=1.0
) -> optax.GradientTransformation:
  """Momentum whose matrices are orthogonalized, for the kernels of the layers; Adam (b1, b2) for everything else.

  Scaled to the size of Adam's updates (arXiv 2502.16982, equation 4), so AdamW's learning rates suit both.

  Args:
    input_axes: name of a layer -> how many axes of its kernel its product sums over; 1 for the others.
  """

  def matrices(params):
    def matrix(path, leaf):
      *_, layer, name = path_string(path).split('/')
      if name != 'kernel' or not path_string(path).startswith(STACKED):
        return None
      first = 1 + (input_axes[layer] if layer in input_axes else 1)  # axis 0 is the layer: each has its own matrix
      return MuonDimensionNumbers(tuple(range(1, first)), tuple(range(first, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(matrix, params)

  options = dict(adam_b1=b1, adam_b2=b2, weight_decay=weight_decay, adam_weight_decay=weight_decay, consistent_rms=0.2)
  return clipped(clip, optax_muon(learning_rate, beta=momentum, muon_weight_dimension_numbers=matrices, **options))


OPTIMIZERS = {'adamw': adamw, 'adafactor': adafactor, 'lion': lion, 'muon': muon, 'sgd': sgd}

# --- the step -----------------------------------------------------------------------------------------------------


def public_name(term: str, name: str) -> str:
  """TRL's names for rewards and log-probs of the preference, `term/loss/metric` for the rest."""
  _, _, inner = name.partition('/')
  return inner if term == 'group' and inner.startswith(('rewards/', 'logps/')) else f'{term}/{name}'


def split(tree, parts: int):
  """[B, ...] -> [parts, B / parts, ...], strided: each part has its share of every data shard, and no row moves."""

  def one(x):
    return constrain(jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), None, BATCH)

  return jax.tree.map(one, tree)


def join(tree):
  """The inverse of `split`."""
  return jax.tree.map(lambda x: constrain(jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), BATCH), tree)


def add(a, b):
  return jax.tree.map(jnp.add, a, b)


def forward(score: Callable, trained, rows, parts: int):
  """(score(trained, rows), pull): pull(cotangent, grads) is `grads` plus the gradient of what is trained.

  In more than one part, rows are computed part by part, and once more in `pull`: activations of one micro-batch exist
  at a time, whatever function of all outputs the cotangent comes from.
  """
  if parts == 1:
    outputs, transposed = jax.vjp(lambda trained: score(trained, rows), trained)
    return outputs, lambda cotangent, grads: add(grads, *transposed(cotangent))
  rows = split(rows, parts)
  outputs = join(jax.lax.map(lambda part: score(trained, part), rows))

  def pull(cotangent, grads):
    def one(grads, part):
      rows, cotangent = part
      _, transposed = jax.vjp(lambda trained: score(trained, rows), trained)
      return add(grads, *transposed(cotangent)), None

    return jax.lax.scan(one, grads, (rows, split(cotangent, parts)))[0]

  return outputs, pull


def gradient(
  *,
  policy: Policy,
  losses: Mapping[str, tuple[float, Loss]],
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  whole: Callable = lambda weights, trained: trained,
  micro: int = 0,
  chunk: int = CHUNK,
  outputs: Callable = logps_lib.outputs,
) -> Update:
  """One step of `optimizer` on sum_term weight * loss(term's batch).

  `whole(weights, trained)` is the model: what is trained, or adapters attached to the frozen role `base`. No gradient
  is taken of the frozen roles, and no moments are kept for them.

  Losses are differentiated once, in the outputs of the whole batch; only the model's passes are cut into micro-batches.
  So the gradient is that of the whole batch also for losses that are no mean over its rows.

  A non-finite loss or gradient leaves the state as it was and says so: metric `finite` 0, and `bad/TERM` marks the
  prompts whose log-probs are not finite. New parameters that are not finite are said, too, but not undone: to wait for
  them with the old ones would take two states in memory.

  Args:
    micro: prompts of each term whose activations exist at once; 0: all. A term's batch has a multiple, or no more.
    chunk: tokens of a device whose logits exist at once.
    outputs: what losses read of the model: `logps.outputs`, or `scores.outputs` of a judge.
  """

  statistics = {term: loss.statistics for term, (_, loss) in losses.items()}

  def init(params) -> TrainState:
    return TrainState(jnp.int32(0), params, optimizer.init(params))

  def objective(found, batches):
    total, metrics = jnp.float32(0), {}
    for term, (weight, loss) in losses.items():
      batch, out = batches[term], found[term]
      value, named = loss(out, batch)
      total += weight * value
      for name, x in named.items():  # a public name is of the first loss (a config's are sorted) that has it
        public = public_name(term, name)
        metrics[f'{term}/{name}' if public in metrics else public] = x
      main = out['score_BxG' if loss.scores else 'logps_BxGxT']
      metrics[f'bad/{term}'] = ~jnp.isfinite(main).reshape(len(main), -1).all(1)
      metrics[f'{term}/tokens'] = token_mask(batch.prompts, batch.length_BxG, batch.ids_BxGxT.shape[2]).sum()
    return total, metrics

  def step(state: TrainState, weights, batches) -> tuple[TrainState, dict]:
    # What a loss needs of the frozen roles it gets through the batch.
    together = defaultdict(dict)  # terms of as many micro-batches go through the model together
    for term in losses:
      batch = batches[term]
      B = len(batch.length_BxG)
      together[B // micro if 0 < micro < B else 1][term] = batch.prompts, batch.ids_BxGxT, batch.length_BxG
    score = lambda trained, rows: outputs(policy, whole(weights, trained), rows, statistics, chunk=chunk)
    found, pulls = {}, []
    for parts, rows in together.items():
      out, pull = forward(score, state.params, rows, parts)
      found |= out
      pulls.append((pull, list(rows)))
    (loss, metrics), cotangents = jax.value_and_grad(objective, has_aux=True)(found, batches)
    grads = jax.tree.map(jnp.zeros_like, state.params)
    for pull, terms in pulls:
      grads = pull({term: cotangents[term] for term in terms}, grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
    # Chosen element by element, not by a conditional, around which XLA would copy state and gradients to other layouts.
    state_ = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    size = optax.tree.norm(state_.params)
    tokens = sum(metrics[f'{term}/tokens'] for term in losses)
    finite &= jnp.isfinite(size)
    metrics |= {'loss': loss, 'grad_norm': norm, 'param_norm': size, 'finite': finite, 'num_tokens': tokens}
    return state_, metrics | {'learning_rate': learning_rate(state.step)}

  return Update(init, step)
