"""Small random `transformers` models, one per family and per switch of a family, and what torch says about them.

Import it after `pytest.importorskip('torch')`. Nothing here uses the code under test except the byte tokenizer.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from transformers import (
  Gemma2Config,
  Gemma3TextConfig,
  GPT2Config,
  GPTNeoXConfig,
  LlamaConfig,
  MistralConfig,
  Phi3Config,
  Qwen2Config,
  Qwen3Config,
  SmolLM3Config,
)

from past_jax.text import byte_tokenizer

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # models this small only lose by more

VOCAB = 272  # the byte tokenizer's 260 ids, padded
CONTEXT = 512
LONGROPE_SHORT = 32  # rows up to this long read longrope's short factors

_SHAPE = dict(
  vocab_size=VOCAB,
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=CONTEXT,
  pad_token_id=None,  # torch would hold back the gradient of the padding token's embedding
)
_LONGROPE = dict(rope_type='longrope', rope_theta=10_000.0, original_max_position_embeddings=LONGROPE_SHORT)


def _longrope(partial: float):
  pairs = int(16 * partial) // 2
  short, long = ([round(1 + by * i, 2) for i in range(pairs)] for by in (0.1, 0.9))
  rope = dict(_LONGROPE, short_factor=short, long_factor=long, partial_rotary_factor=partial)
  return dict(rope_parameters=rope, original_max_position_embeddings=LONGROPE_SHORT)


# Name -> (class of the config, what differs from _SHAPE). Sizes are such that what a family does differently shows
# within a few tokens: windows of 8 and 16, soft caps near the size of the logits, contexts that rope scaling exceeds.
FAMILIES = {
  'llama': (LlamaConfig, {}),
  'llama_mha_tied': (LlamaConfig, dict(num_key_value_heads=4, tie_word_embeddings=True)),
  'llama_bias': (LlamaConfig, dict(attention_bias=True, mlp_bias=True)),
  'llama3': (
    LlamaConfig,
    dict(
      rope_parameters=dict(
        rope_type='llama3',
        rope_theta=10_000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
      )
    ),
  ),
  'llama_linear': (LlamaConfig, dict(rope_parameters=dict(rope_type='linear', rope_theta=10_000.0, factor=4.0))),
  'llama_yarn': (
    LlamaConfig,
    dict(
      rope_parameters=dict(
        rope_type='yarn', rope_theta=10_000.0, factor=8.0, original_max_position_embeddings=64, beta_fast=4.0
      )
    ),
  ),
  'smollm2': (LlamaConfig, dict(tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1e5))),
  'smollm3': (SmolLM3Config, dict(num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0])),
  'mistral': (MistralConfig, dict(sliding_window=8)),
  'mistral_full': (MistralConfig, dict(sliding_window=None, head_dim=24)),
  'qwen2': (Qwen2Config, dict(tie_word_embeddings=True)),
  'qwen2_window': (
    Qwen2Config,
    dict(num_hidden_layers=3, use_sliding_window=True, max_window_layers=1, sliding_window=8),
  ),
  'qwen3': (Qwen3Config, dict(head_dim=32)),
  'phi3': (Phi3Config, dict(sliding_window=16)),
  'phi3_longrope': (Phi3Config, _longrope(1.0)),
  'phi3_longrope_partial': (Phi3Config, _longrope(0.75)),
  'gemma2': (
    Gemma2Config,
    dict(
      num_hidden_layers=3,
      head_dim=24,
      query_pre_attn_scalar=40,
      sliding_window=8,
      attn_logit_softcapping=3.0,
      final_logit_softcapping=4.0,
    ),
  ),
  'gemma3': (
    Gemma3TextConfig,
    dict(
      num_hidden_layers=5,
      head_dim=24,
      query_pre_attn_scalar=40,
      sliding_window=8,
      layer_types=['sliding_attention'] * 2 + ['full_attention'] + ['sliding_attention'] * 2,  # ends within a period
      rope_parameters=dict(
        sliding_attention=dict(rope_type='default', rope_theta=10_000.0),
        full_attention=dict(rope_type='linear', rope_theta=1e6, factor=8.0),
      ),
    ),
  ),
  'gpt2': (GPT2Config, {}),
  'gptneox': (GPTNeoXConfig, dict(rope_parameters=dict(rope_theta=10_000.0, partial_rotary_factor=0.25))),
  'gptneox_sequential': (GPTNeoXConfig, dict(use_parallel_residual=False)),
}


def config(name: str, **changes):
  """The `transformers` config of a family."""
  kind, own = FAMILIES[name]
  tokenizer = byte_tokenizer()
  wanted = _SHAPE | own | dict(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id) | changes
  known = {field.name for field in dataclasses.fields(kind)} | kind.attribute_map.keys()
  return kind(**{key: value for key, value in wanted.items() if key in known or key not in _SHAPE})


def make(name: str, directory: str | Path, *, dtype=torch.float32, adds_bos: bool = False, **changes) -> Path:
  """Writes a random model of a family, with a tokenizer, as `save_pretrained` does.

  No parameter is left at an initial value that hides it: norms are spread around 1 (0 where the family adds 1), biases
  are not 0, and matrices are large enough for peaked attention and log-probs far from uniform, and small enough for
  float32: at 0.15 torch itself is 2e-5 from float64 after 512 tokens.

  Args:
    changes: to the config.
  """
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config(name, **changes))
  centre = 0.0 if name.startswith('gemma') else 1.0
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for path, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      vector = parameter.ndim == 1
      parameter.copy_(noise * (0.3 if vector else 0.12) + (centre if vector and path.endswith('weight') else 0.0))
  directory = Path(directory)
  model.to(dtype).save_pretrained(directory)
  byte_tokenizer(adds_bos).save(directory)
  return directory


def old_spelling(directory: Path):
  """Rewrites config.json as releases of `transformers` before 5, and most of the hub, spell it."""
  path = directory / 'config.json'
  c = json.loads(path.read_text(encoding='utf-8'))
  c['torch_dtype'] = c.pop('dtype')
  rope = c.pop('rope_parameters', None)
  if c['model_type'] == 'gemma3_text':
    c |= {'rope_local_base_freq': rope['sliding_attention']['rope_theta'], 'sliding_window_pattern': 3}
    rope = rope['full_attention']
  if c['model_type'] == 'gpt_neox':
    c |= {'rotary_emb_base': rope['rope_theta'], 'rotary_pct': rope['partial_rotary_factor']}
  elif rope is not None:
    c['rope_theta'] = rope.pop('rope_theta')
    if 'partial_rotary_factor' in rope:
      c['partial_rotary_factor'] = rope.pop('partial_rotary_factor')
    if rope['rope_type'] == 'longrope':
      c['rope_scaling'] = {'type': rope['rope_type'], **{k: rope[k] for k in ('short_factor', 'long_factor')}}
    else:
      c['rope_scaling'] = None if rope['rope_type'] == 'default' else rope
  if c['model_type'] in ('qwen2', 'qwen3') and not c['use_sliding_window']:
    c |= {'sliding_window': 8, 'max_window_layers': 1}  # Qwen's files name a window that they do not use
  c.pop('layer_types', None)
  c.pop('_sliding_window_pattern', None)
  path.write_text(json.dumps(c), encoding='utf-8')


def oracle(directory: str | Path):
  """The model as `transformers` reads it: float32, plain attention."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    str(directory), dtype=torch.float32, attn_implementation='eager', local_files_only=True
  ).eval()


def _logits(model, row: Sequence[int]):
  return model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0]


@torch.no_grad()
def oracle_logps(directory: str | Path, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
  """log p(row[t] | row[:t]) for t = 1, 2, ...: one float64 array of len(row) - 1 for every row, each computed alone."""
  model, out = oracle(directory), []
  for row in rows:
    logps = torch.log_softmax(_logits(model, row).double(), -1)
    out.append(logps[:-1].gather(1, torch.tensor(list(row[1:]))[:, None])[:, 0].numpy())
  return out


@torch.no_grad()
def oracle_greedy(directory: str | Path, prompt: Sequence[int], n: int) -> tuple[list[int], list[float]]:
  """`n` greedy ids after `prompt`, by a whole forward each, and the gap between the two largest logits at each."""
  model, row, gaps = oracle(directory), list(prompt), []
  for _ in range(n):
    top = _logits(model, row)[-1].double().topk(2)
    row.append(int(top.indices[0]))
    gaps.append(float(top.values[0] - top.values[1]))
  return row[len(prompt) :], gaps


def oracle_gradients(
  directory: str | Path, rows: Sequence[Sequence[int]], starts: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
  """Gradients of the summed log-prob of the rows' tokens, by the names in the file.

  Args:
    starts: of each row, its first token that counts. The token at 0 never does: nothing precedes it.
  """
  model, total = oracle(directory), torch.zeros(())
  for row, start in zip(rows, starts or [0] * len(rows)):
    if len(row) > max(start, 1):
      logps = torch.log_softmax(_logits(model, row), -1)[:-1].gather(1, torch.tensor(list(row[1:]))[:, None])
      total = total + logps[max(start, 1) - 1 :].sum()
  total.backward()
  for parameter in model.parameters():
    parameter.data = parameter.grad
  with tempfile.TemporaryDirectory() as directory:  # names in memory are not those in files; saving knows both
    model.save_pretrained(directory)
    return load_file(Path(directory) / 'model.safetensors')
