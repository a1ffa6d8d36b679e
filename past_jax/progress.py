"""What a person sees while something long runs: one live line on a terminal, a plain line now and then in a log file.

with Progress() as progress:
  progress.phase('sample', total=8, round=1, rounds=16, stage='study')
  progress.advance(1, tokens=192)
  progress.note('saved checkpoint 3')
"""

import io
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

UNKNOWN = '--:--'
LINE_SECONDS = 10.0  # in a log file: between two lines of one phase
PHASE_SECONDS = 2.0  # in a log file: between the lines of two phases


def clock_text(seconds: float | None) -> str:
  """75 -> '1:15', 3675 -> '1:01:15', None -> '--:--'."""
  if seconds is None:
    return UNKNOWN
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class Progress:
  """Progress of a run of rounds, each made of phases. Use as a context manager; writes to stderr.

  `rounds_ahead`: the rounds of the stages after the first that `phase` will name, for the time left of the whole run.
  """

  def __init__(self, rounds_ahead: int = 0, console: Console | None = None, clock=time.monotonic):
    self._ahead = rounds_ahead
    self._console = console or Console(stderr=True)
    self._clock = clock
    self._single = False  # one bar, no rounds
    self._stage = self._name = ''
    self._round = self._rounds = self._tokens = 0
    self._done, self._skipped, self._total = 0, 0, None
    self._round_seconds: list[float] = []  # whole rounds measured in this process
    self._opening_seconds = 0.0  # the evaluation before the first round, which returns after the last
    self._start = self._round_start = self._phase_start = clock()
    self._last_line = float('-inf')
    self._bar = self._task = None

  def __enter__(self):
    if self._console.is_terminal:
      columns = TextColumn('{task.fields[where]}', markup=False), BarColumn(bar_width=None), _Numbers(self)
      self._bar = Bar(*columns, console=self._console, expand=True, refresh_per_second=5)
      self._task = self._bar.add_task('', total=self._total, completed=self._done, where=self._where() or 'starting')
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      self._bar.stop()
    else:
      self._line()

  def phase(
    self, name: str, total: int | None = None, round: int = 0, rounds: int = 0, stage: str = '', done: int = 0
  ) -> None:
    """Starts a phase (sample, judge, update, evaluate) of `total` units in round `round` of `rounds`, from 1.

    Round 0 is outside the rounds: before the first, or, as a checkpoint's or an evaluation's, part of the time of the
    round before it. `done` units were done by an earlier process: shown, but not part of the rate.
    """
    now = self._clock()
    if self._name == 'evaluate' and not self._round:
      self._opening_seconds += now - self._phase_start
    stage = stage or self._stage
    if round and (stage, round) != (self._stage, self._round):
      if self._round:
        self._round_seconds.append(now - self._round_start)
        self._ahead -= rounds if stage != self._stage else 0
      self._stage, self._round, self._rounds, self._round_start = stage, round, rounds, now
    self._name, self._total, self._tokens, self._phase_start = name, total, 0, now
    self._done = self._skipped = done
    if self._bar:
      self._bar.reset(self._task, total=total, completed=done, where=self._where())
    elif now - self._last_line >= PHASE_SECONDS:
      self._line()

  def advance(self, n: int = 1, tokens: int = 0) -> None:
    """`n` more units of the phase are done; `tokens` more were sampled, scored or learnt from."""
    self._done += n
    self._tokens += tokens
    if self._bar:
      self._bar.update(self._task, completed=self._done)
    elif self._clock() - self._last_line >= LINE_SECONDS:
      self._line()

  def note(self, text: str) -> None:
    """A line of its own, above the bar."""
    self._console.print(Text(text), soft_wrap=True)

  def table(self, rows: Iterable[Sequence[str]], header: Sequence[str] = ('', 'before', 'after')) -> None:
    """A table above the bar: a name and numbers as text in each row."""
    self._console.print(as_table(rows, header))

  def seconds_left(self) -> float | None:
    """For the whole run; None while nothing has been measured that could tell.

    Every round to come takes the mean of those measured; the first, which compiles, is left out as soon as there is
    another. A single bar goes on at its rate so far.
    """
    now = self._clock()
    if self._single:
      done = self._done - self._skipped
      if not self._total or not done:
        return None
      return (now - self._phase_start) * max(self._total - self._done, 0) / done
    if not self._round_seconds:
      return None
    measured = self._round_seconds[1:] or self._round_seconds
    mean = sum(measured) / len(measured)
    left = max(mean - (now - self._round_start), 0) + (self._rounds - self._round + max(self._ahead, 0)) * mean
    closing = self._round == self._rounds and self._name == 'evaluate'
    return left + max(self._opening_seconds - (now - self._phase_start if closing else 0), 0)

  def _where(self):
    place = f'{self._round}/{self._rounds}' if self._round else ''
    return ' '.join(part for part in (self._stage, place, self._name) if part)

  def _numbers(self):
    now = self._clock()
    parts = []
    if self._total is not None:
      parts.append(f'{self._done}/{self._total}')
    elif self._done:
      parts.append(f'{self._done}')
    if self._tokens and now > self._phase_start:
      parts.append(f'{self._tokens / (now - self._phase_start):,.0f} tok/s')
    return '  '.join([*parts, clock_text(now - self._start), f'left {clock_text(self.seconds_left())}'])

  def _line(self):
    self._last_line = self._clock()
    self.note(f'{self._where() or "done"}  {self._numbers()}')


class _Numbers(ProgressColumn):
  def __init__(self, progress):
    super().__init__()
    self._progress = progress

  def render(self, task):
    return Text(self._progress._numbers())


def quiet() -> Console:
  """Shows nothing: for all processes of a run but the first."""
  return Console(file=io.StringIO(), quiet=True)


def track(total: int | None, description: str, done: int = 0, **kwargs) -> Progress:
  """A single bar over `total` units (None: unknown), `done` of which an earlier process did."""
  progress = Progress(**kwargs)
  progress._single = True
  progress.phase(description, total, done=done)
  return progress


def as_table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> Table:
  table = Table(*header, box=None, pad_edge=False, header_style='bold')
  for column in table.columns[1:]:
    column.justify = 'right'
  for column in table.columns:
    column.no_wrap = True
  for row in rows:
    table.add_row(*(Text(cell) for cell in row))
  return table
