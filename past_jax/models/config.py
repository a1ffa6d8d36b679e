"""The shape of a transformer. One record serves every family; `families.py` makes it from a Hugging Face config."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from past_jax.models import rope


@dataclasses.dataclass(frozen=True)
class Kind:
  """What may differ between the layers of one model."""

  window: int = 0  # how many tokens a token sees, itself included; 0: all before it
  frequencies: tuple[float, ...] = ()  # radians per position of each rotated pair; (): no rotary embedding
  amplitude: float = 1.0  # of the rotation's sine and cosine


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  vocab: int  # V
  width: int  # D
  heads: int  # H, query heads
  kv_heads: int  # K, key/value heads; divides heads
  head_dim: int
  ffn: int  # F
  context: int  # tokens the model has room for
  kinds: tuple[Kind, ...]
  pattern: tuple[int, ...]  # which of `kinds` each layer is
  scale: float  # of attention scores: head_dim ** -0.5, but for Gemma
  norm: Literal['rms', 'rms_plus_one', 'layer'] = 'rms'  # plus one: Gemma's scale is stored as its distance from 1
  norm_eps: float = 1e-5
  activation: Literal['silu', 'gelu', 'gelu_tanh'] = 'silu'
  gated: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x)))
  biased: tuple[str, ...] = ()  # linear layers with a bias, of q k v o gate up down
  qk_norm: bool = False  # RMS norm of every query and key head before its rotation
  post_norms: bool = False  # a norm also behind attention and MLP
  parallel: bool = False  # attention and MLP read the same x
  learned_positions: bool = False
  attention_cap: float = 0.0  # c * tanh(scores / c); 0: off
  logit_cap: float = 0.0
  embed_scale: float = 1.0
  tied: bool = True  # the output head is the embedding
  scored: bool = False  # a judge: a scalar head, as scores.py has it, and no output head of its own
  longer: int = 0  # tokens it would have room for with rope='long', where that is another choice
  family: str = 'llama'  # `model_type` of config.json
  # config.json and generation_config.json as they were read: an export writes them back.
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

  @property
  def layers(self) -> int:
    return len(self.pattern)


def scratch(layers: int, width: int, vocab: int = 264) -> ModelConfig:
  """A Llama with heads of 16 and a vocabulary of bytes, or more, to be trained from nothing."""
  return ModelConfig(
    vocab=vocab,
    width=width,
    heads=width // 16,
    kv_heads=width // 32,
    head_dim=16,
    ffn=2 * width,
    context=512,
    kinds=(Kind(frequencies=rope.frequencies({'rope_theta': 10_000.0}, 16, 512, 'short')[0]),),
    pattern=(0,) * layers,
    scale=0.25,
    source={
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      'vocab_size': vocab,
      'hidden_size': width,
      'num_hidden_layers': layers,
      'num_attention_heads': width // 16,
      'num_key_value_heads': width // 32,
      'head_dim': 16,
      'intermediate_size': 2 * width,
      'max_position_embeddings': 512,
      'rms_norm_eps': 1e-5,
      'rope_theta': 10_000.0,
      'tie_word_embeddings': True,
    },
  )


TINY = scratch(layers=2, width=64)
WORDS = 800  # bytes, words.txt and some more
SCRATCH = {  # 0.1M parameters, the small ones 0.5M
  'scratch:tiny': TINY,
  'scratch:small': scratch(layers=3, width=128),
  'scratch:words': scratch(layers=2, width=64, vocab=WORDS),
  'scratch:words-small': scratch(layers=3, width=128, vocab=WORDS),
}
