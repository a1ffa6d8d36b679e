"""past study: run a config in a workdir; the same command again resumes."""

import difflib
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

from absl import flags
from ml_collections import config_flags

from past_jax import commands
from past_jax.types import UserError


def load_config(argv: list[str], values: flags.FlagValues):
  """The config that --config=FILE[:ARGS] and --config.a.b=VALUE flags describe, locked; None when help was asked."""
  spec = next((a.split('=', 1)[1] for a in argv if a.startswith('--config=')), None)
  if spec is not None:
    file = Path(spec.partition(':')[0])
    if not file.is_file():
      folder = file.parent if file.parent.is_dir() else Path('.')
      near = difflib.get_close_matches(file.name, [p.name for p in folder.glob('*.py')], 1)
      hint = f' Did you mean {folder / near[0]}?' if near else ''
      raise UserError(f'--config={spec}: there is no file {str(file)!r}.{hint}')
    # Configs import their shared parts as `configs.common`, from wherever the command is run.
    sys.path.insert(0, str(file.resolve().parent.parent))
  config_flags.DEFINE_config_file('config', None, 'FILE.py[:key=value,...]', flag_values=values)
  return values


def run(argv: list[str]) -> int:
  values = flags.FlagValues()
  load_config(argv, values)
  flags.DEFINE_string('workdir', None, 'folder of the run; the same one again resumes it', flag_values=values)
  summary = 'sample groups, judge them, and update the model, as a config says. --config.KEY=VALUE overrides a key.'
  # ml_collections finds the --config.KEY flags in sys.argv, whoever parses.
  with mock.patch.object(sys, 'argv', ['past study', *argv]):
    parsed = commands.parse('study', values, argv, summary, ('config', 'workdir'))
  if parsed is None:
    return 0
  workdir = Path(values.workdir)
  config = values.config
  # Imports that start JAX come after everything a typo can spoil.
  import jax

  from past_jax import build, models, report
  from past_jax.progress import Progress
  from past_jax.stop import Stop
  from past_jax.train import Loop

  started = time.monotonic()
  resolved = build.plain(config)
  if problems := build.check(config, jax.device_count()):
    raise UserError('the config has problems:\n  ' + '\n  '.join(problems))
  claim(workdir, resolved)
  with Stop() as stop, Progress(rounds_ahead=sum(config[s].rounds for s in config.stages[1:])) as progress:
    progress.note(f'{config.model.spec} in {workdir}')
    model = models.load(config.model.spec, dtype=config.model.dtype, remat=config.model.remat, seed=config.seed)
    if problems := build.check_model(config, model):
      raise UserError('the config has problems:\n  ' + '\n  '.join(problems))
    run_ = build.build(config, model)
    for reason in run_.skipped:
      progress.note(f'skipped {reason}')
    with jax.set_mesh(run_.mesh):
      loop = Loop(run_, resolved, workdir, stop, progress)
      loop.seconds['start'] += time.monotonic() - started
      done = loop.study()
  if not done:
    print(f'Stopped by {stop.reason}; saved at step {loop.cursor.step}. The same command resumes.', file=sys.stderr)
    return 0
  report.print_table(workdir)
  print(f'Report: {workdir / "report.html"}')
  return 0


def claim(workdir: Path, resolved: dict) -> None:
  """Makes the workdir this config's, or refuses: another config's run is not overwritten and not continued."""
  from past_jax import build

  path = workdir / 'config.json'
  if path.exists():
    try:
      old = json.loads(path.read_text())
    except ValueError:
      raise UserError(f'{path} is not readable as JSON; choose another workdir, or restore the file.') from None
    if changed := build.differences(old, resolved):
      raise UserError(
        f'{workdir} was made with another config. These keys differ (there -> here):\n  '
        + '\n  '.join(changed)
        + '\nUse the same values to resume, or another --workdir.'
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(resolved, indent=2, default=list) + '\n')
    os.replace(temporary, path)
  except OSError as error:
    raise UserError(f'cannot write in {workdir}: {error.strerror}. Choose another --workdir.') from None
