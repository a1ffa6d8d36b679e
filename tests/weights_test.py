"""Parameters from and to safetensors. The files are made here, tiny."""

import contextlib
import itertools
import json
import math
import re
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from small import SMALL, assert_same, edit_config, random_params

from past_jax import mesh as mesh_lib
from past_jax import models
from past_jax.models import peft, weights
from past_jax.models.families import FAMILIES, model_config, read_config
from past_jax.models.transformer import RULES
from past_jax.text import byte_tokenizer, load_tokenizer
from past_jax.types import UserError


@pytest.fixture
def written(tmp_path):
  """A directory written from SMALL."""
  weights.write(tmp_path / 'model', random_params(SMALL), SMALL, byte_tokenizer())
  return tmp_path / 'model'


@pytest.mark.parametrize('tied', [True, False])
def test_write_then_read_is_exact(tmp_path, tied):
  config = small.llama(tie_word_embeddings=tied, rope_theta=123456.0, rms_norm_eps=1e-6)
  params = random_params(config)
  weights.write(tmp_path / 'model', params, config, byte_tokenizer())
  assert read_config(tmp_path / 'model') == config
  assert_same(weights.read(tmp_path / 'model', config), params)
  assert load_tokenizer(tmp_path / 'model').stop_ids == byte_tokenizer().stop_ids
  assert [path.name for path in tmp_path.iterdir()] == ['model']
  assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / 'model').iterdir()} == {'0o644'}


FUSED = {
  'phi3': dict(
    num_hidden_layers=2,
    hidden_size=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=8,
    pad_token_id=None,
  ),
  'gpt2': dict(n_layer=2, n_embd=12, n_head=4, n_inner=8, n_positions=16),
  'gpt_neox': dict(num_hidden_layers=2, hidden_size=12, num_attention_heads=4, intermediate_size=8),
}


def written_as(tmp_path, family):
  """(config, random parameters, {name: tensor} of the file written from them)"""
  config = SMALL if family == 'llama' else model_config({'model_type': family, 'vocab_size': 280, **FUSED[family]})
  params = random_params(config)
  weights.write(tmp_path, params, config, byte_tokenizer())
  assert_same(weights.read(tmp_path, config), params)
  return config, params, load_file(tmp_path / 'model.safetensors')


def heads(c, n):
  """(d, h, e) of the input, head and part of every element of `n` heads."""
  return itertools.product(range(c.width), range(n), range(c.head_dim))


@pytest.mark.parametrize('family', ['llama', 'phi3', 'gpt2', 'gpt_neox'])
def test_every_element_lies_where_hugging_face_puts_it(tmp_path, family):
  """The formats spelled out, one element after the other."""
  c, params, tensors = written_as(tmp_path, family)
  kernel = lambda name: params['layers'][name]['kernel'][n]
  bias = lambda name: params['layers'][name]['bias'][n]
  e_, H, K, W = c.head_dim, c.heads, c.kv_heads, c.heads * c.head_dim
  prefix = {'gpt2': 'transformer.h', 'gpt_neox': 'gpt_neox.layers'}.get(family, 'model.layers')
  for n in range(c.layers):
    layer = {k.removeprefix(f'{prefix}.{n}.'): x for k, x in tensors.items() if k.startswith(f'{prefix}.{n}.')}
    if family == 'llama':
      assert len(layer) == 9
      for d, h, e in heads(c, H):
        assert layer['self_attn.q_proj.weight'][h * e_ + e, d] == kernel('q')[d, h, e]
        assert layer['self_attn.o_proj.weight'][d, h * e_ + e] == kernel('o')[h, e, d]
      for d, k, e in heads(c, K):
        assert layer['self_attn.k_proj.weight'][k * e_ + e, d] == kernel('k')[d, k, e]
        assert layer['self_attn.v_proj.weight'][k * e_ + e, d] == kernel('v')[d, k, e]
      for d, f in itertools.product(range(c.width), range(c.ffn)):
        assert layer['mlp.gate_proj.weight'][f, d] == kernel('gate')[d, f]
        assert layer['mlp.up_proj.weight'][f, d] == kernel('up')[d, f]
        assert layer['mlp.down_proj.weight'][d, f] == kernel('down')[f, d]
    elif family == 'phi3':  # heads of Q, then of K, then of V; all of gate, then all of up
      assert len(layer) == 6
      for d, h, e in heads(c, H):
        assert layer['self_attn.qkv_proj.weight'][h * e_ + e, d] == kernel('q')[d, h, e]
        assert layer['self_attn.o_proj.weight'][d, h * e_ + e] == kernel('o')[h, e, d]
      for d, k, e in heads(c, K):
        assert layer['self_attn.qkv_proj.weight'][(H + k) * e_ + e, d] == kernel('k')[d, k, e]
        assert layer['self_attn.qkv_proj.weight'][(H + K + k) * e_ + e, d] == kernel('v')[d, k, e]
      for d, f in itertools.product(range(c.width), range(c.ffn)):
        assert layer['mlp.gate_up_proj.weight'][f, d] == kernel('gate')[d, f]
        assert layer['mlp.gate_up_proj.weight'][c.ffn + f, d] == kernel('up')[d, f]
        assert layer['mlp.down_proj.weight'][d, f] == kernel('down')[f, d]
    elif family == 'gpt2':  # input first; Q, K and V side by side
      assert len(layer) == 12
      for d, h, e in heads(c, H):
        for j, name in enumerate('qkv'):
          assert layer['attn.c_attn.weight'][d, j * W + h * e_ + e] == kernel(name)[d, h, e]
          assert layer['attn.c_attn.bias'][j * W + h * e_ + e] == bias(name)[h, e]
        assert layer['attn.c_proj.weight'][h * e_ + e, d] == kernel('o')[h, e, d]
      np.testing.assert_array_equal(layer['mlp.c_fc.weight'], kernel('up'))
      np.testing.assert_array_equal(layer['mlp.c_proj.weight'], kernel('down'))
      np.testing.assert_array_equal(layer['mlp.c_proj.bias'], bias('down'))
      np.testing.assert_array_equal(layer['ln_2.bias'], params['layers']['mlp_norm']['bias'][n])
    else:  # head by head the rows of its Q, its K and its V
      assert len(layer) == 12
      for d, h, e in heads(c, H):
        for j, name in enumerate('qkv'):
          assert layer['attention.query_key_value.weight'][(3 * h + j) * e_ + e, d] == kernel(name)[d, h, e]
          assert layer['attention.query_key_value.bias'][(3 * h + j) * e_ + e] == bias(name)[h, e]
        assert layer['attention.dense.weight'][d, h * e_ + e] == kernel('o')[h, e, d]
      np.testing.assert_array_equal(layer['mlp.dense_h_to_4h.weight'], kernel('up').T)
      np.testing.assert_array_equal(layer['mlp.dense_4h_to_h.weight'], kernel('down').T)
    first, second = {'gpt2': ('ln_1', 'ln_2')}.get(family, ('input_layernorm', 'post_attention_layernorm'))
    np.testing.assert_array_equal(layer[f'{first}.weight'], params['layers']['attention_norm']['scale'][n])
    np.testing.assert_array_equal(layer[f'{second}.weight'], params['layers']['mlp_norm']['scale'][n])
  outer = {
    'gpt2': ('transformer.wte', 'transformer.ln_f', 'lm_head'),
    'gpt_neox': ('gpt_neox.embed_in', 'gpt_neox.final_layer_norm', 'embed_out'),
  }
  embedding, norm, head = outer.get(family, ('model.embed_tokens', 'model.norm', 'lm_head'))
  np.testing.assert_array_equal(tensors[f'{embedding}.weight'], params['embed']['embedding'])
  np.testing.assert_array_equal(tensors[f'{norm}.weight'], params['final_norm']['scale'])
  assert c.tied == (f'{head}.weight' not in tensors)
  if not c.tied:
    np.testing.assert_array_equal(tensors[f'{head}.weight'], params['head']['kernel'].T)
  if family == 'gpt2':
    np.testing.assert_array_equal(tensors['transformer.wpe.weight'], params['positions']['embedding'])


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files(tmp_path, dtype):
  params = random_params(SMALL)
  weights.write(tmp_path / 'model', params, SMALL, byte_tokenizer(), dtype=dtype)
  assert json.loads((tmp_path / 'model/config.json').read_text())['dtype'] == np.dtype(dtype).name
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


READ = """
import re, sys, jax
from pathlib import Path

jax.config.update('jax_num_cpu_devices', 8)
from past_jax import mesh as mesh_lib, models

def peak():
  return int(re.search('VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) << 10

model, mesh = models.load(sys.argv[1]), mesh_lib.make({'data': 1, 'fsdp': 4, 'tensor': 2})
jax.block_until_ready(jax.jit(lambda: 1.0)())  # the runtime is not what is measured
jax.eval_shape(model.policy.init, jax.random.key(0))
before = peak()
params = model.read(mesh)
kept = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
print(kept, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_reading_holds_little_more_than_it_keeps(tmp_path, monkeypatch, dtype):
  """On Linux, where the kernel tells the peak. A stacked parameter held whole besides would be 64 MiB of the 305."""
  config = small.llama(
    vocab_size=32768,
    hidden_size=512,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=32,
    intermediate_size=2048,
    num_hidden_layers=16,
  )
  values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
  tensors = {}
  for stem, (row, *_) in weights.table(config).items():
    shape = weights.Layout(row, config).stored
    tensors |= dict.fromkeys(weights.each(stem, config), (shape, lambda shape=shape: np.resize(values, shape)))
  monkeypatch.setattr(weights, 'SHARD', 64 << 20)
  weights.write_tensors(tmp_path, tensors, config, byte_tokenizer(), dtype)
  done = subprocess.run([sys.executable, '-c', READ, str(tmp_path)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  kept, grown = map(int, done.stdout.split())
  assert 1 <= kept / (4 * sum(math.prod(shape) for shape, _ in tensors.values())) < 1.01  # norms are on every device
  assert grown < 1.15 * kept


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


def test_files_that_are_not_there(written):
  split(written)
  index = written / 'model.safetensors.index.json'
  (written / 'model-00002-of-00002.safetensors').unlink()
  message = f'{index} names files that are not there: model-00002-of-00002.safetensors; is the download complete?'
  with pytest.raises(UserError, match=re.escape(message)):
    weights.read(written, SMALL)
  for broken in ('[', '[]', '{}', '{"weight_map": {"a": 1}}'):
    index.write_text(broken)
    with pytest.raises(UserError, match=re.escape(f'{index} is not an index of safetensors files: ')):
      weights.read(written, SMALL)
  index.unlink()
  with pytest.raises(UserError, match=re.escape(f'{written}: 10 tensors are missing: ')):  # half of the twenty
    weights.read(written, SMALL)
  (written / 'model-00001-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match=re.escape(f'{written} holds no *.safetensors file.')):
    weights.read(written, SMALL)
  (written / 'pytorch_model.bin').write_bytes(b'')
  message = 'pytorch_model.bin is a pickle, which may run code when it is read: convert it.'
  with pytest.raises(UserError, match=re.escape(message)):
    weights.read(written, SMALL)


Q, NORM = 'model.layers.1.self_attn.q_proj.weight', 'model.norm.weight'
EXTRA = 'belong to nothing in a llama model of {} layers as config.json describes it'
# What is done to the tensors and to config.json, and what is said about it.
BAD = {
  'missing': (lambda t: t.pop(Q), {}, f'1 tensors are missing: {Q}.'),
  'unused': (lambda t: t.update(odd=t[NORM]), {}, f'1 tensors {EXTRA.format(2)}: odd.'),
  'shape': (lambda t: t.update({Q: t[Q][:8]}), {}, f'{Q} is [8, 12]; config.json makes it [16, 12].'),
  'scalar': (lambda t: t.update({NORM: np.ones((), np.float32)}), {}, f'{NORM} is []; config.json makes it [12].'),
  'dtype': (lambda t: t.update({Q: t[Q].astype(np.int8)}), {}, f'{Q} is I8; readable are F32, F16, BF16.'),
  'nan': (lambda t: t[Q].__setitem__((15, 11), np.nan), {}, f'{Q} holds NaN or infinity.'),
  'infinity': (lambda t: t[NORM].__setitem__(3, -np.inf), {}, f'{NORM} holds NaN or infinity.'),
  'vocab_size': (None, dict(vocab_size=281), 'model.embed_tokens.weight is [280, 12]; config.json makes it [281, 12].'),
  'width': (None, dict(hidden_size=16), 'model.embed_tokens.weight is [280, 12]; config.json makes it [280, 16].'),
  'fewer layers': (None, dict(num_hidden_layers=1), f'9 tensors {EXTRA.format(1)}: model.layers.1.input_layernorm.w'),
  'more layers': (None, dict(num_hidden_layers=3), '9 tensors are missing: model.layers.2.input_layernorm.weight, mod'),
  'heads': (None, dict(num_attention_heads=2), 'q_proj.weight is [16, 12]; config.json makes it [8, 12].'),
  'kv_heads': (None, dict(num_key_value_heads=4), 'k_proj.weight is [8, 12]; config.json makes it [16, 12].'),
  'biases': (None, dict(attention_bias=True), '8 tensors are missing: model.layers.0.self_attn.q_proj.bias, '),
  'untied': (None, dict(tie_word_embeddings=False), '1 tensors are missing: lm_head.weight.'),
  'tied': (
    lambda t: t.update({'lm_head.weight': t['model.embed_tokens.weight'] * 2}),
    {},
    'config.json ties the output head to the embedding, and lm_head.weight is another tensor; set tie_word_embeddings',
  ),
}


@pytest.mark.parametrize('edit, changes, message', BAD.values(), ids=BAD)
def test_tensors_that_do_not_fit_are_named(written, edit, changes, message):
  if edit:
    tensors = load_file(written / 'model.safetensors')
    edit(tensors)
    save_file(tensors, written / 'model.safetensors')
  edit_config(written, **changes)
  with pytest.raises(UserError, match=re.escape(f'{written}: ') + '.*' + re.escape(message)):
    weights.read(written, read_config(written))


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_nan_of_half_precision(written, dtype):
  tensors = {name: x.astype(dtype) for name, x in load_file(written / 'model.safetensors').items()}
  tensors[Q][3, 4] = np.nan
  save_file(tensors, written / 'model.safetensors')
  for kept in (np.float32, dtype):
    with pytest.raises(UserError, match=re.escape(f'{written}: {Q} holds NaN or infinity.')):
      weights.read(written, SMALL, dtype=kept)


def test_damaged_files(written):
  path = written / 'model.safetensors'
  whole = path.read_bytes()
  for damaged in (whole[:-5], whole[:100], whole[:4], b'', b'version https://git-lfs.github.com/spec/v1\n'):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=re.escape(f'{path} cannot be read (') + r'.*\); is the download complete\?'):
      weights.read(written, SMALL)


def test_tensors_that_are_no_parameters_are_passed_over(tmp_path):
  """Buffers in the files of old releases, and the copy of a tied embedding."""
  for family, more in {
    'llama': {'model.layers.0.self_attn.rotary_emb.inv_freq': 2, 'lm_head.weight': 'model.embed_tokens.weight'},
    'gpt2': {'transformer.h.1.attn.bias': 9, 'transformer.h.0.attn.masked_bias': 1},
    'gpt_neox': {'gpt_neox.layers.0.attention.bias': 9, 'gpt_neox.layers.1.attention.rotary_emb.inv_freq': 2},
  }.items():
    config, params, tensors = written_as(tmp_path / family, family)
    path = tmp_path / family / 'model.safetensors'
    added = {name: tensors[x].copy() if isinstance(x, str) else np.zeros(x, np.float32) for name, x in more.items()}
    save_file(tensors | added, path)
    assert_same(weights.read(tmp_path / family, config), params)
    # Saved from the model without its head, names have no prefix.
    prefix = FAMILIES[family].prefix
    assert sum(name.startswith(prefix) for name in tensors) >= len(tensors) - 1
    save_file({name.removeprefix(prefix): x for name, x in (tensors | added).items()}, path)
    assert_same(weights.read(tmp_path / family, config), params)


def test_rows_that_name_a_parameter_twice_or_not_at_all_are_refused(monkeypatch):
  family = FAMILIES['phi3']
  config = model_config({'model_type': 'phi3', 'vocab_size': 280, **FUSED['phi3']})
  k = next(row for row in family.rows if row.path == 'layers/k/kernel')
  others = tuple(row for row in family.rows if row is not k)
  for rows, message in {
    others: 'these parameters have no name, or two: layers/k/kernel',
    (*family.rows, k): 'these parameters have no name, or two: layers/k/kernel',
    (*others, k._replace(part=0)): 'qkv_proj.weight has parts that belong to no parameter, or to two',
    (*others, k._replace(name='other')): 'qkv_proj.weight has parts that belong to no parameter, or to two',
  }.items():
    monkeypatch.setitem(FAMILIES, 'phi3', family._replace(rows=rows))
    with pytest.raises(ValueError, match=message):
      weights.table(config)


def test_directories_that_are_no_model(written):
  """As `models.load` meets them."""
  load = lambda: models.load(str(written))
  assert load().config == SMALL
  edit_config(written, vocab_size=259)  # the byte tokenizer has 260 ids
  with pytest.raises(UserError, match=re.escape(f'{written}: the tokenizer has 260 ids and the embedding 259 (voc')):
    load()
  edit_config(written, vocab_size=280)
  (written / 'tokenizer.json').unlink()
  (written / 'tokenizer.model').write_bytes(b'')
  with pytest.raises(UserError, match=re.escape(f'{written} has no tokenizer.json, which a model directory needs.')):
    load()
  (written / 'config.json').unlink()
  with pytest.raises(UserError, match=re.escape(f'{written}/config.json does not exist; a model directory has config')):
    load()
  (written / 'adapter_config.json').write_text('{}')
  with pytest.raises(UserError, match=re.escape(f'{written} is a LoRA adapter (adapter_config.json); a model is')):
    load()


CONFIG_ERRORS = {
  'family': (dict(model_type='bert'), "model_type 'bert' is not supported; supported: llama, smollm3, mistral, qwen2"),
  'rope': (dict(rope_scaling={'type': 'dynamic', 'factor': 2.0}), "rope_type 'dynamic' is not supported; supported: "),
  'activation': (dict(hidden_act='relu'), "hidden_act = 'relu' is not supported; supported: silu"),
  'quantized': (dict(quantization_config={'bits': 4}), 'quantization_config is not supported; load the model unquant'),
  'type': (dict(hidden_size='wide'), 'not a config of a llama model: '),
}


@pytest.mark.parametrize('changes, message', CONFIG_ERRORS.values(), ids=CONFIG_ERRORS)
def test_configs_that_we_do_not_compute_are_refused(written, changes, message):
  edit_config(written, **changes)
  with pytest.raises(UserError, match=re.escape(f'{written}/config.json: {message}')):
    read_config(written)


def test_config_means_by_silence_what_the_format_means(written):
  edit_config(written, **dict.fromkeys(['num_key_value_heads', 'head_dim', 'rope_theta', 'tie_word_embeddings']))
  config = read_config(written)
  assert (config.kv_heads, config.head_dim, config.tied) == (4, 3, False)
  edit_config(written, rope_parameters={'rope_type': 'default', 'rope_theta': 5e5}, head_dim=4)  # transformers 5
  assert read_config(written).kinds[0].frequencies == pytest.approx((1.0, 5e5**-0.5), rel=3e-7)  # in float32
  (written / 'config.json').write_text('[')
  with pytest.raises(UserError, match='is not JSON'):
    read_config(written)
  (written / 'config.json').write_text('[]')
  with pytest.raises(UserError, match='is not a JSON object'):
    read_config(written)


def test_write_keeps_what_is_there(written):
  before = {path.name: path.read_bytes() for path in written.iterdir()}
  with pytest.raises(UserError, match='not empty'):
    weights.write(written, random_params(SMALL, seed=1), SMALL, byte_tokenizer())
  assert {path.name: path.read_bytes() for path in written.iterdir()} == before
  (written.parent / 'empty').mkdir()
  weights.write(written.parent / 'empty', random_params(SMALL), SMALL, byte_tokenizer())
  assert_same(weights.read(written.parent / 'empty', SMALL), random_params(SMALL))


def test_write_leaves_nothing_when_it_fails(tmp_path):
  params = random_params(SMALL)
  with pytest.raises(UserError, match='missing, or have no name in a llama model: adapter/a, final_norm/scale'):
    odd = {**{k: v for k, v in params.items() if k != 'final_norm'}, 'adapter': {'a': np.zeros(1)}}
    weights.write(tmp_path / 'model', odd, SMALL, byte_tokenizer())
  with pytest.raises(UserError, match=r'embed/embedding is \(264, 12\)'):
    odd = {**params, 'embed': {'embedding': params['embed']['embedding'][:264]}}
    weights.write(tmp_path / 'model', odd, SMALL, byte_tokenizer())
  assert list(tmp_path.iterdir()) == []


def new_adapters():
  """Of `SMALL`'s q, rank 40."""
  rng, c = np.random.default_rng(0), SMALL
  shapes = {'lora_a': (c.layers, c.width, 40), 'lora_b': (c.layers, 40, c.heads, c.head_dim)}
  return {'layers': {'q': {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}}}


def write_model(directory, params, dtype=np.float32):
  weights.write(directory, params, SMALL, byte_tokenizer(), dtype)


def write_adapters(directory, adapters, dtype=np.float32):
  peft.write(directory, adapters, SMALL, base='base', rank=40, alpha=40, dtype=dtype)


# (how it is written, new parameters, where one is, the name of its tensor)
WRITERS = {
  'model': (write_model, lambda: random_params(SMALL), 'layers/q/kernel', Q),
  'adapters': (write_adapters, new_adapters, 'layers/q/lora_a', f'base_model.model.{Q[:-7]}.lora_A.weight'),
}


@contextlib.contextmanager
def room_for(size):
  """No file grows beyond `size` bytes: the operating system itself refuses, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('write, make, _, name', WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, write, make, _, name):
  params, target = make(), tmp_path / 'out'
  with (
    room_for(4096),
    pytest.raises(UserError, match=f'Cannot write {target}: .*File too large. Nothing is left of it'),
  ):
    write(target, params)
  assert list(tmp_path.iterdir()) == []
  write(target, params)
  assert {oct(path.stat().st_mode & 0o777) for path in target.iterdir()} == {'0o644'}
  (file,) = target.glob('*.safetensors')
  assert file.stat().st_size > 4096 and load_file(file)[name].any()


@pytest.mark.parametrize('write, make, path, name', WRITERS.values(), ids=WRITERS)
def test_numbers_that_no_file_should_hold_are_refused(tmp_path, write, make, path, name):
  params = make()
  array = weights.leaf(params, path)
  for value, dtype, message in (
    (np.nan, np.float32, f'The tensor {name} holds NaN or infinity'),
    (-np.inf, ml_dtypes.bfloat16, f'The tensor {name} holds NaN or infinity'),
    (np.nan, np.float16, f'The tensor {name} holds NaN or infinity'),
    (-65520, np.float16, f'The tensor {name} holds numbers too large for float16; choose bfloat16 or float32 as'),
    (3.4e38, ml_dtypes.bfloat16, f'The tensor {name} holds numbers too large for bfloat16; choose float32 as'),
  ):
    array[-1, 3, 1] = value
    with pytest.raises(UserError, match=re.escape(message)):
      write(tmp_path / 'out', params, dtype)
    assert list(tmp_path.iterdir()) == []
  array[-1, 3, 1] = 65504  # float16's largest
  write(tmp_path / 'out', params, np.float16)
  (file,) = (tmp_path / 'out').glob('*.safetensors')
  assert load_file(file)[name].max() == 65504


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
