"""Parameters to and from a Hugging Face directory: config.json, *.safetensors and the tokenizer's files.

One table names every tensor in both worlds and is used both ways. Our parameters stack the layers on a leading axis and
keep heads apart, [N, D, H, Dh]; theirs are one matrix per layer, [out, in] = [H * Dh, D].
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from past_jax.models.config import ModelConfig
from past_jax.text import Tokenizer
from past_jax.types import Params, UserError


class Row(NamedTuple):
  """One parameter. `path` and `shape` are ours, without the leading axis of layers, which a `{i}` in `name` stands for.

  `inputs` is how many leading axes of `shape` a product sums over: they are the columns of the matrix [out, in] on the
  other side. None: both sides store the same array.
  """

  path: tuple[str, str] | tuple[str, str, str]
  name: str
  shape: tuple[int, ...]
  inputs: int | None = None


def table(c: ModelConfig) -> list[Row]:
  """The Llama family's names."""
  D, H, K, Dh, F, V = c.width, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab
  layer = 'model.layers.{i}.'
  rows = [
    Row(('embed', 'embedding'), 'model.embed_tokens.weight', (V, D)),
    Row(('layers', 'attention_norm', 'scale'), layer + 'input_layernorm.weight', (D,)),
    Row(('layers', 'q', 'kernel'), layer + 'self_attn.q_proj.weight', (D, H, Dh), 1),
    Row(('layers', 'k', 'kernel'), layer + 'self_attn.k_proj.weight', (D, K, Dh), 1),
    Row(('layers', 'v', 'kernel'), layer + 'self_attn.v_proj.weight', (D, K, Dh), 1),
    Row(('layers', 'o', 'kernel'), layer + 'self_attn.o_proj.weight', (H, Dh, D), 2),
    Row(('layers', 'mlp_norm', 'scale'), layer + 'post_attention_layernorm.weight', (D,)),
    Row(('layers', 'gate', 'kernel'), layer + 'mlp.gate_proj.weight', (D, F), 1),
    Row(('layers', 'up', 'kernel'), layer + 'mlp.up_proj.weight', (D, F), 1),
    Row(('layers', 'down', 'kernel'), layer + 'mlp.down_proj.weight', (F, D), 1),
    Row(('final_norm', 'scale'), 'model.norm.weight', (D,)),
  ]
  return rows if c.tied else [*rows, Row(('head', 'kernel'), 'lm_head.weight', (D, V), 1)]


def _names(row: Row, config: ModelConfig) -> list[str]:
  return [row.name.format(i=i) for i in range(config.layers)] if '{i}' in row.name else [row.name]


def _their_shape(row: Row) -> tuple[int, ...]:
  if row.inputs is None:
    return row.shape
  return math.prod(row.shape[row.inputs :]), math.prod(row.shape[: row.inputs])


# --- config.json --------------------------------------------------------------------------------------------------

# What the format means by silence, or a function of the other keys.
DEFAULTS = {
  'num_key_value_heads': lambda c: c['num_attention_heads'],
  'head_dim': lambda c: c['hidden_size'] // c['num_attention_heads'],
  'rope_theta': lambda c: 10_000.0,
  'tie_word_embeddings': lambda c: False,
}
# Keys that change what the model computes, with the values under which it is what we compute.
PLAIN = {
  'rope_scaling': (None,),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'hidden_act': ('silu',),
  'partial_rotary_factor': (1.0, None),
  'quantization_config': (None,),
}


def read_config(directory: str | Path) -> ModelConfig:
  """Reads config.json.

  Raises:
    UserError: the file is missing or malformed, or asks for what we do not compute (another `model_type`, rope scaling,
      biases, ...).
  """
  path = Path(directory) / 'config.json'
  try:
    c = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(
      f'{path} does not exist; a model directory has config.json, *.safetensors, tokenizer.json.'
    ) from None
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}') from error
  if c.get('model_type') != 'llama':
    raise UserError(f"{path}: model_type {c.get('model_type')!r} is not supported; supported: 'llama'.")
  rope = c.get('rope_parameters') or {}  # where transformers 5 keeps both the base and the scaling
  if rope.get('rope_type', 'default') != 'default':
    raise UserError(f'{path}: rope_parameters {rope} is not supported; only unscaled rotary embeddings are.')
  c = {**{key: rope[key] for key in ('rope_theta', 'partial_rotary_factor') if key in rope}, **c}
  for key, values in PLAIN.items():
    if key in c and c[key] not in values:
      raise UserError(f'{path}: {key} = {c[key]!r} is not supported; supported: {values[0]!r}.')

  def get(key):
    if c.get(key) is not None:
      return c[key]
    if key not in DEFAULTS:
      raise UserError(f'{path} has no {key!r}.')
    return DEFAULTS[key](c)

  return ModelConfig(
    vocab=get('vocab_size'),
    width=get('hidden_size'),
    layers=get('num_hidden_layers'),
    heads=get('num_attention_heads'),
    kv_heads=get('num_key_value_heads'),
    head_dim=get('head_dim'),
    ffn=get('intermediate_size'),
    context=get('max_position_embeddings'),
    rope_theta=float(get('rope_theta')),
    norm_eps=get('rms_norm_eps'),
    tied=get('tie_word_embeddings'),
  )


def _hf_config(c: ModelConfig, tokenizer: Tokenizer, dtype) -> dict:
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': c.vocab,
    'hidden_size': c.width,
    'num_hidden_layers': c.layers,
    'num_attention_heads': c.heads,
    'num_key_value_heads': c.kv_heads,
    'head_dim': c.head_dim,
    'intermediate_size': c.ffn,
    'max_position_embeddings': c.context,
    'rope_theta': c.rope_theta,
    'rope_scaling': None,
    'rms_norm_eps': c.norm_eps,
    'tie_word_embeddings': c.tied,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': tokenizer.eos_id,
    'torch_dtype': np.dtype(dtype).name,
  }


# --- reading ------------------------------------------------------------------------------------------------------


def _open(directory: Path, stack: contextlib.ExitStack) -> dict:
  """name -> open safetensors file. Reads headers only."""
  index = directory / 'model.safetensors.index.json'
  try:
    if index.exists():
      files = sorted(set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()))
    elif (directory / 'model.safetensors').exists():
      files = ['model.safetensors']
    else:
      files = sorted(path.name for path in directory.glob('*.safetensors'))
  except (ValueError, KeyError, AttributeError) as error:
    raise UserError(f'{index} is not an index of safetensors files: {error!r}') from error
  if not files:
    raise UserError(f'{directory} holds no *.safetensors file.')
  where = {}
  for name in files:
    try:
      file = stack.enter_context(safe_open(directory / name, framework='numpy'))
    except (OSError, SafetensorError) as error:
      raise UserError(f'{directory / name} cannot be read ({error}); is the download complete?') from error
    if twice := sorted(where.keys() & set(file.keys())):
      raise UserError(f'{directory / name} repeats tensors of another file: {_listed(twice)}.')
    where |= dict.fromkeys(file.keys(), file)
  return where


def _listed(names: Iterable[str], most: int = 8) -> str:
  names = list(names)
  return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _span(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
  """The flat range over `shape` that holds everything the outermost slice selects."""
  inner = math.prod(shape[1:])
  return slice(index[0].start * inner, index[0].stop * inner)


def _part(matrix, row: Row, index: tuple[slice, ...]) -> np.ndarray:
  """`index` of one of our arrays, reading little more than that from `matrix`, a lazy view of theirs."""
  if row.inputs is None:
    return matrix[index]
  (ins, outs), (d_in, d_out) = ((t[: row.inputs], t[row.inputs :]) for t in (index, row.shape))
  block = matrix[_span(outs, d_out), _span(ins, d_in)].T
  block = block.reshape(ins[0].stop - ins[0].start, *d_in[1:], outs[0].stop - outs[0].start, *d_out[1:])
  return block[(slice(None), *ins[1:], slice(None), *outs[1:])]


def read(directory: str | Path, config: ModelConfig, shardings: Params | None = None, dtype=np.float32) -> Params:
  """Reads parameters, each device's part alone: no array is ever whole in memory unless a device owns it whole.

  Args:
    config: as `read_config` gives it.
    shardings: a tree like the parameters of `jax.sharding.Sharding`; None: the first device.
    dtype: of the result; the files may hold float32, float16 or bfloat16.

  Raises:
    UserError: tensors are missing, unknown, in two files, or of another shape.
  """
  directory, params = Path(directory), {}
  rows = table(config)
  with contextlib.ExitStack() as stack:
    where = _open(directory, stack)
    wanted = {name: _their_shape(row) for row in rows for name in _names(row, config)}
    # Derived values that old files carry, and the copy of the embedding that some files of tied models do.
    ignored = re.compile(r'rotary_emb\.inv_freq$' + (r'|^lm_head\.weight$' if config.tied else ''))
    if missing := [name for name in wanted if name not in where]:
      raise UserError(f'{directory}: {len(missing)} tensors are missing: {_listed(missing)}.')
    if unused := sorted(name for name in where if name not in wanted and not ignored.search(name)):
      raise UserError(f'{directory}: {len(unused)} tensors belong to nothing in a llama model: {_listed(unused)}.')
    views = {name: where[name].get_slice(name) for name in wanted}
    for name, shape in wanted.items():
      if tuple(views[name].get_shape()) != shape:
        raise UserError(f'{directory}: {name} is {views[name].get_shape()}; config.json makes it {list(shape)}.')
      if views[name].get_dtype() not in ('F32', 'F16', 'BF16'):
        raise UserError(f'{directory}: {name} is {views[name].get_dtype()}; readable are F32, F16 and BF16.')
    for row in rows:
      names, stacked = _names(row, config), '{i}' in row.name
      shape = (config.layers, *row.shape) if stacked else row.shape
      sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if shardings is None else _get(shardings, row.path)
      parts = {}  # replicas ask for the same part; it is read once

      def part(index, row=row, names=names, stacked=stacked, shape=shape, parts=parts):
        index = tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape))
        if (key := tuple((s.start, s.stop) for s in index)) not in parts:
          layers, index = (index[0], index[1:]) if stacked else (slice(1), index)
          arrays = (_part(views[name], row, index).astype(dtype) for name in names[layers])
          parts[key] = np.stack(list(arrays)) if stacked else next(arrays)
        return parts[key]

      _set(params, row.path, jax.make_array_from_callback(shape, sharding, part))
  return params


def _get(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _set(tree, path, value):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


# --- writing ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_directory(directory: str | Path, unless_exists: bool = False) -> Iterator[Path]:
  """A temporary directory that becomes `directory` if the block succeeds, at once and whole; else nothing is left.

  Args:
    unless_exists: of two processes making the same directory, the one that is second keeps the first one's.

  Raises:
    UserError: `directory` exists and is not empty, or the disk is full or read-only.
  """
  directory = Path(directory)
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f'.{directory.name}-', suffix='.partial', dir=directory.parent))
  except OSError as error:
    raise UserError(f'Cannot write beside {directory}: {error}') from error
  try:
    yield work
    work.chmod(0o755)  # mkdtemp makes it for its owner only
    try:
      os.replace(work, directory)
    except OSError:
      if not (directory.is_dir() and any(directory.iterdir())):
        raise
      if not unless_exists:
        raise UserError(f'{directory} exists and is not empty; name another directory or empty it.') from None
  except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError while tensors are written
    raise UserError(f'Cannot write {directory}: {error}. Nothing is left of it.') from error
  finally:
    shutil.rmtree(work, ignore_errors=True)


def write_tensors(
  directory: Path, tensors: Iterable[tuple[str, np.ndarray]], config: ModelConfig, tokenizer: Tokenizer, dtype
):
  """Writes all files of a model into `directory`, from (their name, array) pairs."""

  def dump(name, value):
    (directory / name).write_text(json.dumps(value, indent=2), encoding='utf-8')

  # safetensors writes the memory behind an array whatever its strides say, so it must be contiguous.
  tensors = {name: np.ascontiguousarray(array, dtype) for name, array in tensors}
  save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})
  (directory / 'model.safetensors').chmod(0o644)  # safetensors may make it for its owner only
  dump('config.json', _hf_config(config, tokenizer, dtype))
  dump('generation_config.json', {'bos_token_id': tokenizer.bos_id, 'eos_token_id': list(tokenizer.stop_ids)})
  tokenizer.save(directory)


def write(directory: str | Path, params: Params, config: ModelConfig, tokenizer: Tokenizer, dtype=None):
  """Writes a directory that `read` and `transformers` load; all of it or nothing.

  Args:
    params: host arrays, or device arrays that this process can address.
    dtype: of the tensors; None: float32.

  Raises:
    UserError: `directory` exists and is not empty, a parameter is missing or unknown, or the disk is full.
  """
  rows, directory = table(config), Path(directory)
  ours = {tuple(str(k.key) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  if odd := sorted('/'.join(path) for path in ours.keys() ^ {row.path for row in rows}):
    raise UserError(f'These parameters are missing, or have no Hugging Face name: {_listed(odd)}.')
  if directory.is_dir() and any(directory.iterdir()):  # known before the work is done
    raise UserError(f'{directory} exists and is not empty; name another directory or empty it.')

  def tensors():
    for row in rows:
      names = _names(row, config)
      for i, name in enumerate(names):
        array = np.asarray(ours[row.path][i] if '{i}' in row.name else ours[row.path])
        if array.shape != row.shape:
          raise UserError(f'The parameter {"/".join(row.path)} is {array.shape} where the config makes it {row.shape}.')
        yield name, array if row.inputs is None else array.reshape(*reversed(_their_shape(row))).T

  with new_directory(directory) as work:
    write_tensors(work, tensors(), config, tokenizer, np.float32 if dtype is None else dtype)
