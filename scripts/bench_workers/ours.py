"""Our side: the update, sampling and prefill of past_jax as its loop runs them."""

import jax
import jax.numpy as jnp

from bench_workers.work import BETA, LEARNING_RATE, Work
from past_jax import losses, mesh, models, sampler, update
from past_jax.types import Batch, Prompts, Selection


class Ours:
  """The model and the work on the device. `update`, `prefill` and `sample` are compiled programs over them."""

  def __init__(self, work: Work):
    self.work = work
    self.model = models.load(work.model)
    self.params = self.model.read(mesh.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
    prompt_BxP, ids_BxGxT = work.ids(self.model.config.vocab)
    self.prompts = Prompts(jnp.asarray(prompt_BxP), jnp.full(work.prompts, work.prompt, jnp.int32))
    self.ids_BxGxT = jnp.asarray(ids_BxGxT)

  def batch(self) -> Batch:
    """DPO on the pairs (0, 1), (2, 3), ... of every group; the reference is the policy."""
    B, G, T = self.ids_BxGxT.shape
    tile = lambda x: jnp.tile(x[None], (B, 1))
    first = jnp.arange(0, G, 2)
    selection = Selection(
      chosen_BxJ=tile(first),
      rejected_BxJ=tile(first + 1),
      pair_weight_BxJ=jnp.ones((B, G // 2)),
      row_weight_BxG=jnp.ones((B, G)),
      score_BxG=jnp.zeros((B, G)),
      members_BxM=tile(jnp.arange(G)),
    )
    length_BxG = jnp.full((B, G), T, jnp.int32)
    return Batch(self.prompts, self.ids_BxGxT, length_BxG, None, None, jnp.zeros((B, G), jnp.int32), selection)

  def update(self):
    """(compiled step, its first arguments): (state, weights, batches) -> (state, metrics). Takes the parameters."""
    step = update.gradient(
      policy=self.model.policy,
      losses={'group': (1.0, losses.dpo(BETA))},
      optimizer=update.adamw(learning_rate=LEARNING_RATE),
      learning_rate=lambda step: jnp.float32(LEARNING_RATE),
    )
    params, self.params = self.params, None  # donated with the state
    args = step.init(params), {}, {'group': self.batch()}
    return jax.jit(step.step, donate_argnums=0).lower(*args).compile(), args

  def prefill(self):
    args = self.params, self.prompts
    return jax.jit(self.model.policy.prefill).lower(*args).compile(), args

  def sample(self):
    """Temperature 1, and no id stops: every completion has all its tokens."""
    keys_B = jax.random.split(jax.random.key(self.work.seed), self.work.prompts)

    def sample(params, keys_B, prompts):
      size = dict(group=self.work.group, length=self.work.completion)
      return sampler.sample(self.model.policy, params, keys_B, prompts, 1.0, jnp.array([-1]), **size)

    args = self.params, keys_B, self.prompts
    return jax.jit(sample).lower(*args).compile(), args
