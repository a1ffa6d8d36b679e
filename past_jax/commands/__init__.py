"""One module per subcommand of `past`: run(argv) -> exit code."""

import difflib
from collections.abc import Sequence

from absl import flags

from past_jax.types import UserError


def parse(command: str, values: flags.FlagValues, argv: Sequence[str], summary: str, required: Sequence[str] = ()):
  """Parses a command's own flags. None: help was asked for, and printed.

  Raises:
    UserError: a flag the command does not have (with the nearest), a wrong value, a missing or stray argument.
  """
  if any(a in ('-h', '--help', '-help') for a in argv):
    print(f'past {command}: {summary}\n')
    print(describe(values))
    return None
  try:
    rest = values([command, *argv])[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, list(values), 1)
    hint = f' Did you mean --{near[0]}?' if near else f' past {command} --help lists them.'
    raise UserError(f'there is no flag --{error.flagname}.{hint}') from None
  except flags.Error as error:
    raise UserError(str(error).strip().splitlines()[0]) from None
  if rest:
    raise UserError(f'unexpected argument {rest[0]!r}; flags are written --name=value.')
  missing = [name for name in required if not values[name].value]
  if missing:
    raise UserError(f'--{missing[0]}=... is missing; past {command} --help explains.')
  return values


def describe(values: flags.FlagValues) -> str:
  """Every flag with its help and default, one a line."""
  lines = []
  for name in sorted(values):
    flag = values[name]
    default = '' if flag.default in (None, '') else f' (default {flag.default})'
    lines.append(f'  --{name}  {flag.help}{default}')
  return '\n'.join(lines)
