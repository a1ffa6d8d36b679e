"""Runs the exact instances of docs/theory.md over seeds: figures for the docs, and what they say of claims E6 to E8.

  python scripts/theory.py [--seeds=5] [--first=10] [--only=E8] [--results=DIR] [--plots=DIR]

Contrasts, signs and margins stand in CLAIMS, and were fixed before the published seeds (10 to 14) were run.
"""

import argparse
import functools
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import theory_plots

from past_jax.ablate import stats
from past_jax.tabular import instances

ROOT = Path(__file__).parent.parent
ALPHAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Instance(NamedTuple):
  run: Callable[..., instances.Figures]  # of a random generator
  claim: str = ''  # whose results file has the figures


class Contrast(NamedTuple):
  """One number per seed, from the figures of one instance, and what is expected of its mean: as `stats.estimate`."""

  label: str
  instance: str
  value: Callable[[instances.Figures], float]
  expect: str
  margin: float = 0.0


class Claim(NamedTuple):
  statement: str
  published: str
  contrasts: tuple[Contrast, ...]
  note: str


def slope(x, y) -> float:
  """Of log y over log x, by least squares."""
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


INSTANCES = {
  'curves': Instance(instances.curves),
  'decoding': Instance(instances.decoding),
  'cost_of_coverage': Instance(instances.cost_of_coverage, 'E6'),
  'adaptive_against_fixed': Instance(instances.adaptive_against_fixed, 'E6'),
  'margins': Instance(instances.margins, 'E7'),
  'structure': Instance(instances.structure, 'E8'),
  'exploration': Instance(instances.exploration, 'E8'),
  'optimism': Instance(functools.partial(instances.exploration, coverages=(200,), alphas=ALPHAS), 'E8'),
  'two_steps': Instance(instances.two_steps, 'E8'),
}
CLAIMS = {
  'E6': Claim(
    'cost scales with coverage, and adaptive sampling saves a factor of 1/eps',
    '2412.01951, theorems: m ~ C_cov log(1/delta) / (delta eps^2) with a fixed N, 1/eps instead of 1/eps^2 adaptively',
    (
      Contrast(
        'slope of log samples over log C_cov, fixed N, minus 1',
        'cost_of_coverage',
        lambda f: slope(f['coverage'], f['samples']) - 1,
        '0',
        0.15,
      ),
      Contrast(
        'slope of log(samples with fixed N / adaptive) over log(1/eps), minus 1',
        'adaptive_against_fixed',
        lambda f: slope(1 / f['eps'], f['fixed'] / f['adaptive']) - 1,
        '0',
        0.15,
      ),
      Contrast(
        'log10(samples with fixed N / adaptive) at eps = 0.01',
        'adaptive_against_fixed',
        lambda f: math.log10(f['fixed'][-1] / f['adaptive'][-1]),
        '+',
      ),
    ),
    'exact tables; the family of prompts is the one in which hard prompts get rarer and harder with eps',
  ),
  'E7': Claim(
    'reward regression needs a margin, imitation of the best does not',
    '2412.01951 Assumption 4.2',
    (
      Contrast(
        'regression: mass on the best response at margin 1 minus at margin 0.01',
        'margins',
        lambda f: f['rlhf'][-1] - f['rlhf'][0],
        '+',
      ),
      Contrast(
        'imitation of best-of-16: the same difference', 'margins', lambda f: f['sft'][-1] - f['sft'][0], '0', 0.05
      ),
    ),
    'exact tables, beta 0.05, 64 samples a prompt for both',
  ),
  'E8': Claim(
    'an online method with exploration can do without coverage',
    '2412.01951 Theorem 4.3: m ~ SEC log|Pi| / (gamma^2 delta^2 eps^2), without C_cov',
    (
      Contrast(
        'structure: log10(samples of imitation / of regression) to mass 0.9',
        'structure',
        lambda f: math.log10(f['samples_sft'] / f['samples_rlhf']),
        '+',
      ),
      Contrast(
        'alpha: log10(samples at alpha 0 / at alpha 0.001) to mass 0.9, C_cov 800',
        'exploration',
        lambda f: math.log10(f['samples'][-1, 0] / f['samples'][-1, 1]),
        '+',
      ),
      Contrast(
        'slope of log samples over log C_cov at alpha 0.001',
        'exploration',
        lambda f: slope(f['coverage'], f['samples'][:, 1]),
        '0',
        0.15,
      ),
    ),
    'linear-softmax classes; the second instance is made so that base samples do not span the features',
  ),
}


def plain(x):
  """Arrays as JSON has them, to six digits; null for what is not finite."""
  if isinstance(x, Mapping):
    return {key: plain(value) for key, value in x.items()}
  if isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.ndim):
    return [plain(value) for value in x]
  x = x.item() if hasattr(x, 'item') else x
  if not isinstance(x, float):
    return x
  return float(f'{x:.6g}') if math.isfinite(x) else None


def expectation(c: Contrast) -> str:
  return f'{c.label} is ' + {'+': 'above 0', '-': 'below 0', '0': f'within +-{c.margin:g}'}[c.expect]


def assess(claim: Claim, figures: Mapping[str, list], seeds: range, command: str) -> dict:
  """A row of the table of claims."""
  contrasts = []
  for c in claim.contrasts:
    values = [c.value(f) for f in figures[c.instance]]
    found = stats.estimate(values, c.expect, c.margin)._asdict()
    head = {'label': c.label, 'metric': c.instance, 'expect': c.expect, 'margin': c.margin}
    contrasts.append(head | {'values': dict(zip(map(str, seeds), values))} | found)
  for c, p in zip(contrasts, stats.holm([c['p'] for c in contrasts])):
    c['p_holm'] = p
  return {
    'statement': claim.statement,
    'published': claim.published,
    'ours': '; '.join(f'{c["mean"]:+.3g} ({c["label"]})' for c in contrasts),
    'interval': '; '.join(f'[{c["low"]:+.3g}, {c["high"]:+.3g}]' for c in contrasts),
    'seeds': len(seeds),
    'verdict': 'reproduced' if all(c['holds'] for c in contrasts) else 'not reproduced at this scale',
    'note': claim.note,
    'command': command,
    'expected': [expectation(c) for c in claim.contrasts],
    'contrasts': contrasts,
  }


def commit() -> str:
  found = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
  return found.stdout.strip()


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=5, help='how many, at least 3')
  parser.add_argument('--first', type=int, default=10, help='the first seed')
  parser.add_argument('--only', choices=list(CLAIMS), help='one claim, and no other instances')
  parser.add_argument('--results', type=Path, default=ROOT / 'configs/ablations/results')
  parser.add_argument('--plots', type=Path, default=ROOT / 'docs/theory')
  args = parser.parse_args(argv)
  if args.seeds < stats.FEWEST:
    parser.error(f'--seeds={args.seeds}: nothing is concluded from fewer than {stats.FEWEST}.')
  seeds = range(args.first, args.first + args.seeds)
  figures: dict[str, list[instances.Figures]] = {}
  for number, (name, instance) in enumerate(INSTANCES.items()):
    if args.only and instance.claim != args.only:
      continue
    start = time.monotonic()
    figures[name] = [instance.run(np.random.default_rng([seed, number])) for seed in seeds]
    theory_plots.draw(name, figures[name], args.plots / f'{name}.svg')
    print(f'{name}: {args.seeds} seeds in {time.monotonic() - start:.0f} s', flush=True)
  args.results.mkdir(parents=True, exist_ok=True)
  for name, claim in CLAIMS.items():
    if args.only in (None, name):
      command = f'python scripts/theory.py --seeds={args.seeds} --first={args.first} --only={name}'
      row = assess(claim, figures, seeds, command)
      own = {key: value for key, value in figures.items() if INSTANCES[key].claim == name}
      content = {
        'sweep': name,
        'about': f'{claim.note}. Figures: docs/theory.md.',
        'command': command,
        'commit': commit(),
        'seeds': list(seeds),
      }
      content |= {'claims': {name: row}, 'figures': own}
      (args.results / f'{name}.json').write_text(json.dumps(plain(content), indent=1, allow_nan=False) + '\n')
      print(f'{name}: {row["verdict"]}: {row["ours"]} {row["interval"]}')


if __name__ == '__main__':
  main()
