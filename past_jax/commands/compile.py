"""past compile: every program of a config, for a TPU slice that is not here."""

import json
import re
import sys
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from past_jax import commands
from past_jax.chips import amount, topology
from past_jax.commands import study
from past_jax.types import UserError

SUMMARY = 'what every program of a config takes and costs on a TPU slice, without one. --config.KEY=VALUE overrides.'


def read_flags(argv: list[str]):
  """(config, flags); None when help was asked for, and printed."""
  values = flags.FlagValues()
  flags.DEFINE_string('config', None, 'FILE.py[:key=value,...]', flag_values=values)
  flags.DEFINE_string('topology', None, 'v5e:4x4, v5p:4x4x4, v6e-8, v4-32, ...', flag_values=values)
  flags.DEFINE_list(
    'programs', [], 'only those of these names, or whose name contains one of these words', flag_values=values
  )
  flags.DEFINE_bool('json', False, 'one JSON object on stdout instead of tables', flag_values=values)
  flags.DEFINE_string('hlo', '', 'a folder for the optimised HLO of every program', flag_values=values)
  overrides = [a for a in argv if a.startswith(('--config.', '-config.'))]
  rest = [a for a in argv if a not in overrides]
  if commands.parse('compile', values, rest, SUMMARY, ('config', 'topology')) is None:
    return None
  config = study.load_config(values.config)
  for flag in overrides:
    study.override(config, flag)
  return config, values


def run(argv: list[str]) -> int:
  """0: all programs fit; 1: some do not."""
  read = read_flags(argv)
  if read is None:
    return 0
  config, values = read
  slice_ = topology(values.topology)
  import jax

  # Devices of this machine are not looked for: libtpu would search for a TPU, or take the one that others use.
  jax.config.update('jax_platforms', 'cpu')
  # Programs for devices that are not here can be kept, but not read again: JAX warns of each, and compiles it anyway.
  jax.config.update('jax_enable_compilation_cache', False)
  from past_jax import aot, checks

  study.refuse(checks.check(config, slice_.size))
  programs = aot.programs(config, slice_)
  names = [program.name for program in programs]
  named = lambda word: [name for name in names if name == word] or [name for name in names if word in name]
  if unknown := [word for word in values.programs if not named(word)]:
    raise UserError(f'--programs={",".join(unknown)}: the programs of this config are {", ".join(names)}.')
  wanted = {name for word in values.programs for name in named(word)}
  chosen = [program for program in programs if not values.programs or program.name in wanted]
  print(f'{config.model.spec} on {slice_}: {", ".join(p.name for p in chosen)}', file=sys.stderr)
  reports = []
  for program in chosen:
    found, text = aot.compile_(program, slice_)
    print(f'{program.name} ({found[0].compile_seconds:.0f} s): {found[0].verdict}', file=sys.stderr)
    reports += found
    if values.hlo and text:
      folder = Path(values.hlo)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f'{re.sub(r"[^a-z0-9]+", "_", program.name)}.txt').write_text(text)
  if values.json:
    print(json.dumps(aot.as_json(reports, slice_)))
  else:
    show(reports, slice_)
  return 0 if all(report.fits for report in reports) else 1


def show(reports, slice_) -> None:
  """Two tables on stdout: memory, and what is computed and moved; then the verdicts."""
  console = Console(width=160)
  shown = lambda n: '' if n is None else amount(n)
  title = f'HBM per device of {slice_}, of {amount(slice_.chip.hbm)}'
  memory = ['program', 'arguments', 'temporaries', 'beside', 'peak', 'compiled in']
  table = Table(*memory, title=title, title_justify='left')
  for r in reports:
    sizes = (r.argument_bytes, r.temporary_bytes, r.beside_bytes, r.peak_bytes)
    table.add_row(r.name, *map(shown, sizes), f'{r.compile_seconds:.0f} s')
  console.print(table)
  costs = ['program', 'TFLOP', 'GB of HBM', 'GB sent', 'collectives', 'at least', 'bound by', 'MFU at most']
  table = Table(*costs, title=f'Cost per device of {slice_}', title_justify='left')
  for r in reports:
    if r.flops is not None:
      kinds = ', '.join(f'{int(x["count"])} {kind} {x["bytes"] / 1e9:.2g}' for kind, x in r.collectives.items())
      sent = sum(x['bytes'] for x in r.collectives.values())
      time = f'{r.seconds * 1e3:.3g} ms', r.bound_by, f'{r.mfu_bound:.0%}'
      table.add_row(r.name, f'{r.flops / 1e12:.4g}', f'{r.bytes / 1e9:.3g}', f'{sent / 1e9:.3g}', kinds, *time)
  console.print(table)
  for r in reports:
    print(f'{r.name}: {r.verdict}')
