"""past report: report.html of a run, finished or not."""

from absl import flags

from past_jax import commands, report, storage
from past_jax.types import UserError


def run(argv: list[str]) -> int:
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'folder of a run, or gs://BUCKET/FOLDER', flag_values=values)
  if commands.parse('report', values, argv, 'write report.html of a run', ('workdir',)) is None:
    return 0
  with storage.Workdir(values.workdir) as home:
    if not (home.local / 'config.json').exists():
      raise UserError(f'{home} is not the workdir of a run: there is no config.json.')
    report.write(home.local)
    print(f'Report: {home.path / "report.html"}')
    report.print_table(home.local)
  return 0
