"""A GGUF file becomes a Hugging Face directory, once: float32 tensors, config and tokenizer."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from past_jax.models import weights
from past_jax.models.config import ModelConfig
from past_jax.models.families import model_config
from past_jax.text import Tokenizer
from past_jax.types import UserError

VERSION = 2  # goes up when the output changes, so that caches are made anew

NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
HANDLED = {
  'vocab_size',
  'block_count',
  'context_length',
  'embedding_length',
  'feed_forward_length',
  'attention.head_count',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.value_length',
  'attention.layer_norm_rms_epsilon',
  'rope.freq_base',
  'rope.dimension_count',
}
OFF = (0, False, 'none')  # values of the other fields under which they change nothing

# How text is cut before the merges, by the name in tokenizer.ggml.pre. A wrong one gives other ids without an error.
PRE_TOKENIZERS = {
  'smollm': lambda: pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  ),
}


class _Fields(dict):
  """The file's key-value pairs; a key that is needed and absent is an error that names it."""

  def __init__(self, path, reader):
    super().__init__((key, field.contents()) for key, field in reader.fields.items())
    self.path = path

  def __missing__(self, key):
    raise UserError(f'{self.path} has no field {key!r}.')


def convert(gguf_path: str | Path, out_dir: str | Path):
  """Writes config.json, generation_config.json, model.safetensors and the tokenizer's files into `out_dir`.

  Raises:
    UserError: the file is damaged, or holds an architecture, a feature, a quantization or a tokenizer not known here.
  """
  gguf_path, out_dir = Path(gguf_path), Path(out_dir)
  try:
    reader = gguf.GGUFReader(gguf_path)
    fields = _Fields(gguf_path, reader)
  except (ValueError, IndexError, KeyError, OverflowError) as error:
    raise UserError(f'{gguf_path} cannot be read as GGUF ({error}); is the download complete?') from error
  source, tokenizer = _config(gguf_path, fields, reader), _tokenizer(gguf_path, fields)
  config = model_config(source)
  if tokenizer.vocab_size > config.vocab:
    raise UserError(f'{gguf_path} has {tokenizer.vocab_size} tokens and {config.vocab} rows in its embedding.')
  out_dir.mkdir(parents=True, exist_ok=True)
  weights.write_tensors(out_dir, _tensors(gguf_path, reader, config), config, tokenizer, np.float32)


def _config(path, fields, reader) -> dict:
  """The config.json of the same model."""
  if (architecture := fields['general.architecture']) != 'llama':
    raise UserError(f"{path}: architecture {architecture!r} is not supported; supported: 'llama'.")
  for key, value in fields.items():
    if key.startswith('llama.') and key.removeprefix('llama.') not in HANDLED and value not in OFF:
      raise UserError(f'{path}: {key} = {value!r} changes the model in a way that is not supported.')
    if key.startswith('llama.') and isinstance(value, list):
      raise UserError(f'{path}: {key} differs between layers, which is not supported.')
  heads, width = fields['llama.attention.head_count'], fields['llama.embedding_length']
  head_dim = fields.get('llama.attention.key_length', width // heads)
  for key in ('attention.value_length', 'rope.dimension_count'):
    if fields.get(f'llama.{key}', head_dim) != head_dim:
      raise UserError(f'{path}: llama.{key} = {fields["llama." + key]} is not supported beside a head of {head_dim}.')
  shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
  if 'token_embd.weight' not in shapes:
    raise UserError(f'{path} has no tensor token_embd.weight.')

  def short(value):  # the decimal that was meant: 1e-05, not 9.999999747378752e-06
    return float(str(np.float32(value)))

  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': int(shapes['token_embd.weight'][1]),  # GGUF lists the fastest axis first
    'hidden_size': width,
    'num_hidden_layers': fields['llama.block_count'],
    'num_attention_heads': heads,
    'num_key_value_heads': fields.get('llama.attention.head_count_kv', heads),
    'head_dim': head_dim,
    'intermediate_size': fields['llama.feed_forward_length'],
    'max_position_embeddings': fields['llama.context_length'],
    'rope_theta': short(fields.get('llama.rope.freq_base', 10_000.0)),
    'rms_norm_eps': short(fields['llama.attention.layer_norm_rms_epsilon']),
    'tie_word_embeddings': 'output.weight' not in shapes,
  }


def _tensors(path, reader, config: ModelConfig) -> weights.Tensors:
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  wanted = {}  # GGUF name -> (Hugging Face name, shape)
  for stem, rows in weights.table(config).items():
    prefix, _, last = stem.removesuffix('.weight').rpartition('{i}.')
    for i, name in enumerate(weights.each(stem, config)):
      ours = (f'blk.{i}.' if prefix else '') + NAMES[last] + '.weight'
      wanted[ours] = name, weights.Layout(rows[0], config).stored
  if odd := sorted(wanted.keys() ^ tensors.keys()):
    raise UserError(f'{path}: tensors missing, or not supported in a llama model: {", ".join(odd[:8])}.')

  def array(name):
    tensor = tensors[name]
    try:
      out = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    except NotImplementedError as error:
      raise UserError(f'{path}: the quantization {tensor.tensor_type.name} of {name} cannot be read.') from error
    return unpermute(out, config.head_dim) if name.endswith(('attn_q.weight', 'attn_k.weight')) else out

  return {hf_name: (shape, lambda name=name: array(name)) for name, (hf_name, shape) in wanted.items()}


def unpermute(rows, head_dim: int):
  """[H * Dh, D] with each head's rotary pairs side by side -> halves apart, as Hugging Face and we rotate them.

  GGUF's llama rotates rows (2i, 2i + 1) of a head together, Hugging Face rows (i, i + Dh / 2).
  """
  pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(path, fields) -> Tokenizer:
  if (model := fields['tokenizer.ggml.model']) != 'gpt2':
    raise UserError(f"{path}: tokenizer.ggml.model {model!r} is not supported; supported: 'gpt2' (byte-level BPE).")
  if (pre := fields['tokenizer.ggml.pre']) not in PRE_TOKENIZERS:
    known = ', '.join(map(repr, PRE_TOKENIZERS))
    raise UserError(f'{path}: tokenizer.ggml.pre {pre!r} is not known, so its ids would be wrong; known: {known}.')
  tokens = fields['tokenizer.ggml.tokens']
  merges = [tuple(merge.split(' ')) for merge in fields['tokenizer.ggml.merges']]
  backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
  backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
  backend.decoder = decoders.ByteLevel()
  types = dict(zip(tokens, fields['tokenizer.ggml.token_type']))
  control = [token for token in tokens if types[token] == gguf.TokenType.CONTROL]
  own = [token for token in tokens if types[token] == gguf.TokenType.USER_DEFINED]
  backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
  backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
  bos = fields.get('tokenizer.ggml.bos_token_id', None)
  ends = [backend.token_to_id(token) for token in ('<|endoftext|>', '<|im_end|>') if token in control]
  if 'tokenizer.ggml.eot_token_id' in fields:
    ends.append(fields['tokenizer.ggml.eot_token_id'])
  return Tokenizer(
    backend,
    eos_id=fields['tokenizer.ggml.eos_token_id'],
    bos_id=bos,
    stop_ids=ends,
    adds_bos=bool(fields.get('tokenizer.ggml.add_bos_token', False)),
    template=fields.get('tokenizer.chat_template', None),
  )
