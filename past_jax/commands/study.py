"""past study: run a config in a workdir; the same command again resumes."""

import ast
import difflib
import errno
import functools
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from past_jax import commands
from past_jax.types import UserError

SUMMARY = 'sample groups, judge them, and update the model, as a config says. --config.KEY=VALUE overrides a key.'
KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number', tuple: "a tuple, like ('a', 'b')"}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


# --- config from the command line ---------------------------------------------------------------------------------


def load_config(spec: str) -> ConfigDict:
  """The config that FILE.py:ARGS describes: what the file's get_config(ARGS) returns, locked.

  Raises:
    UserError: no such file (with the nearest), or it fails (with the line).
  """
  name, _, args = spec.partition(':')
  file = Path(name)
  if not file.is_file():
    folder = file.parent if file.parent.is_dir() else Path('.')
    near = difflib.get_close_matches(file.name, [p.name for p in folder.glob('*.py')], 1)
    hint = f' Did you mean {folder / near[0]}?' if near else ''
    raise UserError(f'--config={spec}: there is no file {name!r}.{hint}')
  # Configs import their shared parts as `configs.common`, from wherever the command is run.
  root = str(file.resolve().parent.parent)
  if root not in sys.path:
    sys.path.insert(0, root)
  try:
    found = importlib.util.spec_from_file_location('config', file)
    if found is None:
      raise UserError(f'--config={spec}: a config is a Python file, FILE.py.')
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise UserError(f'--config={spec}: the file defines no get_config(arg), which is to return a ConfigDict.')
    config = module.get_config(args)
  except UserError:
    raise
  except Exception as error:  # the file is the user's: it may fail in any way
    raise UserError(f'--config={spec}: {explained(error, root)}') from error
  if not isinstance(config, ConfigDict):
    raise UserError(f'--config={spec}: its get_config(arg) returns {type(config).__name__}, not a ConfigDict.')
  return config.lock()


def explained(error: Exception, root: str) -> str:
  """What a config's exception says, and where below `root`; without a place if it was raised there on purpose."""
  if isinstance(error, SyntaxError):
    return f'{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}'
  frames = traceback.extract_tb(error.__traceback__)
  if isinstance(error, ValueError) and (frames[-1].line or '').startswith('raise '):
    return str(error)
  last = [frame for frame in frames if str(Path(frame.filename).resolve()).startswith(root)][-1]
  return f'{last.filename}:{last.lineno}: {type(error).__name__}: {error}'


def override(config: ConfigDict, flag: str) -> None:
  """Applies --config.KEY=VALUE, the value read as the type that the config has there.

  Raises:
    UserError: no such key (with the nearest), or a value of another type.
  """
  path, given, text = flag.lstrip('-').removeprefix('config.').partition('=')
  *parents, last = path.split('.')
  node, at = config, 'config'
  for name in (*parents, last):
    if not isinstance(node, ConfigDict):
      raise UserError(f'--config.{path}: {at} is a value ({node!r}), not a group of keys.')
    if name not in node:
      near = difflib.get_close_matches(name, node, 1)
      hint = f' Did you mean {at}.{near[0]}?' if near else ''
      raise UserError(f'--config.{path}: {at} has no key {name!r}; it has {", ".join(node)}.{hint}')
    parent, node, at = node, node[name], f'{at}.{name}'
  if not given and not isinstance(node, bool):
    raise UserError(f'{flag} has no value; write {flag}=VALUE. The config has {node!r}.')
  try:
    parent[last] = value(node, text if given else 'true')
  except (ValueError, SyntaxError, KeyError):
    kind = KINDS.get(type(node), "a dict, like {'name': 'random'}, or one of its keys")
    old = node.to_dict() if isinstance(node, ConfigDict) else node
    raise UserError(f'{flag}: expected {kind}. The config has {old!r}.') from None


def value(old, text: str):
  """`text` as a value of the type of `old`."""
  if isinstance(old, bool):
    return {'true': True, 'false': False, '1': True, '0': False}[text.lower()]
  if isinstance(old, int | float | str):
    return type(old)(text)
  if isinstance(old, tuple):
    try:
      read = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      read = tuple(filter(None, text.split(',')))  # names without quotes
    return tuple(read) if isinstance(read, tuple | list) else (read,)
  read = ast.literal_eval(text)
  if not isinstance(read, dict):
    raise ValueError
  return ConfigDict(read)


def read_flags(argv: list[str]):
  """(config, workdir as given, the other flags) as the command line says; None when help was asked for, and printed."""
  values = flags.FlagValues()
  flags.DEFINE_string('config', None, 'FILE.py[:key=value,...]', flag_values=values)
  folder = 'folder of the run, or gs://BUCKET/FOLDER; the same one again resumes it'
  flags.DEFINE_string('workdir', None, folder, flag_values=values)
  help_ = 'the same command on several hosts: auto (a TPU pod or a cluster says which), or ADDRESS:PORT,INDEX/COUNT'
  flags.DEFINE_string('hosts', '', help_, flag_values=values)
  help_ = 'FIRST:LAST, updates to trace into WORKDIR/profile; SIGUSR1 traces the next few'
  flags.DEFINE_string('profile', '', help_, flag_values=values)
  overrides = [a for a in argv if a.startswith(('--config.', '-config.'))]
  rest = [a for a in argv if a not in overrides]
  if commands.parse('study', values, rest, SUMMARY, ('config', 'workdir')) is None:
    return None
  config = load_config(values.config)
  for flag in overrides:
    override(config, flag)
  return config, values.workdir, values


# --- the command --------------------------------------------------------------------------------------------------


def run(argv: list[str]) -> int:
  started = time.monotonic()
  read = read_flags(argv)
  if read is None:
    return 0
  config, where, values = read
  # Imports that start JAX come after everything a typo can spoil.
  from past_jax import hosts, profile

  traced = profile.span(values.profile)
  with hosts.joined(values.hosts):
    return study(config, where, started, traced)


def study(config, where: str, started: float, traced: tuple[int, int] | None) -> int:
  """The run, in this process or in several that are joined, of which the first alone writes and speaks."""
  import jax

  from past_jax import build, checks, hosts, models, pairs, report, settings, storage
  from past_jax.profile import Profile
  from past_jax.progress import Progress, quiet
  from past_jax.stop import Stop
  from past_jax.train import Loop

  say = functools.partial(print, file=sys.stderr) if hosts.is_first() else lambda *_: None
  # From cheap to dear: the config, the workdir, the data, the model's files. Its weights come last, in the loop.
  refuse(checks.check(config, jax.device_count()))
  resolved = settings.plain(config)
  hosts.same('the config', resolved)
  home = storage.Workdir(where, writes=hosts.is_first())
  workdir = home.local
  hosts.first('workdir', lambda: check_workdir(home, resolved))
  data = build.load_examples(config)
  hosts.same('the data', data.examples)
  refuse(checks.check_examples(config, data.examples))
  say(f'{config.model.spec} in {home}' + (f' on {jax.process_count()} hosts' if hosts.several() else ''))
  for reason in data.skipped:
    say(f'skipped {reason}')
  m = config.model
  model = models.load(m.spec, dtype=m.dtype, remat=m.remat, rope=m.rope, seed=config.seed)
  refuse(checks.check_model(config, model))
  teacher = None
  if config.teacher.spec not in ('', 'policy'):
    teacher = models.load(config.teacher.spec, dtype=m.dtype, rope=m.rope, seed=config.seed)
    refuse(checks.check_teacher(config, model, teacher))
  examples, names = data.examples, None
  if config.pairs.size:
    known = hosts.first('names', lambda: known_names(workdir))
    names = known or build.find_names(config, teacher or model, examples)
    examples = pairs.combined(examples, names, config.pairs.size, config.pairs.most)
    say(f'{len(examples)} combinations of names in {len(data.examples)} passages')
  run_ = build.build(config, model, examples, teacher, asked=data.examples)
  ahead = sum(config[s].rounds for s in config.stages[1:])
  signals = hosts.StopTogether() if hosts.several() else Stop()
  shown = Progress(ahead, None if hosts.is_first() else quiet())
  with home, signals as stop, shown as progress, Profile(workdir / 'profile', traced, progress.note) as seen:
    try:
      if hosts.is_first():
        if names is not None and known is None:
          (workdir / 'names.json').write_text(json.dumps(names))
        claim(workdir, resolved)
        home.push()
      with jax.set_mesh(run_.mesh):
        loop = Loop(run_, resolved, home, stop, progress, seen)
        loop.seconds['start'] += time.monotonic() - started
        done = loop.study()
    except OSError as error:
      if error.errno not in NO_SPACE:
        raise
      raise UserError(
        f'{home}: {error.strerror}. What was saved is intact; free some space and run the same command again.'
      ) from error
  if not done:
    say(f'Stopped by {stop.reason}; saved at step {loop.cursor.step}. The same command resumes.')
    return 0
  if not hosts.is_first():
    return 0
  report.print_table(workdir)
  print(f'Report: {home.path / "report.html"}')
  return 0


def known_names(workdir: Path) -> list | None:
  """Those of a run that has begun here: only then is the workdir this config's, and the file whole."""
  path = workdir / 'names.json'
  return json.loads(path.read_text()) if (workdir / 'config.json').exists() and path.exists() else None


def refuse(problems: list[str]) -> None:
  if problems:
    raise UserError('\n  '.join(['the config has problems:', *problems]))


def check_workdir(home, resolved: dict) -> None:
  """Refuses a workdir that cannot be written, or is another config's: its run is not overwritten and not continued.

  home: a `storage.Workdir`.
  """
  from past_jax import settings

  path = home.local / 'config.json'
  try:
    home.probe()
    old = json.loads(path.read_text()) if path.exists() else None
  except OSError as error:
    raise UserError(f'cannot write in {home}: {error.strerror}. Choose another --workdir.') from None
  except ValueError:
    at = home.path / 'config.json'
    raise UserError(f'{at} is not readable as JSON; choose another workdir, or restore the file.') from None
  if old is not None and (changed := settings.differences(old, resolved)):
    raise UserError(
      '\n  '.join([f'{home} was made with another config. These keys differ (there -> here):', *changed])
      + '\nUse the same values to resume, or another --workdir.'
    )


def claim(workdir: Path, resolved: dict) -> None:
  """Makes the workdir this config's. Only now: a config that was refused must not stand in its corrected self's way."""
  temporary = workdir / 'config.json.tmp'
  temporary.write_text(json.dumps(resolved, indent=2, default=list) + '\n')
  os.replace(temporary, workdir / 'config.json')
