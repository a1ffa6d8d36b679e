"""A GGUF file becomes a Hugging Face directory, once: float32 tensors, config and tokenizer.

Names of tensors are those of the `gguf` library; what a file says of the model is checked field by field, and whatever
is not understood is refused: a model that is almost right shows no error.
"""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from past_jax.models import rope, weights
from past_jax.models.config import ModelConfig
from past_jax.models.families import model_config
from past_jax.text import Tokenizer
from past_jax.types import UserError

VERSION = 3  # goes up when the output changes, so that caches are made anew


# --- architectures ------------------------------------------------------------------------------------------------


def unpermute(rows, head_dim: int):
  """[H * Dh, ...] with each head's rotary pairs side by side -> halves apart, as Hugging Face and we rotate them.

  GGUF's llama rotates rows (2i, 2i + 1) of a head together, Hugging Face rows (i, i + Dh / 2).
  """
  pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


FIELDS = {
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'rope.freq_base': 'rope_theta',
}
GPT2 = {
  'block_count': 'n_layer',
  'context_length': 'n_positions',
  'embedding_length': 'n_embd',
  'feed_forward_length': 'n_inner',
  'attention.head_count': 'n_head',
  'attention.layer_norm_epsilon': 'layer_norm_epsilon',
}
# Field of the GGUF file, without the architecture's name -> key of config.json, whose `model_type` is that name, too.
ARCHITECTURES = {'llama': FIELDS, 'qwen2': FIELDS, 'qwen3': FIELDS, 'gpt2': GPT2}  # Mistral's files say llama
TRANSPOSED = ('attn_qkv', 'attn_output', 'ffn_up', 'ffn_down')  # [in, out] in Hugging Face's gpt2, not in its GGUF
# Fields that are looked at in other ways, or that say nothing about the model.
OTHERS = {'vocab_size', 'attention.value_length', 'rope.dimension_count', 'rope.scaling.type', 'rope.scaling.factor'}
OFF = (0, False, 'none')  # values of all other fields under which they change nothing


# --- tokenizers ---------------------------------------------------------------------------------------------------


def _split(regex: str):
  parts = [
    pre_tokenizers.Split(Regex(regex), behavior='isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]
  return pre_tokenizers.Sequence(parts)


def _words(digits: str) -> str:
  """Contractions, words, numbers, signs and white space apart, as Llama 3 and Qwen 2 have it."""
  return (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )


GPT2_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# How text is cut before the merges, by the name in tokenizer.ggml.pre. A wrong one gives other ids without an error.
PRE_TOKENIZERS = {
  'gpt-2': GPT2_WORDS,
  'smollm': pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2_WORDS]),
  'llama-bpe': _split(_words(r'\p{N}{1,3}')),
  'qwen2': _split(_words(r'\p{N}')),
}
STOPS = ('<|endoftext|>', '<|im_end|>', '<|end_of_text|>', '<|eom_id|>', '<|eot_id|>', '<|end|>')


# --- files --------------------------------------------------------------------------------------------------------


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
  if tokenizer.needs > config.vocab:
    raise UserError(f'{gguf_path} has {tokenizer.needs} tokens and {config.vocab} rows in its embedding.')
  out_dir.mkdir(parents=True, exist_ok=True)
  tensors = _tensors(gguf_path, reader, config, fields['general.architecture'])
  weights.write_tensors(out_dir, tensors, config, tokenizer, np.float32)


def _shapes(reader) -> dict[str, tuple[int, ...]]:
  return {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in reader.tensors}  # GGUF: fastest axis first


def _config(path, fields, reader) -> dict:
  """The config.json of the same model."""
  if (name := fields['general.architecture']) not in ARCHITECTURES:
    known = ', '.join(ARCHITECTURES)
    what = f'architecture {name!r} is not supported in GGUF; supported: {known}'
    raise UserError(f'{path}: {what}. Use the Hugging Face directory of this model.')
  keys, shapes = ARCHITECTURES[name], _shapes(reader)
  own = {key.removeprefix(f'{name}.'): value for key, value in fields.items() if key.startswith(f'{name}.')}
  for key, value in own.items():
    if isinstance(value, list):
      raise UserError(f'{path}: {name}.{key} differs between layers, which is not supported.')
    if key not in keys and key not in OTHERS and value not in OFF:
      raise UserError(f'{path}: {name}.{key} = {value!r} changes the model in a way that is not supported.')
  if 'token_embd.weight' not in shapes:
    raise UserError(f'{path} has no tensor token_embd.weight.')
  heads, width = (fields[f'{name}.{key}'] for key in ('attention.head_count', 'embedding_length'))
  own = {
    'attention.head_count_kv': heads,
    'attention.key_length': (head_dim := own.get('attention.key_length', width // heads)),
    'rope.freq_base': 10_000.0,
    **own,
  }
  for key in ('attention.value_length', 'rope.dimension_count'):
    if own.get(key, head_dim) != head_dim:
      raise UserError(f'{path}: {name}.{key} = {own[key]} is not supported beside a head of {head_dim}.')

  def short(value):  # the decimal that was meant: 1e-05, not 9.999999747378752e-06
    return float(str(np.float32(value))) if isinstance(value, float) else value

  config = {
    'model_type': name,
    'vocab_size': shapes['token_embd.weight'][0],
    'tie_word_embeddings': 'output.weight' not in shapes,
  }
  config |= {ours: short(own[key] if key in own else fields[f'{name}.{key}']) for key, ours in keys.items()}
  if scaling := _rope_scaling(path, name, own, config, reader):
    config['rope_scaling'] = scaling
  return config


def _rope_scaling(path, name, own, config, reader) -> dict | None:
  kind = own.get('rope.scaling.type', 'none')
  if kind == 'linear':
    return {'rope_type': 'linear', 'factor': own['rope.scaling.factor']}
  if kind != 'none':
    raise UserError(f'{path}: {name}.rope.scaling.type = {kind!r} is not supported; supported: none, linear.')
  divisors = next((tensor.data for tensor in reader.tensors if tensor.name == 'rope_freqs.weight'), None)
  if divisors is None or (divisors == 1).all():
    return None
  # A file holds what Llama 3's rule made of its parameters, not these. Those of all of Meta's models are tried.
  scaling = {'rope_type': 'llama3', 'factor': round(float(divisors.max()), 3)}
  scaling |= {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
  head_dim, theta = config['head_dim'], config['rope_theta']
  plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
  scaled, _ = rope.frequencies(scaling | {'rope_theta': theta}, head_dim, config['max_position_embeddings'], 'short')
  if divisors.shape != plain.shape or not np.allclose(plain / divisors, scaled, rtol=1e-5, atol=0):
    raise UserError(f"{path}: rope_freqs.weight is not what the rotary scaling of Meta's Llama 3 models gives.")
  return scaling


def _tensors(path, reader, config: ModelConfig, name: str) -> weights.Tensors:
  shapes = _shapes(reader)
  tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name != 'rope_freqs.weight'}
  arch = next(number for number, spelt in gguf.MODEL_ARCH_NAMES.items() if spelt == name)
  names = gguf.get_tensor_name_map(arch, config.layers)
  wanted = {}  # GGUF name -> (Hugging Face name, shape)
  for stem, rows in weights.table(config).items():
    for ours in weights.each(stem, config):
      theirs = names.get_name(ours, ('.weight', '.bias'))
      wanted[theirs] = ours, weights.Layout(rows[0], config).stored
  if odd := sorted(wanted.keys() ^ tensors.keys()):
    raise UserError(f'{path}: tensors missing, or not supported in a {name} model: {weights.listed(odd)}.')
  turned = {n for n in wanted if name == 'gpt2' and n.endswith('.weight') and n.split('.')[-2] in TRANSPOSED}
  for theirs, (_, shape) in wanted.items():
    if shapes[theirs] != (expected := shape[::-1] if theirs in turned else shape):
      raise UserError(f'{path}: {theirs} is {list(shapes[theirs])}; the fields make it {list(expected)}.')

  def array(theirs):
    tensor = tensors[theirs]
    try:
      out = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
      what = f'the quantization {tensor.tensor_type.name} of {theirs} cannot be read; convert the file to another one'
      raise UserError(f'{path}: {what}.') from None
    if not np.isfinite(out).all():
      raise UserError(f'{path}: {theirs} holds NaN or infinity.')
    if name == 'llama' and theirs.endswith(('attn_q.weight', 'attn_k.weight')):
      return unpermute(out, config.head_dim)
    return out.T if theirs in turned else out

  return {ours: (shape, lambda theirs=theirs: array(theirs)) for theirs, (ours, shape) in wanted.items()}


def _byte_level(path, fields) -> Backend:
  if (pre := fields['tokenizer.ggml.pre']) not in PRE_TOKENIZERS:
    known = ', '.join(map(repr, PRE_TOKENIZERS))
    raise UserError(f'{path}: tokenizer.ggml.pre {pre!r} is not known, so its ids would be wrong; known: {known}.')
  merges = [tuple(merge.split(' ')) for merge in fields['tokenizer.ggml.merges']]
  vocab = {token: i for i, token in enumerate(fields['tokenizer.ggml.tokens'])}
  # Llama 3 takes a word that is a token as it is, whatever the merges make of it.
  backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == 'llama-bpe'))
  if pre == 'qwen2':
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = PRE_TOKENIZERS[pre]
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(path, fields) -> Backend:
  """SentencePiece joins the two neighbours that make the piece of the highest score: merges in the order of scores."""
  if (name := fields['general.architecture']) != 'llama':
    what = f"tokenizer.ggml.model 'llama' is not supported in a {name} model, whose tokenizer differs in ways that a"
    raise UserError(f'{path}: {what} GGUF file does not tell. Use the Hugging Face directory of this model.')
  tokens, types = fields['tokenizer.ggml.tokens'], fields['tokenizer.ggml.token_type']
  scores, vocab = fields['tokenizer.ggml.scores'], {token: i for i, token in enumerate(tokens)}
  pieces = {token for token, kind in zip(tokens, types) if kind == gguf.TokenType.NORMAL}
  pairs = [(token[:cut], token[cut:]) for token in pieces for cut in range(1, len(token))]
  pairs = [(left, right) for left, right in pairs if left in pieces and right in pieces]
  merges = sorted(pairs, key=lambda pair: (-scores[vocab[pair[0] + pair[1]]], vocab[pair[0]], vocab[pair[1]]))
  unknown = tokens[fields['tokenizer.ggml.unknown_token_id']]
  backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
  space, prefix = '\u2581', fields.get('tokenizer.ggml.add_space_prefix', True)
  before = [normalizers.Prepend(space)] if prefix else []
  after = [decoders.Strip(' ', 1, 0)] if prefix else []
  backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(' ', space)])
  backend.decoder = decoders.Sequence([decoders.Replace(space, ' '), decoders.ByteFallback(), decoders.Fuse(), *after])
  return backend


TOKENIZERS = {'gpt2': _byte_level, 'llama': _sentencepiece}


def _tokenizer(path, fields) -> Tokenizer:
  if (model := fields['tokenizer.ggml.model']) not in TOKENIZERS:
    known = "'gpt2' (byte-level BPE), 'llama' (SentencePiece)"
    raise UserError(f'{path}: tokenizer.ggml.model {model!r} is not supported; supported: {known}.')
  backend, tokens = TOKENIZERS[model](path, fields), fields['tokenizer.ggml.tokens']
  types = dict(zip(tokens, fields['tokenizer.ggml.token_type']))
  control = [token for token in tokens if types[token] == gguf.TokenType.CONTROL]
  own = [token for token in tokens if types[token] == gguf.TokenType.USER_DEFINED]
  backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
  backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
  bos = fields.get('tokenizer.ggml.bos_token_id', None)
  ends = [tokens.index(token) for token in STOPS if token in control]
  ends += [fields[key] for key in ('tokenizer.ggml.eot_token_id', 'tokenizer.ggml.eom_token_id') if key in fields]
  # Files from before there was such a field mean that these add a BOS.
  meant = model == 'llama' or fields['tokenizer.ggml.pre'] == 'llama-bpe'
  adds_bos = fields.get('tokenizer.ggml.add_bos_token', meant and bos is not None)
  return Tokenizer(
    backend,
    eos_id=fields['tokenizer.ggml.eos_token_id'],
    bos_id=bos,
    stop_ids=ends,
    adds_bos=bool(adds_bos),
    template=fields.get('tokenizer.chat_template', None),
  )
