"""tunix's DPO step, compiled for a TPU slice: its own trainer's step on a model of shapes."""

import importlib.metadata
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import topologies
from tunix.models.llama3 import model as llama3
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainExample

from bench_workers.protocol import serve
from bench_workers.work import BETA, LEARNING_RATE, Work


def shape(config: dict, **changes) -> llama3.ModelConfig:
  c = config | changes
  return llama3.ModelConfig(
    num_layers=c['num_hidden_layers'],
    vocab_size=c['vocab_size'],
    embed_dim=c['hidden_size'],
    hidden_dim=c['intermediate_size'],
    num_heads=c['num_attention_heads'],
    head_dim=c['head_dim'],
    num_kv_heads=c['num_key_value_heads'],
    rope_theta=int(c['rope_theta']),
    norm_eps=c['rms_norm_eps'],
    weight_tying=c['tie_word_embeddings'],
    remat_config=llama3.RematConfig.DECODER,
  )


class Worker:
  def compile(self, work: dict, topology_: str, config: dict, out: str) -> dict:
    """A step on the groups' members in pairs, fsdp over all devices, everything in bfloat16; its HLO goes to `out`."""
    w = Work(**work)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.0))
    # The step belongs to a trainer, which wants a model that is there: a small one. What is compiled is another's.
    small = shape(config, num_hidden_layers=1, vocab_size=256, hidden_size=64, intermediate_size=64)
    trainer = DPOTrainer(
      llama3.Llama3(small, rngs=nnx.Rngs(0)),
      None,
      optimizer,
      DPOTrainingConfig(eval_every_n_steps=10**6, max_steps=10**6, beta=BETA),
    )
    train_step = trainer.create_train_step_fn()

    devices = topologies.get_topology_desc(topology_, platform='tpu').devices
    mesh = jax.sharding.Mesh(np.array(devices).reshape(-1, 1), ('fsdp', 'tp'))
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    jax.devices = lambda *_: devices  # it leaves activations' shardings out where it sees a CPU

    def make():
      model = llama3.Llama3(shape(config), rngs=nnx.Rngs(0))
      graph, params = nnx.split(model)
      model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
      return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    with mesh:
      both = nnx.eval_shape(make)
      graph, state = nnx.split(both)
      specs = nnx.get_partition_spec(state)
      state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(*s)),
        nnx.to_pure_dict(state),
        nnx.to_pure_dict(specs),
      )
      N, L, T = w.prompts * w.group, w.prompt + w.completion, w.completion
      rows = lambda dtype, *dims: jax.ShapeDtypeStruct((N, *dims), dtype, sharding=place('fsdp'))
      example = TrainExample(
        input_ids=rows(jnp.int32, L),
        positions=rows(jnp.int32, L),
        attention_mask=rows(jnp.bool_, L, L),
        ref_chosen_logps=jax.ShapeDtypeStruct((N // 2,), jnp.float32, sharding=place('fsdp')),
        ref_rejected_logps=jax.ShapeDtypeStruct((N // 2,), jnp.float32, sharding=place('fsdp')),
        completion_mask=rows(jnp.int32, T),
        logits_to_keep=T,
      )

      def step(pure, example):
        held = nnx.split(both)[1]
        nnx.replace_by_pure_dict(held, pure)
        model, own = nnx.merge(graph, held)
        results = train_step(model, own, example)
        return nnx.to_pure_dict(nnx.split((model, own))[1]), results

      placed = jax.tree.map(lambda x: x.sharding, state)
      started = time.monotonic()
      compiled = jax.jit(step, donate_argnums=0, out_shardings=(placed, None)).lower(state, example).compile()
    Path(out).write_text(compiled.as_text())
    found = compiled.memory_analysis()
    return {
      'temporary_bytes': found.temp_size_in_bytes,
      'argument_bytes': found.argument_size_in_bytes,
      'compile_seconds': time.monotonic() - started,
      'version': importlib.metadata.version('google-tunix'),
    }


if __name__ == '__main__':
  serve(Worker())
