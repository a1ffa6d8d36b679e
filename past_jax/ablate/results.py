"""Results of a sweep: every run's figures in one JSON file, and what they say about the claims.

  {'sweep', 'about', 'command', 'budget',
   'runs': [{'arm', 'seed', 'config', 'code', 'commit', 'error', 'seconds', 'steps', 'tokens', 'figures'}, ...],
   'claims': {ID: {'statement', 'published', 'ours', 'interval', 'seeds', 'verdict', 'note', 'command', 'contrasts'}}}

The table of claims reads `claims` alone, whoever wrote the file. Of a claim `ours`, `interval`, `seeds` and `verdict`
are needed; what else is not there is taken from the table of claims.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from past_jax.ablate import figures, stats
from past_jax.ablate.sweep import EXPECTED, Claim, Contrast, Sweep
from past_jax.types import UserError

REPRODUCED, NOT_REPRODUCED, NOT_RUN = 'reproduced', 'not reproduced at this scale', 'not run'
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_RUN)


def read(path: Path) -> dict:
  """The file's content; {} if there is none.

  Raises:
    UserError: it is not JSON.
  """
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({error}): restore it, or delete it to run everything again.') from None


def write(path: Path, content: Mapping) -> None:
  """In one piece: whoever reads it, or is killed, sees the old file or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  line = lambda value: json.dumps(value, ensure_ascii=False, allow_nan=False)
  runs = ','.join(f'\n  {line(run)}' for run in content.get('runs', ()))  # a line each: so a diff shows what has come
  parts = [f' {line(key)}: {f"[{runs}]" if key == "runs" else line(value)}' for key, value in content.items()]
  text = '{\n' + ',\n'.join(parts) + '\n}\n'
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)


def usable(record: Mapping, metrics: Sequence[str]) -> bool:
  """Whether a run need not be repeated: it ended well, and has all that is read of it."""
  if record['error']:
    return False
  try:
    return all(figures.value(record, metric) is not None for metric in metrics)
  except UserError:
    return False


def contrast(c: Contrast, runs: Mapping[tuple[str, int], Mapping]) -> dict:
  """What the runs, by (arm, seed), say about a contrast: of seeds that have a run of each of its arms, by one code."""
  whole = {seed for _, seed in runs if all((arm, seed) in runs for arm in c.weights)}
  seeds = sorted(seed for seed in whole if len({runs[arm, seed]['code'] for arm in c.weights}) == 1)
  of = lambda arm, seed: figures.mean(runs[arm, seed], c.metrics)
  values = [sum(w * of(arm, seed) for arm, w in c.weights.items()) - c.against for seed in seeds]
  out = {
    'label': c.text,
    'metric': figures.named(c.metrics),
    'metrics': c.metrics,
    'expect': c.expect,
    'margin': c.margin,
  }
  out |= {'weights': dict(c.weights), 'against': c.against, 'values': dict(zip(map(str, seeds), values))}
  return out | (stats.estimate(values, c.expect, c.margin)._asdict() if len(values) > 1 else {})


def unmatched(budget: str, c: Contrast, runs: Mapping, tolerance: float) -> str:
  """How the arms of a contrast differ in what they must have in common; '': they do not."""
  if budget == 'none' or len(c.weights) < 2:
    return ''
  spent = {}
  for arm in c.weights:
    each = [record['tokens' if budget == 'tokens' else 'steps'] for (name, _), record in runs.items() if name == arm]
    spent[arm] = sum(each) / len(each) if each else 0
  if max(spent.values()) <= min(spent.values()) * (1 + (tolerance if budget == 'tokens' else 0)):
    return ''
  return f'{c.text}: {budget} differ, ' + ', '.join(f'{arm} {n:,.0f}' for arm, n in spent.items())


def judge(claim: Claim, sweep: Sweep, runs: Mapping, told: Mapping, command: str) -> dict:
  """A claim's record. `told`: its row of the table of claims, for what the claim itself does not say."""
  found = [contrast(c, runs) for c in claim.contrasts]
  budget = claim.budget or sweep.budget
  notes = [claim.note] if claim.note else []
  seeds = min(len(c['values']) for c in found)
  differ = [text for c in claim.contrasts if (text := unmatched(c.budget or budget, c, runs, sweep.tolerance))]
  if seeds < sweep.fewest:
    verdict = NOT_RUN
    notes += [f'{seeds} seeds so far, {sweep.fewest} are the fewest'] if seeds else []
  elif differ:
    verdict = NOT_RUN
    notes += differ
  else:
    verdict = REPRODUCED if all(c['holds'] for c in found) else NOT_REPRODUCED
  known = [c for c in found if 'mean' in c]
  return {
    'statement': claim.statement or told.get('statement', ''),
    'published': claim.published or told.get('published', ''),
    'ours': '; '.join(f'{c["mean"]:+.3g} ({c["label"]}, {c["metric"]})' for c in known),
    'interval': '; '.join(f'[{c["low"]:+.3g}, {c["high"]:+.3g}]' for c in known),
    'seeds': seeds,
    'verdict': verdict,
    'note': '. '.join(notes),
    'budget': budget,
    'command': command,
    'contrasts': found,
  }


def assess(sweep: Sweep, runs: Sequence[Mapping], told: Mapping[str, Mapping], command: str) -> dict[str, dict]:
  """All claims of a sweep, by id, with Holm's p-values over its contrasts beside the plain ones that decide."""
  by_run = {(r['arm'], r['seed']): r for r in runs if usable(r, sweep.metrics(r['arm']))}
  claims = {c.id: judge(c, sweep, by_run, told.get(c.id, {}), f'{command} --only={c.id}') for c in sweep.claims}
  tested = [c for claim in claims.values() for c in claim['contrasts'] if 'p' in c]
  for c, p in zip(tested, stats.holm([c['p'] for c in tested])):
    c['p_holm'] = p
  return claims


def expectation(c: Contrast) -> str:
  """In words: what was fixed before running."""
  between = EXPECTED[c.expect] + (f' ({c.margin:g})' if c.expect == '0' else '')
  return f'{c.text}, {figures.named(c.metrics)}, is {between}'


def content(name: str, sweep: Sweep, runs: Sequence[Mapping], told: Mapping, command: str) -> dict:
  """The whole file."""
  claims = assess(sweep, runs, told, command)
  for claim in sweep.claims:
    claims[claim.id]['expected'] = [expectation(c) for c in claim.contrasts]
  head = {'sweep': name, 'about': sweep.about, 'command': command, 'budget': sweep.budget}
  head |= {'final': dict(sweep.final), 'arms': {a: dataclasses.asdict(arm) for a, arm in sweep.arms.items()}}
  order = {arm: i for i, arm in enumerate(sweep.arms)}
  return head | {'runs': sorted(runs, key=lambda r: (order[r['arm']], r['seed'])), 'claims': claims}
