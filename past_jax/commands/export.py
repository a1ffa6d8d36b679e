"""past export: a run's parameters as a Hugging Face directory, which every `--model` and `transformers` read."""

import json
import sys
from pathlib import Path

from absl import flags

from past_jax import commands
from past_jax.types import UserError


def run(argv: list[str]) -> int:
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'folder of a run', flag_values=values)
  flags.DEFINE_string('out', None, 'folder to make: safetensors, config and tokenizer', flag_values=values)
  flags.DEFINE_integer('step', None, 'of the checkpoint; without it the newest intact one', 0, flag_values=values)
  types = ['float32', 'bfloat16', 'float16']
  flags.DEFINE_enum('dtype', 'float32', types, 'of the tensors', flag_values=values)
  summary = 'write the model of a run as a Hugging Face directory'
  if commands.parse('export', values, argv, summary, ('workdir', 'out')) is None:
    return 0
  workdir, out = Path(values.workdir), Path(values.out)
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f'--out={out} exists and is not an empty folder; name another.')
  try:
    config = json.loads((workdir / 'config.json').read_text())
    spec = config['model']['spec']
  except FileNotFoundError:
    raise UserError(f'{workdir} is not the workdir of a run: there is no config.json.') from None
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(f'{workdir / "config.json"} is not the config of a run; restore the file.') from None
  try:
    return export(workdir, spec, out, values.step, values.dtype)
  except KeyboardInterrupt:
    print('past export: interrupted; nothing was written.', file=sys.stderr)
    return 130


def export(workdir: Path, spec: str, out: Path, step: int | None, dtype: str) -> int:
  import jax.numpy as jnp

  from past_jax import models
  from past_jax.checkpoint import Checkpoints
  from past_jax.models import weights

  class Chosen(Checkpoints):
    """Only the checkpoint of `step`, where one is asked for: a damaged one is not replaced by another."""

    def steps(self):
      return [s for s in super().steps() if step in (None, s)]

  found = Checkpoints(workdir / 'checkpoints').steps()
  if not found:
    raise UserError(f'{workdir} has no checkpoint yet; past study writes the first one after a round.')
  if step not in (None, *found):
    raise UserError(f'{workdir} has no checkpoint of step {step}; there are {", ".join(map(str, found))}.')
  model = models.load(spec)
  restored = Chosen(workdir / 'checkpoints').restore()
  for sentence in restored.skipped:
    print(f'past export: {sentence}.', file=sys.stderr)
  weights.write(out, restored.tree['state']['params'], model.config, model.tokenizer, jnp.dtype(dtype))
  print(f'{out}: {spec} as studied in {workdir} up to step {restored.step}, in {dtype}. Use it with --model={out}.')
  return 0
