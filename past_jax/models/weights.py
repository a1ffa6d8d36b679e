"""Parameters from and to safetensors, in the names and layouts of the family's rows (`families.py`).

Nothing is unpickled and no code of a checkpoint is run.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from past_jax.mesh import path_string
from past_jax.models.config import ModelConfig
from past_jax.models.families import FAMILIES, Row
from past_jax.models.transformer import transformer
from past_jax.scores import HEAD, with_head
from past_jax.text import Tokenizer
from past_jax.types import Params, UserError

DTYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
SHARD = 4 << 30  # bytes: the most that one file gets, but for a tensor that is larger alone


# --- names and layouts --------------------------------------------------------------------------------------------


def initial(config: ModelConfig) -> Callable[[jax.Array], Params]:
  """(key) -> new parameters; those of a judge have a head of zeros."""
  init = transformer(config).init
  return (lambda key: with_head(init(key), config.width)) if config.scored else init


@functools.lru_cache  # tracing takes a while
def paths(config: ModelConfig) -> tuple[str, ...]:
  """Of all parameters."""
  shapes = jax.eval_shape(initial(config), jax.random.key(0))
  return tuple(path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes))


def table(config: ModelConfig) -> dict[str, list[Row]]:
  """{name of a tensor, with `{i}` for the layer: the rows of the parameters in it}, of all that `config` has.

  Raises:
    ValueError: the family's rows do not name every parameter, and every part of its tensor, exactly once.
  """
  family, ours, tensors = FAMILIES[config.family], paths(config), defaultdict(list)
  rows = [row for row in family.rows if row.path in ours]
  times = Counter(row.path for row in rows)
  if odd := [path for path in ours if times[path] != 1]:
    raise ValueError(f'In family {config.family!r} these parameters have no name, or two: {listed(odd)}.')
  for row in rows:
    tensors[row.name if row.path.startswith(('head/', 'score/')) else family.prefix + row.name].append(row)
  for name, group in tensors.items():
    if sorted(row.part for row in group) != list(range(len(group[0].parts) or 1)):
      raise ValueError(f'In family {config.family!r} {name} has parts that belong to no parameter, or to two.')
  return dict(tensors)


def each(name: str, config: ModelConfig) -> list[str]:
  return [name.format(i=i) for i in range(config.layers)] if '{i}' in name else [name]


class Layout:
  """How the parameter of a row lies in its tensor."""

  def __init__(self, row: Row, c: ModelConfig):
    letters = dict(V=c.vocab, D=c.width, H=c.heads, K=c.kv_heads, d=c.head_dim, F=c.ffn, C=c.context) | {'1': 1}
    sizes = [letters[letter] for letter in row.parts]
    letters['x'] = sum(sizes)
    theirs, _, ours = row.axes.partition('->')
    axes = theirs.replace(' ', '')
    ours = ours or axes
    first = sum(sizes[: row.part])
    self.stored = tuple(math.prod(letters[a] for a in axis) for axis in theirs.split())
    self._split = tuple(letters[a] for a in axes)
    self._part = tuple(slice(first, first + sizes[row.part]) if a == 'x' else slice(None) for a in axes)
    self._lone = 'x' in axes and 'x' not in ours  # of size 1
    self._order = [axes.index(a) for a in ours + 'x' * self._lone]
    self.shape = self.view(np.broadcast_to(np.float32(0), self.stored)).shape

  def view(self, tensor: np.ndarray) -> np.ndarray:
    """Our array as a view of theirs; nothing is read or copied, and what is written to it is written to theirs."""
    ours = tensor.reshape(self._split)[self._part].transpose(self._order)
    return ours[..., 0] if self._lone else ours


def listed(names: Iterable[str], most: int = 8) -> str:
  names = list(names)
  return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


# --- reading ------------------------------------------------------------------------------------------------------


class Files:
  """The tensors of a directory's safetensors files as memory maps: name -> (shape, dtype name), and `open(name)`."""

  def __init__(self, directory: Path):
    self.directory, self._at = directory, {}
    self.tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in self._names():
      path = directory / name
      try:
        with safe_open(path, framework='numpy'):  # checks the header against the length of the file
          pass
        with path.open('rb') as file:
          length = int.from_bytes(file.read(8), 'little')
          header = json.loads(file.read(length))
      except (OSError, SafetensorError) as error:
        raise UserError(f'{path} cannot be read ({error}); is the download complete?') from error
      header.pop('__metadata__', None)
      if twice := sorted(self.tensors.keys() & header.keys()):
        raise UserError(f'{path} repeats tensors of another file: {listed(twice)}.')
      for tensor, entry in header.items():
        self.tensors[tensor] = tuple(entry['shape']), entry['dtype']
        self._at[tensor] = path, 8 + length + entry['data_offsets'][0]

  def _names(self) -> list[str]:
    index = self.directory / 'model.safetensors.index.json'
    if (self.directory / 'model.safetensors').exists():  # before an index, as transformers prefers it
      return ['model.safetensors']
    if index.exists():
      try:
        files = sorted(set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()))
        absent = [name for name in files if not (self.directory / name).exists()]
      except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f'{index} is not an index of safetensors files: {error!r}.') from error
      if absent:
        raise UserError(f'{index} names files that are not there: {listed(absent)}; is the download complete?')
    else:
      files = sorted(path.name for path in self.directory.glob('*.safetensors'))
    if files:
      return files
    pickled = sorted(path.name for pattern in ('*.bin', '*.pt', '*.pth') for path in self.directory.glob(pattern))
    hint = f' {pickled[0]} is a pickle, which may run code when it is read: convert it.' if pickled else ''
    raise UserError(f'{self.directory} holds no *.safetensors file.{hint}')

  def alike(self, one: str, other: str) -> bool:
    """Whether two tensors are the same, judged by up to 64 of their rows, spread evenly."""
    step = self.tensors[one][0][0] // 64 + 1
    return self.tensors[one] == self.tensors[other] and np.array_equal(self.open(one)[::step], self.open(other)[::step])

  def open(self, name: str) -> np.ndarray:
    """A map of one tensor. Its pages leave memory with it, so keep it no longer than it is read."""
    (shape, dtype), (path, offset) = self.tensors[name], self._at[name]
    return np.memmap(path, DTYPES[dtype], 'r', offset, shape) if math.prod(shape) else np.empty(shape, DTYPES[dtype])


def check(files: Files, config: ModelConfig, wanted: Mapping[str, Layout]) -> dict[str, str]:
  """{name: name in the files} of the tensors that a model is read from. Only headers have been read so far.

  Raises:
    UserError: tensors are missing, unknown, of another shape, or of a dtype that is no float.
  """
  directory, family = files.directory, FAMILIES[config.family]
  # Files saved from the bare model, without its head, lack the prefix.
  prefix = '' if any(name.startswith(family.prefix) for name in files.tensors) else family.prefix
  found = {name: name.removeprefix(prefix) for name in wanted}
  if missing := [theirs for theirs in found.values() if theirs not in files.tensors]:
    raise UserError(f'{directory}: {len(missing)} tensors are missing: {listed(missing)}.')
  unused = sorted(files.tensors.keys() - found.values())
  rows = {row.path: row.name for row in family.rows}
  if config.tied and (head := rows['head/kernel']) in unused:
    unused.remove(head)
    if not config.scored and not files.alike(head, found[family.prefix + rows['embed/embedding']]):
      what = f'config.json ties the output head to the embedding, and {head} is another tensor'
      raise UserError(f'{directory}: {what}; set tie_word_embeddings to what the model was trained with.')
  if unused := [name for name in unused if not re.search(r'rotary_emb\.inv_freq$' + family.derived, name)]:
    what = f'belong to nothing in a {config.family} model of {config.layers} layers as config.json describes it'
    raise UserError(f'{directory}: {len(unused)} tensors {what}: {listed(unused)}.')
  for name, layout in wanted.items():
    shape, dtype = files.tensors[found[name]]
    if shape != layout.stored:
      raise UserError(f'{directory}: {found[name]} is {list(shape)}; config.json makes it {list(layout.stored)}.')
    if dtype not in DTYPES:
      raise UserError(f'{directory}: {found[name]} is {dtype}; readable are {", ".join(DTYPES)}.')
  return found


def read(directory: str | Path, config: ModelConfig, shardings: Params | None = None, dtype=np.float32) -> Params:
  """Reads parameters, each device's part alone: no array is ever whole in memory unless a device owns it whole.

  Args:
    config: as `read_config` gives it.
    shardings: a tree like the parameters of `jax.sharding.Sharding`; None: the first device.
    dtype: of the result; the files may hold float32, float16 or bfloat16.

  Raises:
    UserError: tensors are missing, unknown, in two files, of another shape, or hold NaN or infinity.
  """
  files, rows = Files(Path(directory)), table(config)
  layouts = {row.path: Layout(row, config) for group in rows.values() for row in group}
  wanted = {name: layouts[group[0].path] for stem, group in rows.items() for name in each(stem, config)}
  found, params = check(files, config, wanted), {}
  for stem, group in rows.items():
    names = [found[name] for name in each(stem, config)]
    for row in group:
      sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      if shardings is not None:
        sharding = leaf(shardings, row.path)
      put(params, row.path, _placed(files, names, '{i}' in stem, layouts[row.path], sharding, np.dtype(dtype)))
  return params


def _placed(files: Files, names: list[str], stacked: bool, layout: Layout, sharding, dtype) -> jax.Array:
  """One parameter; `names` are its tensors, one for each layer if `stacked`. The host holds one device's part."""
  shape = (len(names), *layout.shape) if stacked else layout.shape
  devices_of = defaultdict(list)  # bounds of a part -> the devices that hold it: replicas are read once
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    devices_of[tuple(s.indices(size)[:2] for s, size in zip(index, shape))].append(device)
  arrays = []
  for bounds, devices in devices_of.items():
    index = [slice(*ends) for ends in bounds]
    part = _part(files, names[index.pop(0)] if stacked else names, layout, tuple(index), dtype)
    arrays += jax.block_until_ready([jax.device_put(part if stacked else part[0], device) for device in devices])
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _part(files: Files, names: list[str], layout: Layout, index: tuple[slice, ...], dtype) -> np.ndarray:
  """The same part of several layers, stacked."""
  out = np.empty((len(names), *(s.stop - s.start for s in index)), dtype)
  for array, name in zip(out, names):
    view = layout.view(files.open(name))[index]
    # A transposed copy takes strips of a cache line, several times as fast as whole rows.
    strip = view.shape[-1] if view.strides[-1] == view.itemsize else 16
    for start in range(0, view.shape[-1], strip):
      array[..., start : start + strip] = view[..., start : start + strip]
    if not np.isfinite(array).all():
      raise UserError(f'{files.directory}: {name} holds NaN or infinity.')
  return out


def leaf(tree, path: str):
  for key in path.split('/'):
    tree = tree[key]
  return tree


def put(tree, path: str, value) -> None:
  *parents, last = path.split('/')
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = value


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
  except OSError as error:
    raise UserError(f'Cannot write {directory}: {error}. Nothing is left of it.') from error
  finally:
    shutil.rmtree(work, ignore_errors=True)


Tensors = Mapping[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]  # name -> (shape, how to make the array)


def hf_tensors(params: Params, config: ModelConfig) -> Tensors:
  """A model's parameters, or anything in their shapes (a gradient), under its family's names and layouts.

  Raises:
    UserError: a parameter is missing, unknown or of another shape.
  """
  rows, out = table(config), {}
  ours = {path_string(path): array for path, array in jax.tree_util.tree_leaves_with_path(params)}
  if odd := sorted(ours.keys() ^ {row.path for group in rows.values() for row in group}):
    raise UserError(f'These parameters are missing, or have no name in a {config.family} model: {listed(odd)}.')

  def tensor(parts: list[tuple[Layout, jax.Array | np.ndarray]], layer: int | slice) -> np.ndarray:
    out = np.empty(parts[0][0].stored, parts[0][1].dtype)
    for layout, array in parts:
      layout.view(out)[...] = array[layer]
    return out

  for stem, group in rows.items():
    stacked, parts = '{i}' in stem, [(Layout(row, config), ours[row.path]) for row in group]
    for row, (layout, array) in zip(group, parts):
      shape = (config.layers, *layout.shape) if stacked else layout.shape
      if array.shape != shape:
        raise UserError(f'The parameter {row.path} is {array.shape} where the config makes it {shape}.')
    for i, name in enumerate(each(stem, config)):
      out[name] = parts[0][0].stored, functools.partial(tensor, parts, i if stacked else slice(None))
  return out


def save_file(path: Path, tensors: Tensors, names: Iterable[str], dtype: np.dtype):
  """A safetensors file, written tensor by tensor: the library's own writer takes all of them, and copies each.

  Raises:
    UserError: a tensor holds NaN or infinity, or numbers that `dtype` makes infinite.
  """
  header, end, spelt = {'__metadata__': {'format': 'pt'}}, 0, {np.dtype(v): k for k, v in DTYPES.items()}[dtype]
  for name in names:
    shape, start = tensors[name][0], end
    end += math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': spelt, 'shape': shape, 'data_offsets': [start, end]}
  encoded = json.dumps(header).encode()
  encoded += b' ' * (-len(encoded) % 8)
  with path.open('wb') as file:
    file.write(len(encoded).to_bytes(8, 'little') + encoded)
    for name in names:
      array = tensors[name][1]()
      with np.errstate(over='ignore'):  # looked for below
        cast = np.ascontiguousarray(array, dtype)
      if not np.isfinite(cast).all():
        if not np.isfinite(array).all():
          raise UserError(f'The tensor {name} holds NaN or infinity and is not written; export an earlier checkpoint.')
        wider = ' or '.join(other for other in ('bfloat16', 'float32') if other != dtype.name)
        raise UserError(f'The tensor {name} holds numbers too large for {dtype.name}; choose {wider} as the dtype.')
      file.write(cast.view(np.uint8).data)


def write_tensors(directory: Path, tensors: Tensors, config: ModelConfig, tokenizer: Tokenizer, dtype):
  """Writes all files of a model into `directory`."""
  dtype = np.dtype(dtype)

  def dump(name, value):
    (directory / name).write_text(json.dumps(value, indent=2), encoding='utf-8')

  shards, filled = [[]], 0
  for name, (shape, _) in tensors.items():
    size = math.prod(shape) * dtype.itemsize
    if filled and filled + size > SHARD:
      shards, filled = [*shards, []], 0
    shards[-1].append(name)
    filled += size
  where = {}
  for i, names in enumerate(shards, 1):
    file = 'model.safetensors' if len(shards) == 1 else f'model-{i:05d}-of-{len(shards):05d}.safetensors'
    save_file(directory / file, tensors, names, dtype)
    where |= dict.fromkeys(names, file)
  if len(shards) > 1:
    total = sum(math.prod(shape) for shape, _ in tensors.values())
    metadata = {'total_parameters': total, 'total_size': total * dtype.itemsize}
    dump('model.safetensors.index.json', {'metadata': metadata, 'weight_map': where})
  ids = {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id}
  # Places where code or another dtype would come from are not passed on.
  kept = {k: v for k, v in config.source.items() if k not in ('auto_map', 'torch_dtype', '_name_or_path')}
  family, pad = FAMILIES[config.family], None
  kept |= {'architectures': [family.architecture], 'dtype': dtype.name}
  if config.scored:
    # transformers scores the last token that is not padding, which the end of a completion therefore must not be.
    pad = tokenizer.pad_id(config.vocab)
    labels = {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
    kept |= {'architectures': [family.classifier], 'pad_token_id': pad} | labels
  dump('config.json', ids | kept)
  dump('generation_config.json', ids | config.generation | {'eos_token_id': list(tokenizer.stop_ids)})
  tokenizer.save(directory, pad)


def write(directory: str | Path, params: Params, config: ModelConfig, tokenizer: Tokenizer, dtype=None):
  """Writes a directory that `models.load` and `transformers` load; all of it or nothing.

  Args:
    params: host arrays, or device arrays that this process can address. With a scalar head (scores.py) it is written as
      transformers' sequence classifier of one label, which has no output head.
    dtype: of the tensors; None: float32.

  Raises:
    UserError: `directory` exists and is not empty, a parameter is missing, unknown or not finite in `dtype`, or the
      disk is full.
  """
  if HEAD in params:
    config = dataclasses.replace(config, scored=True, tied=True)
    params = {name: leaves for name, leaves in params.items() if name != 'head'}
  directory, tensors = Path(directory), hf_tensors(params, config)
  if directory.is_dir() and any(directory.iterdir()):  # known before the work is done
    raise UserError(f'{directory} exists and is not empty; name another directory or empty it.')
  with new_directory(directory) as work:
    write_tensors(work, tensors, config, tokenizer, np.float32 if dtype is None else dtype)
