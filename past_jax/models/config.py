"""The shape of a transformer. One record serves every family; fields are in the units of the Hugging Face config."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  vocab: int
  width: int  # D
  layers: int
  heads: int  # H, query heads
  kv_heads: int  # K, key/value heads; divides heads
  head_dim: int
  ffn: int
  context: int  # tokens the model was made for
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tied: bool = True  # the output head is the embedding


TINY = ModelConfig(vocab=264, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, context=512)
