"""From a sweep to runs: which processes, with which flags, in which folders."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from past_jax.ablate.sweep import Arm, Sweep

PACKAGE = Path(__file__).parent.parent
SPEC = 'model.spec'


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of `past study`, and of `past export` behind it if others start from its model."""

  name: str  # of the arm, or of the preparing run
  seed: int
  flags: tuple[str, ...]  # of `past study`, without the workdir
  config: str  # hash of the resolved config: what results are valid for
  folder: Path  # the workdir: of this config, this code and these preparing runs
  after: 'Job | None' = None
  prepares: bool = False

  @property
  def title(self) -> str:
    return f'{self.name}, seed {self.seed}'

  @property
  def model(self) -> Path:
    return self.folder / 'model'

  @property
  def commands(self) -> tuple[tuple[str, ...], ...]:
    past = (sys.executable, '-m', 'past_jax.main')
    start = (f'--config.{SPEC}={self.after.model}',) if self.after else ()
    study = (*past, 'study', *self.flags, *start, f'--workdir={self.folder}')
    export = (*past, 'export', f'--workdir={self.folder}', f'--out={self.model}')
    return (study, export) if self.prepares else (study,)

  @property
  def finished(self) -> bool:
    """By what is on disk. Both files are written last."""
    return (self.model / 'config.json' if self.prepares else self.folder / 'timing.json').exists()


def flag(key: str, value: Any) -> str:
  """--config.KEY=VALUE such that `past study` reads the value back."""
  return f'--config.{key}={str(value).lower() if isinstance(value, bool) else value}'


def code_hash(package: Path = PACKAGE) -> str:
  """Of what a run may compute with: the package without the sweeps' own modules."""
  files = sorted(path for kind in ('*.py', '*.txt') for path in package.rglob(kind) if path.parent.name != 'ablate')
  return digest({str(path.relative_to(package)): path.read_text(encoding='utf-8') for path in files})


def digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:12]


def jobs(
  sweep: Sweep,
  seeds: Sequence[int],
  workdir: Path,
  resolve: Callable[[Sequence[str]], Mapping[str, Any]],
  code: str,
  arms: Sequence[str],
  final: bool = True,
) -> list[Job]:
  """Preparing runs and arms, seed by seed, so that whole pairs are finished first; a job's `after` stands before it.

  Args:
    resolve: flags -> the resolved config as nested dicts; raises UserError for what is wrong with them.
    code: hash of the code, part of every folder's name: a run that was interrupted is never finished by other code.
    final: with the sweep's `final` keys, which arms and preparing runs get.
  """
  out = []
  for seed in seeds:
    prepared: dict[str, Job] = {}

    def job(name: str, arm: Arm, prepares: bool, seed=seed, prepared=prepared) -> Job:
      # Seeds last: one may be a key of a dict that the arm sets. What an arm sets itself stays.
      keys = {**arm.set, **(sweep.final if final else {})}
      keys |= {key: seed + arm.shift.get(key, 0) for key in sweep.seeded if key not in keys}
      flags = (f'--config={arm.config}', *(flag(key, value) for key, value in keys.items()))
      config = json.loads(json.dumps(resolve(flags), default=list))
      after = prepared[arm.start] if arm.start else None
      if after:
        config['model']['spec'] = f'prepared:{after.config}'  # not its folder, which differs from machine to machine
      hashed = digest(config)
      folder = workdir / f'{name}-seed{seed}-{digest([hashed, code, str(after and after.folder)])[:8]}'
      return Job(name, seed, flags, hashed, folder, after, prepares)

    needed, starts = set(), [sweep.arms[name].start for name in arms]
    while starts:
      if (name := starts.pop()) and name not in needed:
        needed.add(name)
        starts.append(sweep.prepare[name].start)
    for name in (name for name in sweep.prepare if name in needed):
      prepared[name] = job(name, sweep.prepare[name], True)
    out += prepared.values()
    out += [job(name, sweep.arms[name], False) for name in arms]
  return out
