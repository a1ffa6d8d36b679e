"""Our side: update, sampling and prefill of past_jax, as its loop runs them."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bench_workers import jax_side
from bench_workers.protocol import serve
from bench_workers.work import BETA, GREEDY, LEARNING_RATE, Work, cost, flops
from past_jax import heap, losses, mesh, models, sampler, update
from past_jax.logps import group_logps
from past_jax.models import weights
from past_jax.types import Batch, Prompts, Selection

MATMULS = ((1024, 576, 1536), (1024, 1536, 576), (2048, 2048, 2048), (4096, 4096, 4096))


class Ours:
  """The model and the work on the device.

  `update`, `prefill` and `sample` return (compiled program, [arguments of a call, ...]).
  """

  def __init__(self, work: Work, keep: bool):
    if keep and heap.cpu_only():
      heap.keep()  # as `past` does before JAX's first use
    self.work = work
    self.model = models.load(work.model, remat=work.remat)
    self.params = self.model.read(mesh.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
    prompt_BxP, ids_BxGxT = work.ids(self.model.config.vocab)
    self.prompts = Prompts(jnp.asarray(prompt_BxP), jnp.full(work.prompts, work.prompt, jnp.int32))
    self.ids_BxGxT = jnp.asarray(ids_BxGxT)
    self.length_BxG = jnp.full(ids_BxGxT.shape[:2], work.completion, jnp.int32)

  def batch(self) -> Batch:
    """DPO on the pairs (0, 1), (2, 3), ... of every group; the reference is the policy."""
    B, G, _ = self.ids_BxGxT.shape
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
    source_BxG = jnp.zeros((B, G), jnp.int32)
    return Batch(self.prompts, self.ids_BxGxT, self.length_BxG, None, None, source_BxG, selection)

  def update(self):
    """(state, weights, batches) -> (state, metrics). Takes the parameters."""
    step = update.gradient(
      policy=self.model.policy,
      losses={'group': (1.0, losses.TABLE['dpo'](beta=BETA))},
      optimizer=update.adamw(learning_rate=LEARNING_RATE),
      learning_rate=lambda step: jnp.float32(LEARNING_RATE),
      micro=self.work.micro,
    )
    params, self.params = self.params, None  # donated with the state
    args = [step.init(params), {}, {'group': self.batch()}]
    return jax.jit(step.step, donate_argnums=0).lower(*args).compile(), [args]

  def prefill(self):
    args = [self.params, self.prompts]
    return jax.jit(self.model.policy.prefill).lower(*args).compile(), [args]

  def sample(self, prompts: int = 0):
    """Temperature 1 with no id that stops, `prompts` per call; 0: all, through `work.slots`."""
    work, keys_B = self.work, jax.random.split(jax.random.key(self.work.seed), self.work.prompts)
    options = dict(group=work.group, length=work.completion)
    options |= dict(slots=work.slots) if work.slots and not prompts else {}

    def sample(params, keys_B, prompts, limit_BxG):
      limited = dict(limit_BxG=limit_BxG) if work.skew else {}
      return sampler.sample(self.model.policy, params, keys_B, prompts, 1.0, jnp.array([-1]), **options, **limited)

    whole = [keys_B, self.prompts, jnp.asarray(work.limits())]
    count = prompts or work.prompts
    part = lambda i: jax.tree.map(lambda x: x[i : i + count], whole)
    calls = [[self.params, *part(i)] for i in range(0, work.prompts, count)]
    return jax.jit(sample).lower(*calls[0]).compile(), calls

  def calls(self):
    """The sampler without refilling slots: as many prompts per call as fill them, each until its longest row."""
    return self.sample(self.work.slots // self.work.group)

  def logps(self):
    """sum_BxG of the completions' log-probs."""
    rows = self.prompts, self.ids_BxGxT, self.length_BxG
    return jax.jit(lambda params: group_logps(self.model.policy, params, *rows).sum(-1))(self.params)

  def greedy(self):
    """ids_BxT of greedy completions."""
    keys_B = jax.random.split(jax.random.key(0), self.work.prompts)
    sample = lambda params: sampler.sample(
      self.model.policy, params, keys_B, self.prompts, 0.0, jnp.array([-1]), group=1, length=GREEDY
    )
    return jax.jit(sample)(self.params).ids_BxGxT[:, 0]


class Worker:
  """What the parent calls. `build` compiles and warms up the named programs; `run` times a call of one."""

  def build(self, work: dict, programs: list[str], check: bool, export: str = '', keep: bool = True) -> dict:
    """Facts about this side.

    Args:
      check: also compute what is compared with the other side.
      export: write the model's weights to this directory for peers, unless it exists.
      keep: freed memory stays with the process, as `past` has it on machines with room.
    """
    ours = self.ours = Ours(Work(**work), keep)
    if export and not Path(export).is_dir():
      weights.write(export, jax.tree.map(np.asarray, ours.params), ours.model.config, ours.model.tokenizer)
    self.checks, self.products = {}, {}
    if check and 'update' in programs:
      self.checks['logps'] = np.asarray(ours.logps()).ravel().tolist()
    if check and 'sample' in programs:
      self.checks['greedy'] = np.asarray(ours.greedy()).tolist()
    # The update last: it takes the parameters.
    self.programs = {name: getattr(ours, name)() for name in sorted(programs, key='update'.__eq__)}
    for name in programs:
      for i in range(2 if name == 'update' else 1):  # an update's first run also takes its memory
        self.run(name)
        if check and name == 'update' and i == 0:
          self.checks['grad_norm'] = float(self.metrics['grad_norm'])
    return {'versions': {'jax': jax.__version__}, 'device': jax_side.device()}

  def flops(self, what: str) -> int:
    c = self.ours.model.config
    shape = {name: getattr(c, name) for name in ('width', 'heads', 'kv_heads', 'head_dim', 'ffn', 'gated', 'layers')}
    return flops(what, cost(**shape, vocab=c.vocab), self.ours.work)

  def run(self, name: str) -> float:
    """Seconds."""
    program, calls = self.programs[name]
    if name == 'prefill' and 'update' in self.programs:
      calls[0][0] = self.programs['update'][1][0][0].params  # those it was built with were donated
    start = time.perf_counter()
    out = jax.block_until_ready([program(*args) for args in calls])
    seconds = time.perf_counter() - start
    if name == 'update':
      calls[0][0], self.metrics = out[0]
    elif name != 'prefill':
      ids_BxGxT = np.concatenate([group.ids_BxGxT for group in out])
      self.checks['sampled'] = ids_BxGxT.reshape(-1, self.ours.work.completion).tolist()
    return seconds

  def check(self) -> dict:
    return self.checks

  def matmul(self) -> float:
    """FLOP/s of the best of several matrix products, float32."""
    best = 0.0
    for m, k, n in MATMULS:
      if (m, k, n) not in self.products:
        args = jnp.ones((m, k)), jnp.ones((k, n))
        product = jax.jit(lambda a, b: jnp.dot(a, b, precision='highest'))  # as the model's own in float32
        self.products[m, k, n] = product.lower(*args).compile(), args
      product, args = self.products[m, k, n]
      for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(product(*args))
        best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best

  def peak(self) -> float:
    return jax_side.peak_mib()


if __name__ == '__main__':
  serve(Worker())
