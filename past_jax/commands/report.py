"""past report: report.html of a run, finished or not."""

from pathlib import Path

from absl import flags

from past_jax import commands, report
from past_jax.types import UserError


def run(argv: list[str]) -> int:
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'folder of a run', flag_values=values)
  if commands.parse('report', values, argv, 'write report.html of a run', ('workdir',)) is None:
    return 0
  workdir = Path(values.workdir)
  if not (workdir / 'config.json').exists():
    raise UserError(f'{workdir} is not the workdir of a run: there is no config.json.')
  print(f'Report: {report.write(workdir)}')
  report.print_table(workdir)
  return 0
