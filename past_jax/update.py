"""The update: losses of several terms added up in one gradient, one optimizer step, one program."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from past_jax.logps import group_logps, token_mask
from past_jax.types import Loss, Policy, TrainState, Update


def schedule(*, lr: float, warmup: float, total: int, end: float = 0.0) -> optax.Schedule:
  """Linear warm-up over the share `warmup` of `total` updates, then a cosine to `end` * lr."""
  rise = max(1, round(warmup * total))
  return optax.warmup_cosine_decay_schedule(lr / rise, lr, rise - 1, max(total - 1, rise), lr * end)


def adamw(*, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0) -> optax.GradientTransformation:
  """AdamW behind clipping of the global gradient norm (`clip` 0: off)."""
  clipping = [optax.clip_by_global_norm(clip)] if clip else []
  return optax.chain(*clipping, optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay))


def public_name(term: str, name: str) -> str:
  """TRL's names for rewards and log-probs of the preference, `term/loss/metric` for the rest."""
  _, _, inner = name.partition('/')
  return inner if term == 'group' and inner.startswith(('rewards/', 'logps/')) else f'{term}/{name}'


def gradient(
  *,
  policy: Policy,
  losses: Mapping[str, tuple[float, Loss]],
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  whole: Callable = lambda weights, trained: trained,
) -> Update:
  """One step of `optimizer` on sum_term weight * loss(term's batch).

  `whole(weights, trained)` is the model: what is trained, or adapters attached to the frozen role `base`. No gradient
  is taken of the frozen roles, and no moments are kept for them.

  A non-finite loss, gradient or new parameter leaves the state as it was and says so: metric `finite` 0, and `bad/TERM`
  marks the prompts whose log-probs are not finite.
  """

  def init(params) -> TrainState:
    return TrainState(jnp.int32(0), params, optimizer.init(params))

  def objective(trained, weights, batches):
    params, total, metrics = whole(weights, trained), jnp.float32(0), {}
    for term, (weight, loss) in losses.items():
      batch = batches[term]
      logps = group_logps(policy, params, batch.prompts, batch.ids_BxGxT, batch.length_BxG)
      value, named = loss({'logps_BxGxT': logps}, batch)
      total += weight * value
      for name, x in named.items():  # a public name is of the first loss (a config's are sorted) that has it
        public = public_name(term, name)
        metrics[f'{term}/{name}' if public in metrics else public] = x
      metrics[f'bad/{term}'] = ~jnp.isfinite(logps).all(axis=(1, 2))
      T = batch.ids_BxGxT.shape[2]
      metrics[f'{term}/tokens'] = token_mask(batch.prompts, batch.length_BxG, T).sum()
    return total, metrics

  def step(state: TrainState, weights, batches) -> tuple[TrainState, dict]:
    # What a loss needs of the frozen roles it gets through the batch.
    (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params, weights, batches)
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    stepped = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
    size = optax.tree.norm(stepped.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(size)
    state_ = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
    tokens = sum(metrics[f'{term}/tokens'] for term in losses)
    metrics |= {'loss': loss, 'grad_norm': norm, 'param_norm': size, 'finite': finite, 'num_tokens': tokens}
    return state_, metrics | {'learning_rate': learning_rate(state.step)}

  return Update(init, step)
