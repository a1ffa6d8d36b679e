"""What sampling and updating take on TPU slices, for docs/sizes.md: compiled with libtpu, no TPU needed.

  python scripts/sizes.py                 compiles the rows that docs/sizes.json lacks, minutes each; then the table
  python scripts/sizes.py --only=1b       ... of these rows
  python scripts/sizes.py --again         ... also what is there
  python scripts/sizes.py --table         the table alone, of what is there

A row is kept as soon as it is compiled. `past compile` prints more of each program.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOUND, TABLE = ROOT / 'docs' / 'sizes.json', ROOT / 'docs' / 'sizes.md'
GIB = 1 << 30
LENGTHS = {'2048 + 8 x 256': (), '3072 + 8 x 1024': ('view.prompt_length=3072', 'study.generator.length=1024')}
TRAINED = {'all': (), 'LoRA 16': ('model.lora.rank=16',)}


class Row(NamedTuple):
  model: str
  size: str
  slice: str
  devices: int
  trained: str
  lengths: str
  keys: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return f'{self.model}, {self.trained}, {self.slice}, {self.lengths}'

  @property
  def flags(self) -> list[str]:
    """One group per device."""
    n = self.devices
    batch = [f'study.batch={n}', f'study.sample_prompts={n}', *[f'study.replay_batch={n}'] * (self.size != '70b')]
    keys = [*self.keys, *batch, *TRAINED[self.trained], *LENGTHS[self.lengths]]
    config = f'--config=configs/past.py:size={self.size},view=same,select=all_pairs'  # updates see all that was sampled
    return [config, f'--topology={self.slice}', *(f'--config.{key}' for key in keys)]


def rows() -> list[Row]:
  llama, qwen = 'Llama-3.1-8B', ('model.spec=hf:Qwen/Qwen2.5-7B-Instruct',)
  eight = {'v5e:4x4': 16, 'v6e:2x4': 8}
  out = []
  for lengths in LENGTHS:
    out.append(Row('Llama-3.2-1B', '1b', 'v5e:2x2', 4, 'all', lengths))
    for slice_, n in eight.items():
      for trained in TRAINED:
        out.append(Row(llama, '8b', slice_, n, trained, lengths))
        out.append(Row('Qwen2.5-7B', '8b', slice_, n, trained, lengths, qwen))
    for slice_ in ('v5p:4x4x4', 'v6e:8x8'):
      out.append(Row('Llama-3.3-70B', '70b', slice_, 64, 'all', lengths))
  return out


def compiled(row: Row) -> dict:
  """What `past compile --json` says of a row's programs."""
  command = [sys.executable, '-m', 'past_jax.main', 'compile', *row.flags, '--programs=sample,update', '--json']
  environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
  if done.returncode not in (0, 1) or not done.stdout:  # 1: some program does not fit
    sys.exit(f'{row.name}: past compile ended with {done.returncode}.')
  return json.loads(done.stdout)


def cells(row: Row, found: dict | None) -> list[str]:
  start = [row.model, row.trained, row.slice, row.lengths]
  if found is None:
    return [*start, *['not compiled'] * 2, *[''] * 4]
  programs = {program['name']: program for program in found['programs']}
  update = programs['update']
  sample = next(program for name, program in programs.items() if name.startswith('sample'))
  token = programs.get('sample: a token')
  peak = lambda p: f'{p["peak_bytes"] / GIB:.1f} of {p["hbm_bytes"] / GIB:.1f}' + ('' if p['fits'] else ': no')
  time = lambda p: '' if p is None or p['seconds'] is None else f'{p["seconds"] * 1e3:.3g} ms, {p["bound_by"]}'
  mfu = '' if update['mfu_bound'] is None else f'{update["mfu_bound"]:.0%}'
  flops = '' if update['flops'] is None else f'{update["flops"] / 1e12:.3g}'
  return [*start, peak(sample), peak(update), time(token), time(update), flops, mfu]


def table(found: dict[str, dict]) -> str:
  head = ['model', 'trained', 'slice', 'tokens', 'sampling, GiB', 'updating, GiB', 'a token of all', 'an update']
  head += ['TFLOP', 'MFU at most']
  lines = ['| ' + ' | '.join(line) + ' |' for line in [head, ['---'] * len(head)]]
  lines += ['| ' + ' | '.join(cells(row, found.get(row.name))) + ' |' for row in rows()]
  return '\n'.join(lines) + '\n'


def page(found: dict[str, dict]) -> str:
  return f"""# What sizes take

Made by `python scripts/sizes.py`, which compiles `configs/past.py` for slices that are not here (compile.md): a group
of 8 per device, sampled and then learned from with its prompt in view (`view=same,select=all_pairs`), products in
bfloat16, parameters and moments in float32, remat per layer, fsdp over all devices. Peaks and TFLOP are per device; a
peak is held against what libtpu lets a program have. Times are rooflines, which real steps exceed. `a token of all`:
one of every completion.

What does not fit with fsdp alone may with tensor parallelism: the update of Llama-3.3-70B on v6e:8x8, 2048 + 8 x 256,
takes 30.4 of 31.2 GiB with `--config.mesh.tensor=8 --config.study.batch=8 --config.study.sample_prompts=8`, one group
per data shard, at least 442 ms (hbm), MFU at most 58%; sampling takes 20.5 GiB, a token of all at least 1.97 ms (hbm).

{table(found)}"""


def chosen(only: str) -> list[Row]:
  """Rows in whose size or name the regular expression `only` is found.

  Raises:
    ValueError: it is none, or is found in no row.
  """
  try:
    pattern = re.compile(only)
  except re.error as error:
    raise ValueError(f'--only={only}: no regular expression: {error}.') from None
  if matching := [row for row in rows() if pattern.search(f'{row.size} {row.name}')]:
    return matching
  names = ''.join(f'\n  {row.size} {row.name}' for row in rows())
  raise ValueError(f'--only={only}: it is in none of these rows:{names}')


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', default='', help='a regular expression: rows whose size, model or slice matches')
  parser.add_argument('--again', action='store_true', help='also what is there already')
  parser.add_argument('--table', action='store_true', help='compile nothing')
  options = parser.parse_args(argv)
  try:
    asked = chosen(options.only)
  except ValueError as error:
    parser.error(str(error))
  found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
  for row in [] if options.table else asked:
    if row.name in found and not options.again:
      continue
    print(row.name, file=sys.stderr)
    found[row.name] = compiled(row)
    FOUND.write_text(json.dumps(found, indent=1, sort_keys=True) + '\n')
  TABLE.write_text(page(found))
  print(table(found), end='')


if __name__ == '__main__':
  main(sys.argv[1:])
