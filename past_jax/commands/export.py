"""past export: a run's model as a Hugging Face directory, which every `--model` and `transformers` read.

Adapters are merged into it; or they alone are written, as `peft` reads them. A judge that the run has trained becomes a
sequence classifier of one label.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import flags

from past_jax import commands, storage
from past_jax.types import UserError


def run(argv: list[str]) -> int:
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'folder of a run, or gs://BUCKET/FOLDER', flag_values=values)
  flags.DEFINE_string('out', None, 'folder to make: safetensors, config and tokenizer', flag_values=values)
  role = 'which of its models: the policy, or the judge that it has trained'
  flags.DEFINE_enum('role', 'policy', ['policy', 'judge'], role, flag_values=values)
  flags.DEFINE_bool('adapter', False, 'the adapters of a LoRA run alone, for peft; else merged', flag_values=values)
  flags.DEFINE_integer('step', None, 'of the checkpoint; without it the newest intact one', 0, flag_values=values)
  types = ['float32', 'bfloat16', 'float16']
  flags.DEFINE_enum('dtype', 'float32', types, 'of the tensors', flag_values=values)
  summary = 'write the model of a run as a Hugging Face directory'
  if commands.parse('export', values, argv, summary, ('workdir', 'out')) is None:
    return 0
  out = storage.local(values.out, '--out')
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f'--out={out} exists and is not an empty folder; name another.')
  if values.adapter and values.role == 'judge':
    raise UserError('--adapter is for a policy: peft would leave out the head of a judge. Leave --adapter out.')
  home = storage.Workdir(values.workdir, writes=False)
  workdir = home.path
  try:
    config = json.loads((home.local / 'config.json').read_text())
    config['model']['spec']
  except FileNotFoundError:
    raise UserError(f'{workdir} is not the workdir of a run: there is no config.json.') from None
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(f'{workdir / "config.json"} is not the config of a run; restore the file.') from None
  try:
    return export(workdir, config, out, values)
  except KeyboardInterrupt:
    print('past export: interrupted; nothing was written.', file=sys.stderr)
    return 130


def judge_stage(config: Mapping) -> Mapping | None:
  """The last stage that trains a judge, if the run has one."""
  stages = [config[name] for name in config['stages']] if 'stages' in config else []
  return next((stage for stage in reversed(stages) if 'trains' in stage and stage['trains'] == 'judge'), None)


def place(names: Iterable[str], role: str) -> str:
  """How the names of a role's leaves begin: `state/` has the role that is being trained; the other one, if any, waits.

  '': there is no such role yet.
  """
  waits = lambda role: any(name.startswith(f'{role}/') for name in names)
  if waits(role):
    return f'{role}/'
  return 'state/params/' if role == 'policy' or waits('policy') else ''


def export(workdir, config: Mapping, out: Path, values: flags.FlagValues) -> int:
  import jax.numpy as jnp

  from past_jax import lora, mesh, models, scores
  from past_jax.checkpoint import Checkpoints
  from past_jax.models import peft, specs, weights

  step, role, judge = values.step, values.role, judge_stage(config)
  if role == 'judge' and judge is None:
    raise UserError(f"{workdir} trains no judge: no stage of its config has trains='judge'.")

  class Chosen(Checkpoints):
    """Only the checkpoint of `step`, where one is asked for: a damaged one is not replaced by another."""

    def steps(self):
      return [s for s in super().steps() if step in (None, s)]

  found = Checkpoints(workdir / storage.CHECKPOINTS).steps()
  if not found:
    raise UserError(f'{workdir} has no checkpoint yet; past study writes the first one after a round.')
  if step not in (None, *found):
    raise UserError(f'{workdir} has no checkpoint of step {step}; there are {", ".join(map(str, found))}.')
  spec = config['model']['spec']

  def only(names: Iterable[str]) -> str:  # no moments, no reference
    if not place(names, role):
      raise UserError(f'{workdir} has trained no judge yet: past study first comes to the end of the stages before.')
    return place(names, role)

  restored = Chosen(workdir / storage.CHECKPOINTS).restore(only=only)
  for sentence in restored.skipped:
    print(f'past export: {sentence}.', file=sys.stderr)
  params = restored.tree[role] if role in restored.tree else restored.tree['state']['params']
  what, use, numbers = spec, f'--model={out}', jnp.dtype(values.dtype)
  if role == 'judge':
    reads = 'draft' if 'gap' in judge['losses']['group'] else 'prompt'
    what, use = f'the judge on {spec}', f'--judge_model={out} --judge_reads={reads}'
  if lora.is_adapters(params):
    model = models.load(spec, seed=config['seed'])
    rank, alpha = (config['model']['lora'][key] for key in ('rank', 'alpha'))
    if values.adapter:
      # The name under which peft's users find the base: on the hub, or the directory that its files were turned into.
      spec = spec if spec.startswith(('hf:', 'scratch:')) else str(specs.resolve(spec))
      peft.write(out, params, model.config, base=spec, rank=rank, alpha=alpha, dtype=numbers)
      what, use = f'adapters of {spec}', f'peft.PeftModel.from_pretrained(model, {str(out)!r})'
    else:
      base = model.read(mesh.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
      if int(lora.fingerprint(base)) != restored.host['base']:
        raise UserError(f'The weights of {spec} are not those that the adapters were trained on. Put them back.')
      head = {name: leaves for name, leaves in params.items() if name == scores.HEAD}
      whole = lora.merge(base, scores.body(params), alpha / rank) | head
      weights.write(out, whole, model.config, model.tokenizer, numbers)
  elif values.adapter:
    raise UserError(f'{workdir} trained all parameters: it has no adapters. Leave --adapter out.')
  else:
    model = models.load(spec)
    weights.write(out, params, model.config, model.tokenizer, numbers)
  print(f'{out}: {what} as studied in {workdir} up to step {restored.step}, in {values.dtype}. Use it with {use}.')
  return 0
