"""From any source of rows to `Example`s.

| source | read as |
| --- | --- |
| `FILE.jsonl` | one JSON object a line, UTF-8; blank lines are ignored |
| `FILE.csv` | a line of column names, then rows; every value is a string |
| `hf:NAME`, `hf:NAME:CONFIG` | `datasets.load_dataset` |
| `tfds:NAME` | TensorFlow Datasets in ArrayRecord form; TensorFlow itself is not needed |
| a directory | what `datasets` wrote with `save_to_disk`, or a prepared TFDS version directory |
| `world:NAME` | the invented worlds of `worlds.TABLE` |

A column is named, or put together: '{prompt}{completion}' is a template over columns; a list becomes its items with
spaces between them.
"""

import csv
import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from past_jax.data import worlds
from past_jax.types import Example, Question, UserError

FIELDS = ('prompt', 'text', 'target', 'questions', 'anchors', 'chosen', 'rejected', 'preference', 'choices')
FORMS = 'FILE.jsonl, FILE.csv, hf:NAME, tfds:NAME, world:NAME, or a directory of datasets.save_to_disk or of TFDS'

Row = tuple[str, Callable[[], Any]]  # (where, read): reading is put off so that a bad row can be skipped


class Loaded(NamedTuple):
  examples: tuple[Example, ...]
  skipped: tuple[str, ...] = ()  # 'file:line: reason', one for each row left out


class _BadRow(Exception):
  """What is wrong with one row, without its place."""


def load(
  source: str,
  *,
  columns: Mapping[str, str],
  split: str = 'train',
  on_error: str = 'stop',
  limit: int = 0,
  world: Mapping[str, Any] | None = None,
) -> Loaded:
  """Reads the examples of a source, in its order.

  Args:
    source: one of the forms in the module's docstring.
    columns: our field (one of FIELDS) -> the source's column; '' leaves the field out. A column that is named must be
      in every row; its value may be null. `questions` holds rows of `{question, answer, kind (optional)}` or a dict of
      such lists; of a list of accepted answers the first counts. `chosen` and `rejected` become the two anchors, in
      this order. A prompt may be a list of messages `{role, content}`, and then they are such lists, too: of what
      follows it, or, without a column for the prompt, of the whole chat, of which what both share is the prompt. Where
      the data say which of two columns is better, `preference` names theirs: a number from 1, the column of `chosen`,
      to 2, that of `rejected`. `choices`, a list, makes the prompt a question to choose the answer of, which is
      `target`: one of them, its index from 0, or its letter.
    split: which split; a JSONL file and a `Dataset` saved without a split name have only themselves.
    on_error: 'stop' at the first bad row, or 'skip' bad rows and name them in `skipped`.
    limit: the most examples to return; 0: all.
    world: the arguments of a world of `worlds.TABLE`, which has no columns and no bad rows.

  Raises:
    UserError: the source or the split is not there, a column is missing, a row is bad (on_error='stop'), or no
      example remains.
  """
  _check_arguments(columns, on_error, limit)
  if source.startswith('world:'):
    return Loaded(_world(source, world)[: limit or None])
  examples, skipped = [], []
  for where, read in _rows(source, split):
    try:
      examples.append(_example(read(), columns, where))
    except _BadRow as e:
      message = f'{where}: {e}'
      if on_error == 'stop':
        raise UserError(f'{message} (--config.data.on_error=skip leaves such rows out)') from None
      skipped.append(message)
    if limit and len(examples) == limit:
      break
  if not examples:
    raise UserError(
      f'{source}: none of its {len(skipped)} rows can be used; the first: {skipped[0]}'
      if skipped
      else f'{source} is empty: it must hold at least one row'
    )
  return Loaded(tuple(examples), tuple(skipped))


def _check_arguments(columns: Mapping[str, str], on_error: str, limit: int) -> None:
  for field in columns:
    if field not in FIELDS:
      raise UserError(f'data has no field {field!r}{_nearest(field, FIELDS)}: the fields are {", ".join(FIELDS)}')
  chosen, rejected = (columns.get(field) for field in ('chosen', 'rejected'))
  if not chosen and not any(columns.get(field) for field in ('prompt', 'text')):
    raise UserError('no column is named for prompt or text: set --config.data.prompt or --config.data.text')
  if bool(chosen) != bool(rejected):
    raise UserError('a preference is between two: set both --config.data.chosen and --config.data.rejected, or neither')
  if columns.get('preference') and not chosen:
    raise UserError('--config.data.preference is between the columns of --config.data.chosen and rejected: name them')
  if chosen and columns.get('anchors'):
    raise UserError('--config.data.anchors and --config.data.chosen both give completions: leave one of them out')
  if on_error not in ('stop', 'skip'):
    raise UserError(f'--config.data.on_error={on_error}: must be stop or skip')
  if limit < 0:
    raise UserError(f'--config.data.limit={limit}: must be 0 (all) or more')


def _world(source: str, world: Mapping[str, Any] | None) -> tuple[Example, ...]:
  name = source.removeprefix('world:')
  if name not in worlds.TABLE:
    raise UserError(f'unknown world {source!r}: there is {", ".join(f"world:{known}" for known in worlds.TABLE)}')
  make = worlds.TABLE[name]
  try:
    return make(**(world or {})).examples
  except TypeError as e:
    takes = ', '.join(inspect.signature(make).parameters)
    raise UserError(f'{source} takes {takes}, not {dict(world or {})}: {e}') from e


# --- rows of each source ------------------------------------------------------------------------------------------


def _rows(source: str, split: str) -> Iterator[Row]:
  form, _, name = source.partition(':')
  path = Path(source).expanduser()
  if form == 'hf' and name:
    return _listed(_hub(name, split), f'{source} {split}')
  if form == 'tfds' and name:
    return _listed(_tfds(source, split, lambda t: t.builder(name, file_format='array_record')), f'{source} {split}')
  if source and path.is_dir():
    return _listed(_directory(path, split), f'{source} {split}')
  if path.suffix not in ('.jsonl', '.csv'):
    near = _nearest(path.name, _siblings(path))
    raise UserError(f'unknown data source {source!r}{near}: a source is {FORMS}')
  if not path.exists():
    raise UserError(f'{source}: no such file{_nearest(path.name, _siblings(path))}')
  return _jsonl(path) if path.suffix == '.jsonl' else _csv(path)


def _jsonl(path: Path) -> Iterator[Row]:
  try:
    with path.open('rb') as lines:
      for number, line in enumerate(lines, 1):
        if line.strip(b'\xef\xbb\xbf \t\r\n'):  # some editors start a file with the byte order mark
          yield f'{path}:{number}', functools.partial(_json, line)
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e


def _csv(path: Path) -> Iterator[Row]:
  try:
    with path.open(encoding='utf-8-sig', newline='') as lines:
      reader = csv.DictReader(lines)
      for row in reader:
        yield f'{path}:{reader.line_num}', functools.partial(_whole, row)
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e
  except (UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{path} is not a CSV file in UTF-8: {e}') from e


def _whole(row: dict) -> dict:
  if None in row or None in row.values():
    raise _BadRow('the line has another number of values than the first line has names')
  return row


def _json(line: bytes) -> Any:
  try:
    return json.loads(line.decode('utf-8-sig'))
  except ValueError as e:  # of UTF-8 as of JSON
    raise _BadRow(f'not a line of JSON: {e}') from e


def _listed(rows: Iterable[Any], where: str) -> Iterator[Row]:
  for number, row in enumerate(rows):
    yield f'{where} row {number}', lambda row=row: row


def _directory(path: Path, split: str) -> Iterable[Any]:
  def holds(name):
    return (path / name).exists()

  if holds('features.json'):
    return _tfds(str(path), split, lambda tfds: tfds.builder_from_directory(path))
  if holds('dataset_dict.json') or holds('state.json'):
    return _saved(path, split)
  inner = sorted(p.parent for p in (*path.glob('*/features.json'), *path.glob('*/*/features.json')))
  raise UserError(
    f'{path} is not a directory of data: looked in it for features.json (TFDS), dataset_dict.json or state.json '
    f'(datasets.save_to_disk)' + (f'; did you mean {inner[-1]}?' if inner else '')
  )


def _saved(path: Path, split: str) -> Iterable[Any]:
  datasets = _import('datasets', 'hub', path)
  try:
    found = datasets.load_from_disk(str(path))
  except (OSError, ValueError) as e:  # a file of it is missing or damaged
    raise UserError(f'{path}: {_first_line(e)}') from e
  if isinstance(found, datasets.DatasetDict):
    if split not in found:
      raise UserError(f'{path}: no split {split!r}{_nearest(split, found)}: its splits are {", ".join(found)}')
    return found[split]
  if found.split is not None and str(found.split) != split:
    raise UserError(f'{path}: no split {split!r}: it holds {found.split}')
  return found


def _hub(name: str, split: str) -> Iterable[Any]:
  datasets = _import('datasets', 'hub', f'hf:{name}')
  name, _, config = name.partition(':')
  try:
    return datasets.load_dataset(name, config or None, split=split)
  except (OSError, ValueError) as e:  # not found, no network, no such split, no such or no named config
    raise UserError(f'hf:{name}: {_first_line(e)}') from e


def _tfds(source: str, split: str, builder: Callable[[Any], Any]) -> Iterable[Any]:
  tfds = _import('tensorflow_datasets', 'tfds', source)
  try:
    built = builder(tfds)
    built.download_and_prepare()  # returns at once when the data are there
    return built.as_data_source(split)
  except (OSError, ValueError, NotImplementedError) as e:  # not found, no network, no such split, not ArrayRecord
    raise UserError(f'{source}: {_first_line(e)}') from e
  except ImportError as e:
    raise UserError(f'{source} cannot be read: {e}; run: pip install "past-jax[tfds]"') from e


def _import(module: str, extra: str, source: object) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise UserError(f'{source} needs {module} ({e}); run: pip install "past-jax[{extra}]"') from e


# --- one row ------------------------------------------------------------------------------------------------------


def _example(row: Any, columns: Mapping[str, str], where: str) -> Example:
  if not isinstance(row, Mapping):
    raise _BadRow(f'a row must be a JSON object, not {_kind(row)}')
  value = {field: _plain(_column(row, field, name)) for field, name in columns.items() if name}
  choices, target = _choices(value.get('choices'), value.get('target'), columns)
  messages, prompt, anchors = (), value.get('prompt'), _anchors(value.get('anchors'), columns)
  if isinstance(prompt, list):
    messages = _messages(prompt, columns, 'prompt')
  if columns.get('chosen'):
    messages, anchors = _preference(value, columns, messages)
    anchors = _best_first(value.get('preference'), columns, anchors)
  example = Example(
    prompt='\n'.join(m['content'] for m in messages) if messages else _string(prompt, columns, 'prompt'),
    text=_string(value.get('text'), columns, 'text'),
    anchors=anchors,
    messages=messages,
    target=_string(target, columns, 'target'),
    questions=_questions(value.get('questions'), columns),
    where=where,
  )
  if choices:
    question = Question(example.prompt, example.target, choices=choices)
    example = dataclasses.replace(example, questions=(*example.questions, question))
  if not (example.prompt.strip() or example.text.strip()):
    raise _BadRow('the row has neither prompt nor text')
  return example


def _column(row: Mapping[str, Any], field: str, name: str) -> Any:
  if name in row:
    return row[name]
  if '{' in name:
    parts = re.split(r'\{([^{}]+)\}', name)
    parts[1::2] = [_written(_plain(_column(row, field, part))) for part in parts[1::2]]
    return ''.join(parts)
  near = difflib.get_close_matches(name, row, 1)
  if field in ('questions', 'anchors'):
    alike = [c for c, value in row.items() if isinstance(value, list | Mapping | np.ndarray)]
  else:
    alike = sorted((c for c, value in row.items() if isinstance(value, str | bytes)), key=lambda c: -len(row[c]))
  guess = (*near, *alike, 'COLUMN')[0]
  raise _BadRow(
    f'no column {name!r}, which is to give {field}; columns present: {", ".join(map(str, row)) or "none"}; '
    f'set e.g. --config.data.{field}={guess}, or --config.data.{field}= to do without'
  )


def _written(value: Any) -> str:
  return ' '.join(map(_written, value)) if isinstance(value, list) else '' if value is None else str(value)


def _plain(value: Any) -> Any:
  """Python's own types: TFDS gives bytes and numpy arrays."""
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as e:
      raise _BadRow(f'not UTF-8: {e}') from e
  if isinstance(value, Mapping):
    return {key: _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return value


def _string(value: Any, columns: Mapping[str, str], field: str, part: str = '') -> str:
  if value is None:
    return ''
  if not isinstance(value, str):
    raise _BadRow(f'{field} (column {columns[field]!r}){part} must be a string, not {_kind(value)}')
  try:
    value.encode()
  except UnicodeEncodeError as e:  # JSON can spell half of a surrogate pair, which no tokenizer takes
    raise _BadRow(f'{field} (column {columns[field]!r}){part} is not Unicode text: {e.reason}') from e
  return value


def _anchors(value: Any, columns: Mapping[str, str]) -> tuple[str, ...]:
  if value is None:
    return ()
  if isinstance(value, str):
    value = [value]
  if not isinstance(value, list):
    raise _BadRow(f'anchors (column {columns["anchors"]!r}) must be a list of strings, not {_kind(value)}')
  return tuple(_string(v, columns, 'anchors', f' item {i}') for i, v in enumerate(value))


def _preference(value: Mapping[str, Any], columns: Mapping[str, str], messages: tuple) -> tuple[tuple, tuple]:
  """(the prompt as messages, (chosen, rejected)): strings after a prompt that is one, else messages after messages."""
  given = [value[field] for field in ('chosen', 'rejected')]
  chats = any(isinstance(x, list) for x in given)
  if chats and columns.get('prompt') and not messages:
    raise _BadRow('chosen and rejected are lists of messages and the prompt is not; --config.data.prompt= does without')
  if not chats:
    if messages or not columns.get('prompt'):
      raise _BadRow('chosen and rejected must be lists of messages: there is no prompt that is a string')
    return messages, tuple(_string(x, columns, field) for x, field in zip(given, ('chosen', 'rejected')))
  chosen, rejected = (_messages(x, columns, field) for x, field in zip(given, ('chosen', 'rejected')))
  if not messages:  # the turns that both begin with
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    messages, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
  if not messages:
    raise _BadRow('chosen and rejected begin differently, so there is no prompt that they share')
  return messages, (chosen, rejected)


def _best_first(preference: Any, columns: Mapping[str, str], anchors: tuple) -> tuple:
  if not columns.get('preference'):
    return anchors
  name = f'preference (column {columns["preference"]!r})'
  if not isinstance(preference, int | float) or not 1 <= preference <= 2:
    raise _BadRow(f'{name} must be a number from 1, the first is better, to 2, the second is; it is {preference!r}')
  if preference == 1.5:
    raise _BadRow(f'{name} is 1.5: a tie')
  return anchors if preference < 1.5 else anchors[::-1]


def _messages(value: Any, columns: Mapping[str, str], field: str) -> tuple[dict[str, Any], ...]:
  for i, message in enumerate(value if isinstance(value, list) else [value]):
    if not isinstance(message, dict) or not isinstance(message.get('role'), str):
      raise _BadRow(f'{field} (column {columns[field]!r}) item {i} must be a message {{role, content}}')
    _string(message.get('content', 0), columns, field, f' item {i} content')
  return tuple(value)


def _choices(value: Any, target: Any, columns: Mapping[str, str]) -> tuple[tuple[str, ...], Any]:
  """(the choices, the target as one of them); without choices the target as it is."""
  if value is None:
    return (), target
  name, of = f'choices (column {columns["choices"]!r})', f'target (column {columns.get("target", "")!r})'
  if not isinstance(value, list) or len(set(map(str, value))) != len(value) or len(value) < 2:
    raise _BadRow(f'{name} must be a list of two or more different strings; it is {value!r}')
  choices = tuple(_string(v, columns, 'choices', f' item {i}') for i, v in enumerate(value))
  named = {key: choice for i, choice in enumerate(choices) for key in (i, chr(ord('A') + i))}
  if target in choices:
    return choices, target
  if isinstance(target, bool) or target not in named:
    raise _BadRow(f'{of} must be one of the choices, its index from 0 or its letter; it is {target!r}')
  return choices, named[target]


def _questions(value: Any, columns: Mapping[str, str]) -> tuple[Question, ...]:
  if value is None:
    return ()
  name = f'questions (column {columns["questions"]!r})'
  if isinstance(value, dict):
    value = _transposed(value, name)
  if not isinstance(value, list):
    raise _BadRow(f'{name} must be a list of {{question, answer}}, not {_kind(value)}')
  questions = []
  for i, row in enumerate(value):
    if not isinstance(row, dict):
      raise _BadRow(f'{name} item {i} must be {{question, answer}}, not {_kind(row)}')
    answer = row.get('answer')
    if isinstance(answer, list):
      answer = answer[0] if answer else None
    choices, answer = _choices(row.get('choices'), answer, {'choices': columns['questions'], 'target': 'answer'})
    question = _string(row.get('question'), columns, 'questions', f' item {i} question')
    answer = _string(answer, columns, 'questions', f' item {i} answer')
    kind = _string(row.get('kind'), columns, 'questions', f' item {i} kind')
    if not (question.strip() and answer.strip()):
      raise _BadRow(f'{name} item {i} needs a question and an answer; it has {", ".join(row) or "nothing"}')
    questions.append(Question(question, answer, kind or 'forward', choices))
  return tuple(questions)


def _transposed(lists: dict[str, Any], name: str) -> list[dict[str, Any]]:
  """Datasets and TFDS store a sequence of dicts as a dict of lists."""
  if not all(isinstance(v, list) for v in lists.values()):
    return [lists]  # one question on its own
  if len({len(v) for v in lists.values()}) > 1:
    lengths = ', '.join(f'{key} {len(v)}' for key, v in lists.items())
    raise _BadRow(f'{name} is a dict of lists of different lengths: {lengths}')
  return [dict(zip(lists, items)) for items in zip(*lists.values())]


# --- words for messages -------------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
  names = {dict: 'an object', list: 'a list', str: 'a string', bool: 'a boolean', type(None): 'null'}
  return names.get(type(value), 'a number' if isinstance(value, int | float) else type(value).__name__)


def _nearest(name: str, names: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, names, 1)
  return f' (did you mean {near[0]}?)' if near else ''


def _siblings(path: Path) -> list[str]:
  return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
