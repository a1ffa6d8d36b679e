"""tunix's side: its DPOTrainer's own step, and its Sampler with the prompts repeated."""

import importlib.metadata
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama3
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput

from bench_workers import jax_side
from bench_workers.protocol import serve
from bench_workers.work import BETA, GREEDY, LEARNING_RATE, Work


class Rows:
  """A tokenizer for ids: the text of a prompt is its number."""

  def __init__(self, rows):
    self.rows = rows

  def encode(self, text: str) -> list[int]:
    return self.rows[int(text)].tolist()

  def decode(self, ids) -> str:
    return ''

  def bos_id(self) -> int:
    return 0  # none is written

  def eos_id(self) -> int:
    return 0

  def pad_id(self) -> int:
    return 0


class Worker:
  """Programs: `loop`, a step with its reference pass; `step`, without it; `sample`."""

  def load(self):
    c = json.loads((Path(self.work.weights) / 'config.json').read_text())
    # Its rotation takes no notice of the config's rope_theta; without this it would compute another model's outputs.
    rope = c['rope_parameters'] if 'rope_parameters' in c else c
    llama3.apply_rope.__defaults__ = (rope['rope_theta'],)
    self.config = llama3.ModelConfig(
      num_layers=c['num_hidden_layers'],
      vocab_size=c['vocab_size'],
      embed_dim=c['hidden_size'],
      hidden_dim=c['intermediate_size'],
      num_heads=c['num_attention_heads'],
      head_dim=c['hidden_size'] // c['num_attention_heads'],
      num_kv_heads=c['num_key_value_heads'],
      rope_theta=int(rope['rope_theta']),
      norm_eps=c['rms_norm_eps'],
      weight_tying=c['tie_word_embeddings'],
    )
    return create_model_from_safe_tensors(self.work.weights, self.config, dtype=jnp.float32)

  def build(self, work: dict, programs: list[str], check: bool) -> dict:
    self.work = Work(**work)
    model = self.load()
    self.checks = {}
    if 'sample' in programs:
      self.build_sampler(model, check)
    else:
      self.build_trainer(model, self.load() if 'loop' in programs else None, check)
    for name in programs:
      self.run(name)
    return {
      'versions': {name: importlib.metadata.version(name) for name in ('google-tunix', 'jax', 'flax')},
      'device': jax_side.device(),
    }

  def build_trainer(self, model, reference, check: bool):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.0))
    config = DPOTrainingConfig(eval_every_n_steps=10**6, max_steps=10**6, beta=BETA)
    self.trainer = DPOTrainer(model, reference, optimizer, config)
    prompt, chosen, rejected = map(jnp.asarray, self.work.pairs(self.config.vocab_size))
    self.input = TrainingInput(
      prompt_ids=prompt,
      prompt_mask=jnp.ones_like(prompt),
      chosen_ids=chosen,
      chosen_mask=jnp.ones_like(chosen),
      rejected_ids=rejected,
      rejected_mask=jnp.ones_like(rejected),
    )
    self.step, _ = self.trainer.jit_train_and_eval_step()
    self.prepared = self.trainer._prepare_inputs(self.input)
    self.run('step')
    if check:
      sums = self.prepared.ref_chosen_logps, self.prepared.ref_rejected_logps
      self.checks = {'logps': np.stack(sums, axis=1).ravel().tolist(), 'grad_norm': float(self.grad_norm)}

  def build_sampler(self, model, check: bool):
    work, c = self.work, self.config
    prompt_BxP, _ = work.ids(c.vocab_size)
    cache = CacheConfig(work.prompt + max(work.completion, GREEDY), c.num_layers, c.num_kv_heads, c.head_dim)
    self.sampler = Sampler(model, Rows(prompt_BxP), cache)
    if check:
      names = [str(b) for b in range(work.prompts)]
      out = self.sampler(names, GREEDY, max_prompt_length=work.prompt, eos_tokens=[-1])
      self.checks = {'greedy': np.stack(out.tokens).tolist()}

  def run(self, name: str) -> float:
    """Seconds."""
    start = time.perf_counter()
    if name == 'sample':
      names = [str(b) for b in range(self.work.prompts) for _ in range(self.work.group)]
      length = self.work.completion
      out = self.sampler(
        names, length, max_prompt_length=self.work.prompt, eos_tokens=[-1], temperature=1.0, top_p=1.0, seed=0
      )
      assert all(len(ids) == length for ids in out.tokens), [len(ids) for ids in out.tokens]
    else:
      prepared = self.trainer._prepare_inputs(self.input) if name == 'loop' else self.prepared
      loss, _, self.grad_norm = self.step(prepared)
      jax.block_until_ready((loss, nnx.state(self.trainer.model)))
    return time.perf_counter() - start

  def check(self) -> dict:
    return self.checks

  def peak(self) -> float:
    return jax_side.peak_mib()


if __name__ == '__main__':
  serve(Worker())
