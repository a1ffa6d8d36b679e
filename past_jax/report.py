"""One self-contained page about a run, made from its workdir's files alone, whatever state the run is in."""

import collections
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console

from past_jax import metrics, progress
from past_jax.types import UserError

HELD = 64  # groups of one round that are looked at for showing
SHOWN = 6  # groups of the first and of the last round that stand open
GROUP_BYTES = 1_100_000  # what all embedded groups may take; the rest is counted, not shown
TEXT_CHARS = 1500  # of one passage, prompt or completion
POINTS = 300  # of one curve
SAMPLES = 36  # closed-book answers
CHAINS = 24  # chains of improved responses
SERIES = 6  # curves in one chart

# title, what to look for, which metrics: one chart each. What no line here matches is drawn under "More".
CHARTS = (
  (
    'Loss and its terms',
    'What the update minimises, and its parts.',
    r'(^|/)loss$',
  ),
  (
    'Reward margin',
    'Beta times how much more likely than under the reference: chosen, rejected, and their difference.',
    r'rewards/(chosen|rejected|margins)$',
  ),
  (
    'Preference accuracy',
    'Share of pairs whose chosen member gained more than the rejected one.',
    r'rewards/accuracies$',
  ),
  (
    'Log-probability of completions',
    'Nats per completion. Both falling means that likelihood is being pushed away.',
    r'logps/(chosen|rejected)$',
  ),
  (
    'Right samples',
    'Shares of samples, of prompts with a right sample, of prompts whose best one as judged is right; and of samples '
    'without an answer.',
    r'(^|/)coverage/(right|any_right|best_right|unanswered)$',
  ),
  (
    'Coverage and margin',
    'In nats: log of the mean of 1 / p(likeliest sample), which says how many samples sharpening needs; and how much '
    'likelier the best is than the second best.',
    r'(^|/)coverage/log_',
  ),
  ('Length of samples', 'In tokens.', r'(^|/)coverage/length$'),
  ('Judge', 'Mean score of the completions of a round.', r'(^|/)judge/score'),
  ('Groups', 'Shares of groups, pairs or completions.', r'(^|/)study/(?!trimmed)'),
  (
    'Sampler and trainer',
    'Largest difference between the log-probs of the sampler and of the trainer, in nats.',
    r'check/sampler_gap',
  ),
  ('Learning rate', '', r'(^|/)learning_rate$'),
  ('Gradient norm', 'Before clipping.', r'(^|/)grad_norm$'),
  ('Speed', 'Tokens per second.', r'perf/tokens_per_second$'),
)
WORDS = {'better': '▲ better', 'worse': '▼ worse', 'same': '= unclear', 'unknown': ''}
FIELDS = {'step', 'round', 'stage'}
NO_LINE = ('/n', '/questions', '/chance', 'stderr')  # ends of evaluations' names that say something about others
NATS = ('logp', 'gap', 'gap_per_token', 'margin')  # last parts of evaluations' names
CELL = re.compile(r'sequential/[^/]+/\d+/\d+')  # of a matrix
IMPROVEMENT = re.compile(r'improvement/(baseline/)?([^/]+)/t([^/]+)/i(\d+)/(.+)')  # of a judge, or of `text`


# --- reading --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
  """What a workdir says. `missing` names the files that are not there (yet)."""

  workdir: Path
  config: dict | None
  steps: list[dict]
  evaluations: list[dict]
  timing: dict
  missing: list[str]


def read(workdir: os.PathLike | str) -> Run:
  """Raises UserError where there is no workdir or a file is broken."""
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'{workdir} is not a directory: --workdir names the directory that `past study` wrote.')
  names = ('config.json', *metrics.FILES, 'timing.json')
  missing = [name for name in names if not (workdir / name).exists()]
  if len(missing) == len(names):
    raise UserError(f'{workdir} holds none of the files of a run ({", ".join(names)}): is it the right directory?')
  return Run(
    workdir,
    _json(workdir / 'config.json'),
    metrics.rows(workdir / 'metrics.jsonl'),
    metrics.rows(workdir / 'evaluations.jsonl'),
    _json(workdir / 'timing.json') or {},
    missing,
  )


def _json(path):
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({error}): mend it, or delete it to have the report without it.') from error


def _first_and_last(evaluations: Sequence[Mapping]) -> tuple[dict | None, dict | None]:
  """The evaluation before training, and the latest one since."""
  before = next((row for row in evaluations if row['when'] == 'before'), None)
  after = next((row for row in reversed(evaluations) if row['when'] != 'before'), None)
  return before, after


# --- before and after -----------------------------------------------------------------------------------------------


def wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
  """The 95 % interval of a proportion `p` of `n` (Wilson 1927)."""
  if not n:
    return 0.0, 1.0
  centre = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  return max(centre - half, 0.0), min(centre + half, 1.0)


def difference(p: float, n: int, q: float, m: int) -> tuple[float, float]:
  """The 95 % interval of `q - p`, proportions of `m` and `n` (Newcombe 1998, method 10: from Wilson's intervals)."""
  (low_p, high_p), (low_q, high_q) = wilson(p, n), wilson(q, m)
  return q - p - math.hypot(q - low_q, high_p - p), q - p + math.hypot(high_q - q, p - low_p)


@dataclasses.dataclass
class Line:
  """One line of the before/after table. Values are None where that evaluation did not happen."""

  name: str
  before: float | None
  after: float | None
  n_before: int | None = None
  n_after: int | None = None
  stderr_before: float | None = None
  stderr_after: float | None = None
  all_before: int | None = None  # texts of the whole evaluation, where a value does not say its own
  all_after: int | None = None

  @property
  def accuracy(self) -> bool:
    return not self.lower_is_better and not self.logp and (self.n_before or self.n_after) is not None

  @property
  def difference(self) -> bool:
    """Of shares."""
    return self.name.endswith('/delta')

  @property
  def logp(self) -> bool:
    return self.name.rpartition('/')[2] in NATS

  @property
  def lower_is_better(self) -> bool:
    return self.name.startswith('perplexity')

  @property
  def words(self) -> str:
    """closed_book/two_hop -> 'closed-book two-hop'."""
    if match := IMPROVEMENT.fullmatch(self.name):
      return f'improvement {match[4]} at temperature {match[3]}, by {match[2]}'
    name = self.name.replace('/logp', ' logp').replace('heldout', 'held-out')
    return name.replace('_', '-').replace('/', ' ')

  @property
  def n_text(self) -> str:
    own = [n for n in (self.n_before, self.n_after) if n is not None]
    counts = dict.fromkeys(own or [n for n in (self.all_before, self.all_after) if n is not None])
    return ' / '.join(f'{n:,}' for n in counts)

  def cell(self, side: str) -> str:
    value = getattr(self, side)
    if value is None:
      return '–'
    if self.difference:
      return f'{signed(100 * value)}\N{NO-BREAK SPACE}points'
    return f'{100 * value:.1f}\N{NO-BREAK SPACE}%' if self.accuracy else number(value)

  def interval(self, side: str) -> str:
    """A share's 95 % interval, or the standard error that came with the value."""
    value, n, stderr = (getattr(self, prefix + side) for prefix in ('', 'n_', 'stderr_'))
    if stderr is not None:
      return f'±\N{NO-BREAK SPACE}{number(stderr)}'
    if value is None or n is None or not self.accuracy:
      return ''
    low, high = wilson(value, n)
    return f'{100 * low:.0f}–{100 * high:.0f}\N{NO-BREAK SPACE}%'

  @property
  def verdict(self) -> tuple[str, str]:
    """(better | worse | same | unknown, in words)."""
    if self.before is None or self.after is None:
      return 'unknown', 'not measured on both sides'
    if self.accuracy:
      points = 100 * (self.after - self.before)
      low, high = difference(self.before, self.n_before or self.n_after, self.after, self.n_after or self.n_before)
      if low > 0:
        return 'better', f'rose by {points:.0f} points'
      if high < 0:
        return 'worse', f'fell by {-points:.0f} points'
      return 'same', f'no clear change ({points:+.0f} points)'
    if self.difference:
      return 'unknown', f'changed by {signed(100 * (self.after - self.before))} points'
    if self.logp:  # the one measure here that moves before any answer is right; without an interval, no verdict
      moved = self.after - self.before
      return 'unknown', f'rose by {moved:.1f} nats' if moved > 0 else f'fell by {-moved:.1f} nats'
    if not self.lower_is_better:
      moved = self.after - self.before
      return 'unknown', f'{"rose" if moved > 0 else "fell"} by {number(abs(moved))}' if moved else 'no change'
    share = 100 * (self.after / self.before - 1)
    moved = f'rose by {share:.0f}\N{NO-BREAK SPACE}%' if share > 0 else f'fell by {-share:.0f}\N{NO-BREAK SPACE}%'
    return 'unknown', moved + ' (lower is better)'


def signed(points: float) -> str:
  return f'{points:+.0f}'.replace('-', '\N{MINUS SIGN}')


def last_deltas(names: Sequence[str]) -> set[str]:
  """Those that are win less lose rates of the last iteration."""
  found = {name: match for name in names if (match := IMPROVEMENT.fullmatch(name)) and not match[1]}
  last = max((int(match[4]) for match in found.values()), default=0)
  return {name for name, match in found.items() if int(match[4]) == last and match[5] == 'delta'}


def lines(evaluations: Sequence[Mapping]) -> list[Line]:
  """One for each metric; of improvements only the last iteration's win less lose rate, as they have their own table."""
  before, after = ((row or {'metrics': {}})['metrics'] for row in _first_and_last(evaluations))
  names = [name for name in dict.fromkeys([*before, *after]) if not name.endswith(NO_LINE)]
  told = last_deltas(names)
  names = [name for name in names if name in told or not name.startswith('improvement/')]
  order = ('closed_book/forward', 'closed_book/reversed', 'closed_book/', 'perplexity', '')
  names.sort(
    key=lambda name: (name.rpartition('/')[2] in NATS, [name.startswith(prefix) for prefix in order].index(True))
  )
  stderr = lambda name: name.removesuffix('accuracy') + 'stderr' if name.endswith('/accuracy') else name + '_stderr'
  keys = lambda name: (name, name + '/n', stderr(name), name.partition('/')[0] + '/n')
  return [Line(name, *(row.get(key) for key in keys(name) for row in (before, after))) for name in names]


def before_after(workdir: os.PathLike | str) -> list[tuple[str, float | None, float | None]]:
  """(metric, before, latest since) of the run's evaluations; None where an evaluation has not happened."""
  evaluations = metrics.rows(Path(workdir) / 'evaluations.jsonl')
  return [(line.name, line.before, line.after) for line in lines(evaluations)]


def print_table(workdir: os.PathLike | str, console: Console | None = None) -> None:
  """Prints the before/after table that the report holds."""
  console = console or Console()
  evaluations = metrics.rows(Path(workdir) / 'evaluations.jsonl')
  if not evaluations:
    console.print('No evaluation was written.', highlight=False)
    return
  _, after = _first_and_last(evaluations)
  side = lambda line, name: _with(line.cell(name), line.interval(name))
  found = lines(evaluations)
  if not after:
    cells = [(line.words, side(line, 'before'), line.n_text) for line in found]
    console.print(progress.as_table(cells, ('', 'before', 'texts')))
    return
  sides = lambda line: (side(line, 'before'), side(line, 'after'))
  cells = [(line.words, *sides(line), line.n_text, WORDS[line.verdict[0]]) for line in found]
  console.print(progress.as_table(cells, ('', 'before', after['when'], 'texts', '')))


def _with(cell, interval):
  return f'{cell} [{interval[:-2]}]' if interval.endswith('%') else f'{cell} {interval}'.rstrip()


# --- curves ---------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 210, 50, 12, 10, 26


def number(x: float) -> str:
  """Four significant digits at most, as a person writes them."""
  if x == 0 or not math.isfinite(x):
    return '0' if x == 0 else str(x)
  if abs(x) >= 10_000:
    return f'{x:,.0f}' if abs(x) < 1e7 else f'{x:.3g}'
  if abs(x) < 1e-3:
    mantissa, exponent = f'{x:.2e}'.split('e')
    return f'{mantissa.rstrip("0").rstrip(".")}e{int(exponent)}'
  return f'{x:.4g}'


def ticks(low: float, high: float, n: int = 5) -> list[float]:
  """At most `n + 1` round numbers within [low, high]."""
  raw = (high - low) / n
  unit = 10 ** math.floor(math.log10(raw))
  step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
  return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  stride = max(len(exponents) // 4, 1)
  tens = [10.0**e for e in exponents[::stride] if low <= 10.0**e <= high]
  return tens if len(tens) > 1 else [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Means of neighbours, so that at most POINTS are left."""
  stride = -(-len(points) // POINTS)
  parts = [points[i : i + stride] for i in range(0, len(points), stride)] if stride > 1 else [[p] for p in points]
  return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def chart(
  title: str, note: str, series: Mapping[str, list[tuple]], boundaries: Sequence[float] = (), dots: bool = False
) -> dict | None:
  """A line chart's geometry, which the template draws. Points are (x, y); a y of None is counted and left out."""
  notes = [note] if note else []
  known = {name: [(x, y) for x, y in points if y is not None] for name, points in series.items()}
  lost = sum(map(len, series.values())) - sum(map(len, known.values()))
  known = {name: points for name, points in known.items() if points}
  if not known:
    return None
  if lost:
    notes.append(f'{lost} values that were not finite are left out.')
  if len(known) > SERIES:
    notes.append(f'{len(known) - SERIES} more in metrics.jsonl.')
    known = dict(list(known.items())[:SERIES])
  longest = max(map(len, known.values()))
  if longest > POINTS:
    notes.append(f'Each point is the mean of {-(-longest // POINTS)} steps.')
  thinned = {name: thin(points) for name, points in known.items()}
  xs, ys = zip(*(point for points in thinned.values() for point in points))
  x0, x1, low, high = min(xs), max(xs), min(ys), max(ys)
  x1 = x1 if x1 > x0 else x0 + 1
  log = low > 0 and high / low > 30
  if log:
    low, high = low / 1.1, high * 1.1
  else:
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 0.5
    low, high = (0.0 if 0 <= low <= pad else low - pad), high + pad
  scale = math.log if log else float

  def to_x(x):
    return round(LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1)

  def to_y(y):
    return round(HEIGHT - BOTTOM - (scale(y) - scale(low)) / (scale(high) - scale(low)) * (HEIGHT - TOP - BOTTOM), 1)

  def curve(name, points):
    places = [(to_x(x), to_y(y)) for x, y in points]
    first, last = known[name][0][1], known[name][-1][1]
    return {
      'name': name,
      'path': 'M' + 'L'.join(f'{x:g},{y:g}' for x, y in places),
      'dots': places if dots or len(places) < 3 else [],
      'ends': number(first) if len(known[name]) == 1 else f'{number(first)} → {number(last)}',
    }

  return {
    'title': title + (' (log scale)' if log else ''),
    'note': ' '.join(notes),
    'x': [(to_x(x), f'{x:,.0f}') for x in ticks(x0, x1) if x == int(x)],
    'y': [(to_y(y), number(y)) for y in (log_ticks(low, high) if log else ticks(low, high))],
    'boundaries': [to_x(x) for x in boundaries if x0 < x < x1],
    'curves': [curve(*item) for item in thinned.items()],
  }


def charts(run: Run) -> tuple[list[dict], list[dict]]:
  """The charts worth seeing first, and one for every other metric."""
  series = collections.defaultdict(list)
  for row in run.steps:
    for name, value in row.items():
      if name not in FIELDS and (value is None or isinstance(value, int | float)):
        series[name].append((row['step'], value))
  stages = [(row['step'], row['stage']) for row in run.steps]
  boundaries = [b for (_, s), (b, t) in zip(stages, stages[1:]) if s != t]

  measured = collections.defaultdict(lambda: collections.defaultdict(list))
  for row in run.evaluations:
    for name, value in row['metrics'].items():
      last = name.rpartition('/')[2]
      kind = 'perplexity' if name.startswith('perplexity') else 'logp' if last in NATS else last
      known = ('perplexity', 'n', 'questions', 'chance', 'length', 'logp', 'delta')
      if name.endswith('stderr') or last in ('unread', 'rows_cut', 'chars', 'steps', 'tokens') or CELL.fullmatch(name):
        kind = 'n'  # no curve
      if name.startswith('improvement/'):
        kind = 'delta' if name in last_deltas(list(row['metrics'])) else 'n'
      if len(run.evaluations) > 1:  # one has no curve
        measured[kind if kind in known else 'answers'][name].append((row['step'], value))
  done = [
    chart(title, note, measured[kind], boundaries, dots=True)
    for kind, title, note in (
      ('answers', 'Right answers', 'Shares: of questions answered or chosen right, of pairs told apart.'),
      (
        'logp',
        'Log-probability of the right answer',
        'In nats, or less that of wrong ones: moves before any is right.',
      ),
      ('delta', 'Improved responses', 'Share better than their drafts less the share worse, in the last iteration.'),
      ('perplexity', 'Held-out perplexity', 'Of text that the run does not study: higher is forgetting.'),
    )
  ]
  for title, note, pattern in CHARTS:
    names = [name for name in series if re.search(pattern, name)]
    done.append(chart(title, note, {name: series.pop(name) for name in names}, boundaries))
  checks = {name for name in series if _is_check(name)}
  rest = [chart(name, '', {name: points}, boundaries) for name, points in series.items() if name not in checks]
  return [c for c in done if c], [c for c in rest if c]


def _is_check(name):
  return re.search(r'(^|/)check/', name)


def checks(run: Run) -> list[tuple[str, str, str, int]]:
  """(self-test, first value, largest magnitude, number of values) of the metrics `check/...`."""
  values = collections.defaultdict(list)
  for row in run.steps:
    for name in filter(_is_check, row):
      values[name].append(row[name])
  found = {name: [v for v in vs if v is not None] for name, vs in values.items()}
  return [(n, number(vs[0]), number(max(vs, key=abs)), len(vs)) for n, vs in found.items() if vs]


# --- groups ---------------------------------------------------------------------------------------------------------


def clip(text: str) -> tuple[str, int]:
  """(the first TEXT_CHARS characters, how many are left out); control characters become visible ones."""
  shown = ''.join(chr(0x2400 + ord(c)) if c < ' ' and c not in '\n\t' else c for c in text[:TEXT_CHARS])
  return shown, max(len(text) - TEXT_CHARS, 0)


def _lessons(c: Mapping, questions: Sequence) -> dict:
  """What an inner run learned: its losses as a small curve, and each question before and after it."""
  info = {name: c['info'][name] if name in c['info'] else () for name in ('inner_loss', 'before', 'after')}
  losses, curve = [y for y in info['inner_loss'] if y is not None], None
  if len(losses) > 1:
    low, span = min(losses), max(losses) - min(losses) or 1
    at = lambda x, y: f'{100 * x / (len(losses) - 1):.1f},{21 - 18 * (y - low) / span:.1f}'
    path = 'M' + 'L'.join(at(*point) for point in thin(list(enumerate(losses))))
    curve = {'path': path, 'ends': f'{number(losses[0])} → {number(losses[-1])}'}
  rows = [
    {
      'question': clip(question)[0],
      'answer': clip(answer)[0],
      'before': number(before),
      'after': number(after),
      'change': 'won' if after > before else 'lost' if after < before else '',
    }
    for (question, answer), before, after in zip(questions, info['before'], info['after'])
    if before is not None and after is not None
  ]
  return {'curve': curve, 'asked': rows}


def _completion(index: int, c: Mapping, questions: Sequence) -> dict:
  labels = ['chosen'] * c['chosen'] + ['rejected'] * c['rejected'] or ['not used']
  return {
    **c,
    'index': index,
    'labels': labels,
    'clipped': clip(c['text']),
    'score_text': 'abstained' if c['score'] is None else number(c['score']),
    'details': [
      (name, '–' if value is None else number(value))
      for name, value in c['info'].items()
      if not isinstance(value, list)
    ],
    **_lessons(c, questions),
  }


def _group(row: Mapping, with_prompt: bool) -> dict:
  questions = row['questions'] if 'questions' in row else ()  # runs of an earlier version have none
  found = [_completion(i, c, questions) for i, c in enumerate(row['completions'])]
  scores = [c['score'] for c in found if c['score'] is not None]
  low, high = (min(scores), max(scores)) if scores else (0.0, 0.0)
  for c in found:
    c['share'] = None if c['score'] is None or high == low else round(100 * (c['score'] - low) / (high - low))
  found.sort(key=lambda c: -math.inf if c['score'] is None else c['score'], reverse=True)
  return {
    'step': row['step'],
    'passage': clip(row['text']),
    'prompt': clip(row['prompt']) if with_prompt else None,
    'completions': found,
    'abstained': len(found) - len(scores),
    'spread': f'{number(low)} to {number(high)}' if scores else '',
  }


def _size(group: Mapping) -> int:
  """About how many bytes the template makes of a group."""
  texts = [group['passage'][0], *(group['prompt'] or ('',))[:1], *(c['clipped'][0] for c in group['completions'])]
  info = sum(70 * len(c['details']) + 900 * bool(c['curve']) for c in group['completions'])
  info += sum(120 + len(q['question'] + q['answer']) for c in group['completions'] for q in c['asked'])
  return 700 + 420 * len(group['completions']) + info + sum(len(text.encode(errors='replace')) for text in texts)


@dataclasses.dataclass
class Groups:
  """Rounds as {'stage', 'round', 'groups', 'left_out', 'featured'}, and the totals over every group of the run."""

  rounds: list[dict]
  total: int
  shown: int
  texts: int
  sizes: collections.Counter  # completions per group -> groups
  completions: int
  abstained: int
  unfinished: int
  unpaired: int  # groups of which nothing was used


def read_groups(path: Path) -> Groups:
  """Embeds groups until GROUP_BYTES: SHOWN of the first and last round, then each round's next group in turn."""
  rounds: dict[tuple, list[dict]] = collections.defaultdict(list)
  counts, sizes, texts = collections.Counter(), collections.Counter(), set()
  for row in _valid(path):
    found = row['completions']
    counts['groups'] += 1
    counts['completions'] += len(found)
    counts['abstained'] += sum(c['score'] is None for c in found)
    counts['unfinished'] += sum(not c['finished'] for c in found)
    counts['unpaired'] += not any(c['chosen'] or c['rejected'] for c in found)
    sizes[len(found)] += 1
    texts.add(hash(row['text'] or row['prompt']))
    key = row['stage'], row['round']
    counts[key] += 1
    if counts[key] <= HELD:
      rounds[key].append(row)
  keys = list(rounds)
  featured = dict.fromkeys((keys[0], keys[-1]), SHOWN) if keys else {}
  left, kept, full = GROUP_BYTES, collections.defaultdict(list), False
  turns = [(key, i) for key, shown in featured.items() for i in range(min(shown, len(rounds[key])))]
  deepest = max(map(len, rounds.values()), default=0)
  turns += [(key, i) for i in range(deepest) for key in keys if featured.get(key, 0) <= i < len(rounds[key])]
  for key, i in turns:
    group = _group(rounds[key][i], with_prompt=key in featured and i < SHOWN)
    left -= _size(group)
    full = full or left < 0
    if not full:
      kept[key].append(group)
  shown = [
    {
      'stage': key[0],
      'round': key[1],
      'groups': kept[key],
      'left_out': counts[key] - len(kept[key]),
      'featured': key in featured,
    }
    for key in keys
  ]
  return Groups(
    shown,
    counts['groups'],
    sum(map(len, kept.values())),
    len(texts),
    sizes,
    *(counts[name] for name in ('completions', 'abstained', 'unfinished', 'unpaired')),
  )


def _valid(path: Path) -> Iterator[dict]:
  for number_, row in enumerate(metrics.read_rows(path), 1):
    lacking = {'step', 'stage', 'round', 'text', 'prompt', 'completions'} - row.keys()
    if lacking:
      raise UserError(f'{path}:{number_} is not a group: it lacks {", ".join(sorted(lacking))}.')
    yield row


# --- the page -------------------------------------------------------------------------------------------------------


def answers(evaluations: Sequence[Mapping]) -> tuple[list[dict], int]:
  """Sampled questions with the answers before and after, each kind's first; and how many were left out."""
  table: dict[tuple, dict] = {}
  for side, row in zip(('before', 'after'), _first_and_last(evaluations)):
    asked = collections.Counter()
    for sample in row['samples'] if row else ():
      if 'chain' in sample:
        continue
      question = sample['kind'], sample['question'], sample['answer']
      asked[question] += 1  # a question may be asked twice
      entry = table.setdefault((*question, asked[question]), {**sample, 'before': None, 'after': None})
      entry[side] = {'output': clip(sample['output'])[0], 'correct': sample['correct']}
  kinds = collections.Counter(kind for kind, *_ in table)
  each = max(SAMPLES // max(len(kinds), 1), 1)
  seen, shown = collections.Counter(), []
  for (kind, *_), entry in table.items():
    seen[kind] += 1
    if seen[kind] <= each:
      shown.append(entry)
  return sorted(shown, key=lambda entry: list(kinds).index(entry['kind'])), len(table) - len(shown)


def improvements(evaluations: Sequence[Mapping]) -> list[dict]:
  """By judge: what it says of the latest evaluation's drafts, and a row for each temperature, iteration and writer."""
  before, after = _first_and_last(evaluations)
  measured = ((after or before) or {'metrics': {}})['metrics']
  table = collections.defaultdict(dict)  # (judge, temperature, iteration, baseline) -> {name: value}
  for name, value in measured.items():
    if match := IMPROVEMENT.fullmatch(name):
      table[match[2], float(match[3]), int(match[4]), bool(match[1])][match[5]] = value
  out = []
  for judge in dict.fromkeys(judge for judge, *_ in table if judge != 'text'):
    drafts = {name: measured.get(f'improvement/{judge}/{name}') for name in ('draft', 'good')}
    rows = [
      {'temperature': number(t), 'iteration': i, 'baseline': baseline}
      | {name: _figure(name, value) for name, value in {**values, **table.get(('text', t, i, baseline), {})}.items()}
      | {'interval': Line('win', None, values['win'], None, values['win/n']).interval('after')}
      for (of, t, i, baseline), values in sorted(table.items())
      if of == judge and 'win' in values
    ]
    out.append({'judge': judge, 'rows': rows} | {name: _figure(name, x) for name, x in drafts.items()})
  return out


def _figure(name: str, value: float | None) -> str:
  if value is None:
    return '–'
  if name.startswith('delta') or name == 'over_baseline':
    return signed(100 * value)
  if name in ('win', 'lose', 'spoilt', 'copied', 'good'):
    return f'{100 * value:.0f}\N{NO-BREAK SPACE}%'
  if name == 'elo':
    return signed(value)
  return f'{value:.2f}' if name == 'length' else number(value)


def chains(evaluations: Sequence[Mapping]) -> tuple[list[dict], int]:
  """Chains of the latest evaluation, each kind's first, with what every judge says; and how many were left out."""
  before, after = _first_and_last(evaluations)
  found = [sample for sample in ((after or before) or {'samples': ()})['samples'] if 'chain' in sample]
  kinds = collections.Counter(sample['kind'] for sample in found)
  each, seen, shown = max(CHAINS // max(len(kinds), 1), 1), collections.Counter(), []
  for sample in found:
    seen[sample['kind']] += 1
    if seen[sample['kind']] <= each:
      steps = [_step(i, sample['chain']) for i in range(len(sample['chain']))]
      shown.append({'kind': sample['kind'], 'question': clip(sample['question']), 'steps': steps})
  return shown, len(found) - len(shown)


def _step(i: int, chain: Sequence[Mapping]) -> dict:
  """A response as it is shown; its sign compares it with the draft."""
  scores = []
  for judge, score in chain[i]['score'].items():
    draft = chain[0]['score'][judge]
    sign = '' if None in (score, draft) or not i else '▲' if score > draft else '▼' if score < draft else '='
    scores.append((judge, 'abstains' if score is None else number(score), sign))
  same = i > 0 and chain[i]['text'] == chain[i - 1]['text']
  return {'text': clip(chain[i]['text']), 'scores': scores, 'same': same, 'sign': scores[0][2] if scores else ''}


def timing(run: Run) -> tuple[list[tuple[str, str, float]], float | None]:
  """((stage, seconds as text, share in percent), ...), and the total."""
  seconds = {k: v for k, v in run.timing.items() if isinstance(v, int | float) and k != 'total' and 'compile' not in k}
  total = run.timing.get('total') or sum(seconds.values()) or None
  if total and (rest := total - sum(seconds.values())) > 0.005 * total:
    seconds['everything else'] = rest
  spent = sorted(seconds.items(), key=lambda item: -item[1])
  return [(name, f'{s:,.1f} s', 100 * s / total) for name, s in spent], total


def duration(seconds: float) -> str:
  if seconds < 90:
    return f'{seconds:.0f} seconds'
  return f'{seconds / 60:.0f} minutes' if seconds < 5400 else f'{seconds / 3600:.1f} hours'


def flat(config: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
  """Every leaf of a nested config as ('optimizer.lr', '3e-05')."""
  items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else None
  if items is None or not config:
    yield prefix, json.dumps(config, ensure_ascii=False)
    return
  for key, value in items:
    yield from flat(value, f'{prefix}.{key}' if prefix else str(key))


def facts(config: Mapping | None) -> dict[str, str]:
  """What the summary says of a config; '' for what the config does not say."""

  def dig(*keys):
    value = config
    for key in keys:
      if not isinstance(value, Mapping) or key not in value:
        return None
      value = value[key]
    return value

  stages = dig('stages') or ()
  found = {'model': [dig('model', 'spec')], 'source': [dig('data', 'source')]}
  for part in ('judge', 'select'):
    found[part] = [dig(stage, part, 'name') for stage in stages]
  losses = [(term, dig(stage, 'losses', term)) for stage in stages for term in dig(stage, 'losses') or ()]
  found['losses'] = [f'{" + ".join(parts)} on the {term}' for term, parts in losses if isinstance(parts, Mapping)]
  unique = {name: list(dict.fromkeys(v for v in values if v)) for name, values in found.items()}
  return {name: ', '.join(values) for name, values in unique.items()}


def conclusion(evaluations: Sequence[Mapping]) -> str:
  """The verdicts on answers and perplexity in one plain paragraph."""
  told = [line for line in lines(evaluations) if not line.logp and None not in (line.before, line.after)]
  said = [f'{line.words}: {line.verdict[1]}, {line.cell("before")} → {line.cell("after")}.' for line in told]
  said = [sentence[0].upper() + sentence[1:] for sentence in said]
  asked = [line.verdict[0] for line in told if line.accuracy]
  if asked and 'better' not in asked:
    said.insert(0, 'Nothing that was asked is clearly answered better than before.')
  return ' '.join(said)


def page(workdir: os.PathLike | str) -> str:
  run = read(workdir)
  groups = read_groups(run.workdir / 'groups.jsonl')
  before, after = _first_and_last(run.evaluations)
  spent, total = timing(run)
  main_charts, more_charts = charts(run)
  samples, samples_left_out = answers(run.evaluations)
  shown_chains, chains_left_out = chains(run.evaluations)
  steps = run.steps[-1]['step'] if run.steps else 0
  # Runs of earlier versions are read too: a stage that does not say how many rounds it has, has some.
  stages = [run.config.get(name, {}) for name in run.config.get('stages', ())] if run.config else []
  only_evaluated = bool(before and stages) and not any(stage.get('rounds', 1) for stage in stages)
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters['number'] = number
  source = Path(__file__).with_name('report.html').read_text(encoding='utf-8')
  return environment.from_string(source).render(
    run=run,
    name=run.workdir.resolve().name,
    date=time.strftime('%Y-%m-%d %H:%M'),
    finished=only_evaluated or bool(after) and after['when'] == 'after' and after['step'] >= steps,
    only_evaluated=only_evaluated,
    steps=steps,
    after=after,
    before=before,
    conclusion=conclusion(run.evaluations),
    lines=(told := lines(run.evaluations)),
    shares=any(line.accuracy for line in told),
    spread=any((line.stderr_before, line.stderr_after) != (None, None) for line in told),
    charts=main_charts,
    more_charts=more_charts,
    groups=groups,
    samples=samples,
    samples_left_out=samples_left_out,
    improvements=improvements(run.evaluations),
    chains=shown_chains,
    chains_left_out=chains_left_out,
    spent=spent,
    total=duration(total) if total else None,
    compiled=[run.timing.get(name) for name in ('compile_count', 'compile_count_after_first_round')],
    checks=checks(run),
    config=list(flat(run.config)) if run.config else [],
    facts=facts(run.config),
    width=WIDTH,
    height=HEIGHT,
    left=LEFT,
    right=WIDTH - RIGHT,
    top=TOP,
    bottom=HEIGHT - BOTTOM,
  )


def write(workdir: os.PathLike | str) -> Path:
  """Writes report.html into a run's workdir, finished or not, and returns its path.

  Raises UserError where the workdir holds no run or one of its files is broken.
  """
  path = Path(workdir) / 'report.html'
  text = page(workdir)
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(text, encoding='utf-8', errors='replace')  # a model may write half a surrogate pair
  os.replace(temporary, path)
  return path
