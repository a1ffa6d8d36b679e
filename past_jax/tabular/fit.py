"""Classes of policies small enough to be fitted to the end, by the losses that train models.

A class is a function (theta, responses) -> log-probs of the responses' tokens, [N, G, T]: N rows of G responses each,
in whatever form the class takes them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from past_jax import losses
from past_jax.types import Array, Batch, Loss, Prompts, Selection


def tables(theta_BxY, responses) -> Array:
  """p ~ base * exp(theta_BxY), every table. Responses are (log base [B, Y], prompt, index), the latter int [N, G]."""
  log_base_BxY, prompt, index = responses
  return jax.nn.log_softmax(log_base_BxY + theta_BxY, axis=-1)[prompt, index][..., None]


def product(theta_F, y_NxGxF) -> Array:
  """p(y) = prod_i s(2 * theta_i * y_i) over signs y_i, one token each: the softmax linear in y."""
  return jax.nn.log_sigmoid(2 * theta_F[None, None] * y_NxGxF)


def stepwise(features) -> Callable:
  """p(y_t | y_<t) ~ exp(theta . features[t][y_1, .., y_t]): linear softmax, step by step; features[t] is [V, .., V, F].

  A response is its tokens, int [N, G, T].
  """

  def logps(theta_F, y_NxGxT) -> Array:
    tokens = jnp.moveaxis(y_NxGxT, -1, 0)
    steps = [jax.nn.log_softmax(jnp.asarray(phi) @ theta_F, axis=-1)[tuple(tokens[: t + 1])] for t, phi in features]
    return jnp.stack(steps, axis=-1)

  features = tuple(enumerate(features))
  return logps


def batch(base_NxGxT, reward_NxG, weight_N=None) -> Batch:
  """Rows of one response (G=1), or of pairs (G=2, the second from the base: source 1), as an update would see them.

  Args:
    base_NxGxT: log-probs of the reference. The reward is the self-reward of the response, say their sum.
    weight_N: 0 for padding; 1 by default.
  """
  N, G, T = base_NxGxT.shape
  score = np.asarray(reward_NxG, np.float32)
  weight = np.ones((N, 1), np.float32) if weight_N is None else np.asarray(weight_N, np.float32)[:, None]
  chosen = score.argmax(1).astype(np.int32)[:, None]
  pair = (chosen, 1 - chosen, weight) if G == 2 else (chosen[:, :0], chosen[:, :0], weight[:, :0])
  members = np.tile(np.arange(G, dtype=np.int32), (N, 1))
  return Batch(
    prompts=Prompts(np.zeros((N, 1), np.int32), np.ones(N, np.int32)),
    ids_BxGxT=np.zeros((N, G, T), np.int32),
    length_BxG=np.full((N, G), T, np.int32),
    ref_logps_BxGxT=np.asarray(base_NxGxT, np.float32),
    old_logps_BxGxT=None,
    source_BxG=members,
    selection=Selection(*pair, weight * (members == chosen), score, members),
  )


@functools.cache
def regression(logps: Callable, beta: float, alpha: float = 0.0) -> Callable:
  """Squared differences of rewards, plus alpha * mean log p of the base's samples (algorithm 1, printed with a minus).

  Returns:
    (theta, responses, batch of pairs) -> (loss, gradient), compiled once for every shape.
  """
  terms = [(1.0, 'rebel', losses.TABLE['rebel'](beta=beta))]
  if alpha:
    terms.append((alpha, 'optimism', losses.TABLE['optimism']()))
  return _value_and_grad(logps, losses.add(terms))


@functools.cache
def imitation(logps: Callable) -> Callable:
  """Negative log-likelihood; otherwise as `regression`."""
  return _value_and_grad(logps, losses.TABLE['nll']())


def _value_and_grad(logps: Callable, loss: Loss) -> Callable:
  def value(theta, responses, rows):
    return loss({'logps_BxGxT': logps(theta, responses)}, rows)[0]

  return jax.jit(jax.value_and_grad(value))


def minimise(objective: Callable, theta, responses, rows: Batch, *, scale: float = 1.0, bound: float | None = None):
  """theta at the minimum nearest to where it starts, float64.

  L-BFGS leaves a direction alone in which the loss is flat, so a least-squares loss ends at the solution nearest to the
  start. Losses are float32, and so is what `minimise` can tell apart.

  Args:
    scale: the optimiser moves theta / scale.
    bound: |theta / scale| stays within it.
  """
  shape = np.shape(theta)
  responses, rows = jax.device_put((responses, rows))

  def value(u):
    loss, gradient = objective(jnp.asarray((u * scale).reshape(shape), jnp.float32), responses, rows)
    return float(loss), scale * np.asarray(gradient, np.float64).ravel()

  start = np.ravel(theta).astype(np.float64) / scale
  bounds = None if bound is None else [(-bound, bound)] * start.size
  options = dict(maxiter=2000, maxfun=4000, maxcor=30, ftol=1e-15, gtol=1e-9)
  found = optimize.minimize(value, start, jac=True, method='L-BFGS-B', bounds=bounds, options=options)
  return (found.x * scale).reshape(shape)
