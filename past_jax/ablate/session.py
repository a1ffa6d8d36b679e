"""One invocation over a sweep: what is on file, what has still to run, and what is written down as runs end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from past_jax.ablate import figures, plan, results
from past_jax.ablate.plan import Job
from past_jax.ablate.run import Outcome
from past_jax.ablate.sweep import Sweep
from past_jax.types import UserError


class Session:
  """`records`: (arm, seed) -> a run's entry of the results file at `path`, of runs that the sweep would still make.

  Args:
    file: the sweep's.
    told: the table of claims: id -> statement, published, command.
    workdir: where runs and prepared models lie.
    command: what a reader types to make the results again.
    commit: of the checkout, for the entries.
    resolve: flags of `past study` -> the resolved config.
    final: with the sweep's `final` keys.
  """

  def __init__(
    self,
    file: Path,
    sweep: Sweep,
    told: Mapping[str, Mapping],
    workdir: Path,
    path: Path,
    command: str,
    commit: str,
    resolve: Callable[[Sequence[str]], Mapping],
    final: bool = True,
  ):
    self.file, self.sweep, self.told, self.workdir, self.path = file, sweep, told, workdir.resolve(), path
    self.command, self.commit, self.resolve, self.final = command, commit, resolve, final
    self.code = plan.code_hash()
    known = [record for record in results.read(path).get('runs', ()) if record['arm'] in sweep.arms]
    seeds = sorted({record['seed'] for record in known})
    valid = {(job.name, job.seed): job.config for job in self.jobs(seeds, tuple(sweep.arms))}
    self.records = {key: r for r in known if r['config'] == valid[key := (r['arm'], r['seed'])]}

  def jobs(self, seeds: Iterable[int], arms: Sequence[str]) -> list[Job]:
    return plan.jobs(self.sweep, tuple(seeds), self.workdir, self.resolve, self.code, arms, self.final)

  def missing(self, jobs: Sequence[Job]) -> list[Job]:
    """Those whose figures are not on file, and the preparing runs that they still need.

    A seed is paired, so its runs are by one code: what other code has left of it counts if nothing is missing.
    """
    of = {key: r['code'] for key, r in self.records.items() if results.usable(r, self.sweep.metrics(r['arm']))}
    runs = [job for job in jobs if not job.prepares]
    codes = {
      seed: {of.get((job.name, seed)) for job in runs if job.seed == seed} for seed in {job.seed for job in runs}
    }
    whole = {seed for seed, found in codes.items() if len(found) == 1 and None not in found}
    wanted = {job for job in runs if job.seed not in whole and of.get((job.name, job.seed)) != self.code}
    for job in list(wanted):
      while job.after and not job.finished and not job.after.finished:
        job = job.after
        wanted.add(job)
    return [job for job in jobs if job in wanted]

  def done(self, outcome: Outcome) -> str:
    """Writes down how a job ended; returns why it failed, or ''.

    Raises:
      NoSuchMetric: a claim reads what this run did not write.
    """
    job, error = outcome.job, outcome.error
    if job.prepares:
      return error
    read = {'steps': 0, 'tokens': 0, 'seconds': round(outcome.seconds, 1), 'figures': {}}
    if not error:
      try:
        read = figures.read(job.folder, self.sweep.metrics(job.name), self.sweep.metrics())
      except figures.NoSuchMetric as wrong:
        raise figures.NoSuchMetric(f'{self.file}, arm {job.name!r}: {wrong}') from None
      except UserError as wrong:
        error = str(wrong)
    record = {'arm': job.name, 'seed': job.seed, 'config': job.config, 'code': self.code, 'commit': self.commit}
    self.records[job.name, job.seed] = record | {'error': error} | read
    self.save()
    return error

  def save(self) -> dict:
    content = results.content(self.file.stem, self.sweep, list(self.records.values()), self.told, self.command)
    results.write(self.path, content)
    return content
