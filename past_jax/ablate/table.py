"""Markdown: the table of claims (RESULTS.md) from the results files, and what each sweep found in detail."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from past_jax.ablate import figures, results, stats
from past_jax.types import UserError

CLAIMS, NOTES, FOLDER = 'claims.toml', 'notes.md', 'results'
DETAIL = ('claim', 'fixed before running', 'seeds', 'mean', 't', 'bootstrap', 'p', 'Holm')
HEADER = ('claim', 'what', 'ours', '95 % interval', 'seeds', 'published', 'verdict', 'command')

INTRODUCTION = """\
# Results

Assembled by `past ablate` from the files in `{folder}`; never edited by hand.

Arms, contrasts, signs or margins and final questions stand in a claim's sweep file, and were fixed before the runs.
Every run is `past study`, one per arm and seed. *Ours* is the mean over seeds of the contrast, paired by seed, with
Student's 95 % t interval. A claim is *reproduced* if each of its contrasts holds with three seeds or more: the
interval excludes 0 on the expected side or, where equality is claimed, two one-sided t tests at 5 % reject a
difference beyond the margin. Verdicts are plain; further down, Holm's p-values over a sweep's contrasts and
bootstrap intervals stand beside them. The arms of a contrast train on as many tokens, or do as many steps, unless a
row says why not; sampling is not counted.
"""


def told(folder: Path) -> dict[str, dict]:
  """The table of claims that stands beside the sweep files: id -> statement, published, command; in its order.

  Raises:
    UserError: it is not TOML, or an entry is incomplete.
  """
  path = folder / CLAIMS
  if not path.exists():
    return {}
  try:
    found = tomllib.loads(path.read_text(encoding='utf-8'))
  except tomllib.TOMLDecodeError as error:
    raise UserError(f'{path} is not TOML: {error}.') from None
  for claim, row in found.items():
    if lacking := {'statement', 'published', 'command'} - set(row):
      raise UserError(f'{path}: claim {claim} lacks {", ".join(sorted(lacking))}.')
  return found


def cell(text: str) -> str:
  return ' '.join(str(text).replace('|', '\\|').split())


def row(cells: Sequence[str]) -> str:
  return f'| {" | ".join(map(cell, cells))} |'


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  return '\n'.join([row(header), f'|{"---|" * len(header)}', *map(row, body)])


def claim_row(id_: str, claim: Mapping) -> tuple[str, ...]:
  what = claim['statement'] + (f' ({claim["note"]})' if claim['note'] else '')
  command = f'`{claim["command"]}`' if claim['command'] else ''
  ours, interval = claim['ours'] or '-', claim['interval'] or '-'
  return id_, what, ours, interval, str(claim['seeds']), claim['published'], claim['verdict'], command


def all_claims(folder: Path) -> dict[str, dict]:
  """Every claim that is known: of the results files, and those of the table of claims that no file has, as not run."""
  unrun = {'ours': '', 'interval': '', 'seeds': 0, 'verdict': results.NOT_RUN, 'note': ''}
  table = told(folder)
  out = {id_: unrun | row for id_, row in table.items()}
  found = {}
  for path in sorted((folder / FOLDER).glob('*.json')):
    for id_, claim in results.read(path)['claims'].items():
      if id_ in found:
        raise UserError(f'claim {id_} stands in {found[id_]} and in {path}: one of them has to go.')
      if claim['verdict'] not in results.VERDICTS:
        raise UserError(f'{path}: claim {id_} has the verdict {claim["verdict"]!r}, not one of {results.VERDICTS}.')
      found[id_] = path
      out[id_] = unrun | table.get(id_, {}) | claim
  return out


def document(folder: Path, where: Path) -> str:
  """RESULTS.md of a folder of sweep files; `where`: the folder it will stand in, for links."""
  relative = lambda path: Path(os.path.relpath(path, where)).as_posix()
  claims = all_claims(folder)
  parts = [INTRODUCTION.format(folder=relative(folder / FOLDER))]
  parts += [rows(HEADER, [claim_row(*item) for item in claims.items()]) + '\n']
  for path in sorted((folder / FOLDER).glob('*.json')):
    parts.append(detail(results.read(path), path, relative))
  if (folder / NOTES).exists():
    parts.append((folder / NOTES).read_text(encoding='utf-8'))
  return '\n'.join(parts).rstrip() + '\n'


def detail(content: Mapping, path: Path, relative) -> str:
  """A sweep: what was expected, what came out, its arms and its figure."""
  out = [f'## {content.get("sweep", path.stem)}\n']
  if content.get('about'):
    out.append(f'{content["about"]}\n')
  if any(claim.get('contrasts') for claim in content['claims'].values()):
    out.append(rows(DETAIL, contrasts(content)) + '\n')
  if content.get('runs'):
    out.append(arms(content) + '\n')
  for what, suffix in (('Arms', '.svg'), ('Matrices', '.matrices.svg')):
    if (figure := path.with_suffix(suffix)).exists():
      out.append(f'![{what} of {path.stem}]({relative(figure)})\n')
  return '\n'.join(out)


def contrasts(content: Mapping) -> list[tuple[str, ...]]:
  out = []
  for id_, claim in content['claims'].items():
    for c, expected in zip(claim.get('contrasts', ()), claim['expected']):
      cells = ['-'] * 5
      if 'mean' in c:
        interval = lambda low, high: f'[{low:+.3g}, {high:+.3g}]'
        cells = [f'{c["mean"]:+.3g}', interval(c['low'], c['high']), interval(c['boot_low'], c['boot_high'])]
        cells += [f'{c["p"]:.2g}', f'{c["p_holm"]:.2g}']
      out.append((id_, expected, str(len(c['values'])), *cells))
  return out


def metrics_of(content: Mapping) -> dict[str, list[str]]:
  """What the claims of a sweep read, in their order: name -> the metrics that are averaged."""
  return {c['metric']: c['metrics'] for claim in content['claims'].values() for c in claim['contrasts']}


def values(content: Mapping, arm: str, metrics: Sequence[str]) -> list[float]:
  runs = [run for run in content['runs'] if run['arm'] == arm and results.usable(run, metrics)]
  return [figures.mean(run, metrics) for run in runs]


def arms(content: Mapping) -> str:
  """Means over seeds with t intervals, and what they cost; runs that failed are named."""
  metrics, body = metrics_of(content), []
  for arm in dict.fromkeys(run['arm'] for run in content['runs']):
    runs = [run for run in content['runs'] if run['arm'] == arm and not run['error']]
    mean = lambda key, runs=runs: f'{sum(run[key] for run in runs) / len(runs):,.0f}' if runs else '-'
    cells = [summary(values(content, arm, read)) for read in metrics.values()]
    body.append((arm, str(len(runs)), *cells, mean('steps'), mean('tokens'), mean('seconds')))
  text = rows(('arm', 'seeds', *metrics, 'steps', 'tokens', 'seconds'), body)
  failed = [f'{run["arm"]}, seed {run["seed"]}: {run["error"]}' for run in content['runs'] if run['error']]
  codes = sorted({f'{run["commit"] or "no commit"}' for run in content['runs']})
  text += f'\n\nCommit {", ".join(codes)}.'
  if len({run['code'] for run in content['runs']}) > 1:
    text += ' The runs are of different code.'
  return text + ''.join(f'\n\nFailed: {cell(line)}' for line in failed)


def summary(x: Sequence[float]) -> str:
  if len(x) < 2:
    return f'{x[0]:.3g}' if x else '-'
  low, high = stats.t_interval(x)
  return f'{sum(x) / len(x):.3g} [{low:.3g}, {high:.3g}]'
