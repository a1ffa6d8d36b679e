"""past ablate: a sweep file to runs, to figures with intervals, to verdicts on claims. The same command resumes."""

import difflib
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from past_jax import commands, storage
from past_jax.types import UserError

SUMMARY = """run a sweep file and judge its claims

  past ablate configs/ablations/NAME.py --workdir=DIR   runs what is missing in configs/ablations/results/NAME.json
  past ablate --table=configs/ablations                 writes RESULTS.md from the results that are there"""
TUNING = 1000  # the first seed of tuning runs: no final run has it


def run(argv: list[str]) -> int:
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'folder for runs and prepared models', flag_values=values)
  flags.DEFINE_integer('seeds', 5, 'runs per arm', 1, flag_values=values)
  flags.DEFINE_integer('jobs', 1, 'runs at a time', 1, flag_values=values)
  flags.DEFINE_list('only', [], 'claims whose arms are run, as in B1,B2; without it all', flag_values=values)
  flags.DEFINE_bool('dry_run', False, 'check everything and print what would run', flag_values=values)
  flags.DEFINE_bool('tune', False, 'other seeds, no final questions; results stay in the workdir', flag_values=values)
  flags.DEFINE_string('table', None, 'folder of sweep files: only write its table of claims', flag_values=values)
  flags.DEFINE_string('results', 'RESULTS.md', 'file for the table of claims', flag_values=values)
  file, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith('-') else (None, argv)
  if commands.parse('ablate', values, rest, SUMMARY) is None:
    return 0
  if file is None and values.table:
    write_table(Path(values.table), Path(values.results))
    return 0
  if file is None:
    raise UserError('name a sweep file first, as in past ablate configs/ablations/past.py --workdir=runs/ablate.')
  if not values.workdir:
    raise UserError('--workdir=... is missing; past ablate --help explains.')
  return ablate(Path(file), storage.local(values.workdir, '--workdir'), values)


def ablate(file: Path, workdir: Path, values: flags.FlagValues) -> int:
  from past_jax.ablate import run as processes
  from past_jax.ablate import sweep, table
  from past_jax.ablate.session import Session
  from past_jax.progress import track
  from past_jax.stop import Stop

  made, told = sweep.load(file), table.told(file.parent)
  check_ids(file, made, told, values.only)
  path = workdir / f'{file.stem}.tune.json' if values.tune else file.parent / table.FOLDER / f'{file.stem}.json'
  command = f'past ablate {file} --workdir=runs/ablate --seeds={values.seeds}' + ' --tune' * values.tune
  session = Session(file, made, told, workdir, path, command, revision(file), resolve, final=not values.tune)
  first = TUNING if values.tune else made.first
  jobs = session.jobs(range(first, first + values.seeds), made.needed(tuple(values.only)))
  missing = session.missing(jobs)
  if values.dry_run:
    for job in jobs:
      print(f'{job.title}: {"to run" if job in missing else "not needed" if job.prepares else "on file"}')
      print(''.join(f'  {shlex.join(argv)}\n' for argv in job.commands if job in missing), end='')
    print(f'{len(missing)} runs.')
    return 0

  bar = track(len(missing), f'{file.stem}: runs')

  def done(outcome: processes.Outcome) -> None:
    error = session.done(outcome)
    bar.advance()
    how = f'FAILED, {error} ({outcome.job.folder}/log.txt)' if error else f'{outcome.seconds:.0f} s'
    bar.note(f'{outcome.job.title}: {how}')

  surroundings = processes.environment(values.jobs)
  launch = lambda job: processes.Process(job, surroundings)
  with Stop() as stop, bar:
    # Runs that an earlier invocation finished but did not live to write down have only to be read.
    for job in [job for job in missing if job.finished]:
      done(processes.Outcome(job, '', 0.0))
    left = [job for job in missing if not job.finished]
    whole = processes.run(left, launch, values.jobs, 60 * made.minutes, done, lambda: stop.requested)
  if not whole:
    print(f'Stopped by {stop.reason}; what has ended is in {path}. The same command goes on.', file=sys.stderr)
    return 0
  return conclude(file, session.save(), path, None if values.tune else Path(values.results))


def conclude(file: Path, content: dict, path: Path, results: Path | None) -> int:
  """Table, figure and, where there is a table of claims, RESULTS.md. 1: runs have failed."""
  from past_jax.ablate import plot, table

  show(content)
  try:
    plot.draw(content, path.with_suffix('.svg'))
    plot.draw_matrices(content, path.with_suffix('.matrices.svg'))
  except UserError as missing:
    print(f'past ablate: {missing}', file=sys.stderr)
  print(f'Results: {path}')
  if results and (file.parent / table.CLAIMS).exists():
    write_table(file.parent, results)
  else:
    text = table.detail(content, path, lambda figure: figure.name)
    path.with_suffix('.md').write_text(text, encoding='utf-8')
  failed = sum(bool(run['error']) for run in content['runs'])
  if failed:
    print(f'past ablate: {failed} runs failed; the same command tries them again.', file=sys.stderr)
  return 1 if failed else 0


def check_ids(file: Path, made, told: dict, only: Sequence[str]) -> None:
  ids = [claim.id for claim in made.claims]
  for claim in only:
    if claim not in ids:
      near = difflib.get_close_matches(claim, ids, 1)
      raise UserError(f'--only={claim}: {file} has {", ".join(ids)}.' + (f' Did you mean {near[0]}?' if near else ''))
  for claim in made.claims:
    if not claim.statement and claim.id not in told:
      raise UserError(f'{file}: claim {claim.id} has no statement, and {file.parent}/claims.toml does not have it.')


def resolve(argv: Sequence[str]) -> dict:
  """The config that flags of `past study` make, refused if it has problems."""
  from past_jax import checks, settings
  from past_jax.commands import study

  config = study.load_config(argv[0].removeprefix('--config='))
  for flag in argv[1:]:
    study.override(config, flag)
  # No device is touched here: the processes have them. They check again with the real number.
  devices = math.prod(n for n in settings.plain(config.mesh).values() if n > 0)
  if found := checks.check(config, devices):
    raise UserError('\n  '.join([f'{" ".join(argv)}: the config has problems:', *found]))
  return settings.plain(config)


def revision(file: Path) -> str:
  """The commit of the checkout, and whether code or configs differ from it; '' where there is no git."""
  git = lambda *args: subprocess.run(['git', *args], capture_output=True, text=True, cwd=file.resolve().parent)
  try:
    commit = git('rev-parse', '--short=10', 'HEAD')
  except FileNotFoundError:
    return ''
  if commit.returncode:
    return ''
  changed = git('status', '--porcelain', '--', ':/past_jax', ':/configs', ':!/configs/ablations/results')
  return commit.stdout.strip() + ' with changes' * bool(changed.stdout.strip())


def show(content: dict) -> None:
  """The claims, as a table on the terminal, and what has to be said of them."""
  from past_jax.progress import as_table

  body = []
  for id_, claim in content['claims'].items():
    for c in claim['contrasts']:
      found = ('-', '-', '')
      if 'mean' in c:
        found = (f'{c["mean"]:+.3g}', f'[{c["low"]:+.3g}, {c["high"]:+.3g}]', 'yes' if c['holds'] else 'no')
      body.append((id_, c['label'], str(len(c['values'])), *found))
  shown = as_table(body, ('', 'contrast', 'seeds', 'mean', '95 % interval', 'holds'))
  shown.columns[1].justify, shown.columns[1].no_wrap = 'left', False  # labels are long; figures must not be cut
  Console().print(shown)
  for id_, claim in content['claims'].items():
    print(f'{id_}: {claim["verdict"]}' + f' ({claim["note"]})' * bool(claim['note']))


def write_table(folder: Path, path: Path) -> None:
  from past_jax.ablate import table

  if not (folder / table.CLAIMS).exists():
    raise UserError(f'{folder} has no {table.CLAIMS}: it is not a folder of sweep files with a table of claims.')
  path.write_text(table.document(folder, path.resolve().parent), encoding='utf-8')
  print(f'Table: {path}')
