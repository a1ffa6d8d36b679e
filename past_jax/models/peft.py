"""Adapters as the `peft` library reads them: adapter_config.json and adapter_model.safetensors.

Where a family keeps several of our linear layers in one tensor (Phi-3's qkv_proj), their adapters become one of it all:
the input factors are stacked, the output factor is block-diagonal, and the ranks add up. That is exact.
"""

import json
from pathlib import Path

import jax
import numpy as np

from past_jax.mesh import path_string
from past_jax.models.config import ModelConfig
from past_jax.models.families import Row
from past_jax.models.weights import Layout, each, new_directory, save_file, table
from past_jax.types import Params


def transposed(row: Row) -> bool:
  """Whether the tensor is [in, out], as GPT-2's Conv1D keeps it."""
  theirs, _, ours = row.axes.partition('->')
  return theirs[0] == (ours or theirs)[0]  # ours begins with an input axis


def factors(row: Row, config: ModelConfig, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """lora_a [ins..., r] and lora_b [r, outs...] of the kernel that `row` names, as ([r, in], [out, r]) of its tensor.

  The rows of a fused tensor that belong to other kernels are 0.
  """
  layout, rank = Layout(row, config), len(b)

  def places(axis):  # where on this axis of the tensor each entry of our kernel is; a view as large as the axis
    index = np.expand_dims(np.arange(layout.stored[axis]), 1 - axis)
    return layout.view(np.broadcast_to(index, layout.stored))

  in_axis = 0 if transposed(row) else 1
  A = np.zeros((rank, layout.stored[in_axis]), a.dtype)
  B = np.zeros((layout.stored[1 - in_axis], rank), b.dtype)
  A[:, places(in_axis)[(..., *(0,) * (b.ndim - 1))].ravel()] = a.reshape(-1, rank).T
  B[places(1 - in_axis)[(0,) * (a.ndim - 1)].ravel()] = b.reshape(rank, -1).T
  return A, B


def write(directory: str | Path, adapters: Params, config: ModelConfig, *, base: str, rank: int, alpha: float, dtype):
  """Writes a directory that `peft.PeftModel.from_pretrained(model, directory)` reads; all of it or nothing.

  Args:
    base: what the adapters belong to, for people and for peft's own loaders.
    rank, alpha: of every one of our adapters.

  Raises:
    UserError: `directory` exists and is not empty, an adapter is not finite in `dtype`, or the disk is full or
      read-only.
  """
  ours = {path_string(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(adapters)}
  tensors, ranks, conv = {}, {}, False
  for stem, group in table(config).items():
    beside = [(row, row.path.removesuffix('kernel')) for row in group]
    rows = [(row, ours[f'{at}lora_a'], ours[f'{at}lora_b']) for row, at in beside if f'{at}lora_a' in ours]
    if not rows:
      continue
    if group[0].path.startswith('head/'):
      stem = 'lm_head.weight'  # what the module is called in transformers, if not in every family's files
    ranks[stem.removesuffix('.weight').rpartition('{i}.')[2]] = rank * len(rows)
    conv |= transposed(rows[0][0])
    for i, name in enumerate(each(stem, config)):
      of_layer = lambda x, i=i, stacked='{i}' in stem: x[i] if stacked else x
      A, B = zip(*(factors(row, config, of_layer(a), of_layer(b)) for row, a, b in rows))
      module = f'base_model.model.{name.removesuffix(".weight")}'
      for side, array in {'A': np.concatenate(A, axis=0), 'B': np.concatenate(B, axis=1)}.items():
        tensors[f'{module}.lora_{side}.weight'] = array.shape, lambda array=array: array
  model, _, revision = base.removeprefix('hf:').partition('@') if base.startswith('hf:') else (base, '', '')
  fused = {module: r for module, r in ranks.items() if r != rank}
  contents = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': model,
    'revision': revision or None,
    'inference_mode': True,
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': fused,
    'alpha_pattern': {module: alpha * r / rank for module, r in fused.items()},  # peft divides it by the rank
    'target_modules': sorted(ranks),
    'fan_in_fan_out': conv,
    'lora_dropout': 0.0,
    'bias': 'none',
  }
  with new_directory(directory) as work:
    (work / 'adapter_config.json').write_text(json.dumps(contents, indent=2), encoding='utf-8')
    save_file(work / 'adapter_model.safetensors', tensors, tensors, np.dtype(dtype))
