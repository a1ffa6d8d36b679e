"""Our update, compiled for a TPU slice; and the counts of any side's program, from its HLO."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from bench_workers.protocol import serve
from bench_workers.work import BETA, LEARNING_RATE, Work
from past_jax import hlo, losses, mesh, models, update
from past_jax.chips import topology
from past_jax.models.families import model_config
from past_jax.models.shapes import LLAMA_1B
from past_jax.models.transformer import transformer
from past_jax.types import Batch, Prompts, Selection


class Worker:
  def describe(self, name: str, layers: int) -> dict:
    """What a peer has to know: the slice in libtpu's form, and the model's config.json."""
    found = topology(name)
    return {'topology': str(found), 'config': {**LLAMA_1B, **({'num_hidden_layers': layers} if layers else {})}}

  def compile(self, work: dict, topology_: str, config: dict, out: str) -> dict:
    """A DPO step on the groups, fsdp over all devices, remat per layer, products in bfloat16; its HLO goes to `out`."""
    w = Work(**work)
    mesh_ = mesh.make({'data': 1, 'fsdp': -1, 'tensor': 1}, topology(topology_).devices())
    policy = transformer(model_config(config), dtype='bfloat16', remat='layer')
    step = update.gradient(
      policy=policy,
      losses={'group': (1.0, losses.TABLE['dpo'](beta=BETA))},
      optimizer=update.adamw(learning_rate=LEARNING_RATE),
      learning_rate=lambda step: jnp.float32(LEARNING_RATE),
    )
    state = jax.eval_shape(lambda key: step.init(policy.init(key)), jax.random.key(0))
    placed = mesh.shardings(mesh_, state, models.RULES)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
    rows = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
      (w.prompts, *shape), dtype, sharding=mesh.batch_sharding(mesh_)
    )
    G, J, floats = w.group, w.group // 2, jnp.float32
    selection = Selection(
      rows(J), rows(J), rows(J, dtype=floats), rows(G, dtype=floats), rows(G, dtype=floats), rows(G)
    )
    batch = Batch(Prompts(rows(w.prompt), rows()), rows(G, w.completion), rows(G), None, None, rows(G), selection)
    started = time.monotonic()
    with jax.set_mesh(mesh_):
      program = jax.jit(step.step, donate_argnums=0, out_shardings=(placed, None))
      compiled = program.lower(state, {}, {'group': batch}).compile()
    Path(out).write_text(compiled.as_text())
    found = compiled.memory_analysis()
    return {
      'temporary_bytes': found.temp_size_in_bytes,
      'argument_bytes': found.argument_size_in_bytes,
      'compile_seconds': time.monotonic() - started,
      'version': jax.__version__,
    }

  def count(self, path: str) -> dict:
    counts = hlo.total(hlo.costs(Path(path).read_text()))
    return dataclasses.asdict(counts) | {'sent': counts.sent}


if __name__ == '__main__':
  serve(Worker())
