"""Sources of every form, their error messages, and the resumable order."""

import json
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from past_jax.data import sources
from past_jax.data.stream import Stream, permutation
from past_jax.types import Example, Question, UserError

COLUMNS = {'prompt': '', 'text': 'context', 'target': '', 'questions': 'questions', 'anchors': ''}
ROWS = [
  {'context': f'Passage {i}, naïve.', 'questions': [{'question': f'Q{i}{j}?', 'answer': f'é{j}'} for j in range(i)]}
  for i in range(3)
]
EXPECTED = [
  (f'Passage {i}, naïve.', tuple(Question(f'Q{i}{j}?', f'é{j}', 'forward') for j in range(i))) for i in range(3)
]


def content(examples):
  return sorted((e.text, e.questions) for e in examples)  # TFDS shuffles when it writes


def write(path, *rows):
  lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
  path.write_bytes(b''.join((line if isinstance(line, bytes) else line.encode()) + b'\n' for line in lines))
  return str(path)


# --- JSONL --------------------------------------------------------------------------------------------------------


def test_jsonl_keeps_order_and_ignores_blank_lines(tmp_path):
  source = write(tmp_path / 'a.jsonl', b'\xef\xbb\xbf', ROWS[0], '', '  ', ROWS[1], ROWS[2])
  loaded = sources.load(source, columns=COLUMNS)
  assert [(e.text, e.questions) for e in loaded.examples] == EXPECTED
  assert [e.where for e in loaded.examples] == [f'{source}:{line}' for line in (2, 5, 6)]
  assert loaded.skipped == ()


def test_every_field_and_its_column(tmp_path):
  row = {
    'p': 'Say it.',
    'x': 'It.\u2028Still one row.',
    't': 'it',
    'q': [{'question': 'What?', 'answer': ['it', 'It'], 'kind': 'reversed'}, {'question': 'And?', 'answer': 'no'}],
    'a': ['one', 'two'],
    'other': 1,
  }
  source = write(tmp_path / 'a.jsonl', json.dumps(row, ensure_ascii=False))
  columns = {'prompt': 'p', 'text': 'x', 'target': 't', 'questions': 'q', 'anchors': 'a'}
  assert sources.load(source, columns=columns).examples == (
    Example(
      prompt='Say it.',
      text='It.\u2028Still one row.',
      anchors=('one', 'two'),
      target='it',
      questions=(Question('What?', 'it', 'reversed'), Question('And?', 'no', 'forward')),
      where=f'{source}:1',
    ),
  )


def test_null_is_absent_and_limit_counts_examples(tmp_path):
  source = write(tmp_path / 'a.jsonl', {'context': 'A', 'questions': None}, 'broken', ROWS[2], 'never read')
  loaded = sources.load(source, columns=COLUMNS, on_error='skip', limit=2)
  assert content(loaded.examples) == [('A', ()), EXPECTED[2]]
  assert len(loaded.skipped) == 1


@pytest.mark.parametrize(
  'questions, expected',
  [
    ({'question': ['a', 'b'], 'answer': ['1', '2']}, (Question('a', '1'), Question('b', '2'))),
    ({'question': ['a'], 'answer': [['1', 'one']], 'kind': ['two_hop']}, (Question('a', '1', 'two_hop'),)),
    ({'question': 'a', 'answer': ['1', 'one']}, (Question('a', '1'),)),
    ({'question': [], 'answer': []}, ()),
    ([], ()),
  ],
)
def test_shapes_of_questions(tmp_path, questions, expected):
  source = write(tmp_path / 'a.jsonl', {'context': 'A', 'questions': questions})
  assert sources.load(source, columns=COLUMNS).examples[0].questions == expected


BAD_ROWS = {
  'malformed': ('{"context": "A", }', ['not a line of JSON', 'property name']),
  'not UTF-8': (b'{"context": "\xff"}', ['not a line of JSON', "can't decode byte 0xff"]),
  'not an object': ('["A"]', ['a row must be a JSON object, not a list']),
  'missing column': (
    {'title': 'T', 'contexts': 'A', 'questions': []},
    [
      "no column 'context', which is to give text",
      'columns present: title, contexts, questions',
      '--config.data.text=contexts',
    ],
  ),
  'guess by length': ({'id': 'T', 'body': 'A long one'}, ['--config.data.text=body']),
  'guess by shape': (
    {'context': 'A', 'qas': []},
    ['--config.data.questions=qas', '--config.data.questions= to'],
  ),
  'wrong type': ({'context': 3, 'questions': []}, ["text (column 'context') must be a string, not a number"]),
  'wrong type of questions': (
    {'context': 'A', 'questions': 'why'},
    ['must be a list of {question, answer}, not a s'],
  ),
  'wrong type of question': ({'context': 'A', 'questions': ['why']}, ['item 0 must be {question, answer}, not a s']),
  'wrong type of answer': (
    {'context': 'A', 'questions': [{'question': 'q', 'answer': 4}]},
    ['item 0 answer must be'],
  ),
  'no answer': ({'context': 'A', 'questions': [{'question': 'q', 'answer': []}]}, ['item 0 needs a question and an']),
  'uneven': ({'context': 'A', 'questions': {'question': ['q'], 'answer': []}}, ['lengths: question 1, answer 0']),
  'empty text': ({'context': ' ', 'questions': []}, ['the row has neither prompt nor text']),
  'half a surrogate pair': ('{"context": "\\ud800", "questions": []}', ['is not Unicode text', 'surrogates']),
}


@pytest.mark.parametrize('row, parts', BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, row, parts):
  source = write(tmp_path / 'a.jsonl', ROWS[0], row, ROWS[2])
  with pytest.raises(UserError) as e:
    sources.load(source, columns=COLUMNS)
  message = str(e.value)
  assert message.startswith(f'{source}:2: ')
  assert all(part in message for part in parts), message
  assert '\n' not in message and 'data.on_error=skip' in message

  loaded = sources.load(source, columns=COLUMNS, on_error='skip')
  assert content(loaded.examples) == [EXPECTED[0], EXPECTED[2]]
  assert loaded.skipped == (message.rsplit(' (--config.data.on_error', 1)[0],)


def test_anchors_of_a_wrong_type(tmp_path):
  source = write(tmp_path / 'a.jsonl', {'x': 'A', 'a': ['b', 3]}, {'x': 'A', 'a': 3}, {'x': 'A', 'a': 'one'})
  loaded = sources.load(source, columns={'text': 'x', 'anchors': 'a'}, on_error='skip')
  assert [e.anchors for e in loaded.examples] == [('one',)]
  assert 'item 1 must be a string, not a number' in loaded.skipped[0]
  assert 'must be a list of strings, not a number' in loaded.skipped[1]


def test_nothing_that_can_be_used(tmp_path):
  source = write(tmp_path / 'bad.jsonl', '1', '2')
  with pytest.raises(UserError, match=r'none of its 2 rows can be used; the first: .*bad.jsonl:1: a row must be'):
    sources.load(source, columns=COLUMNS, on_error='skip')
  for rows in ((), ('', ' ')):
    source = write(tmp_path / 'empty.jsonl', *rows)
    with pytest.raises(UserError, match='empty.jsonl is empty'):
      sources.load(source, columns=COLUMNS)


# --- what is not there --------------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest(tmp_path):
  write(tmp_path / 'train.jsonl', ROWS[0])
  with pytest.raises(UserError, match=r'trian.jsonl: no such file \(did you mean train.jsonl\?\)'):
    sources.load(str(tmp_path / 'trian.jsonl'), columns=COLUMNS)
  with pytest.raises(UserError, match=r'nowhere/train.jsonl: no such file$'):
    sources.load(str(tmp_path / 'nowhere/train.jsonl'), columns=COLUMNS)


@pytest.mark.parametrize('source', ['train.tsv', 'hub:squad', 'hf:', 'squad', ''])
def test_unknown_form_lists_the_forms(source):
  with pytest.raises(
    UserError, match=r'unknown data source .*FILE.jsonl, FILE.csv, hf:NAME, tfds:NAME, world:NAME, or a dir'
  ):
    sources.load(source, columns=COLUMNS)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'columns': {**COLUMNS, 'question': 'q'}}, "no field 'question' (did you mean questions?)"),
    ({'columns': {'questions': 'questions'}}, 'no column is named for prompt or text'),
    ({'on_error': 'ignore'}, 'on_error=ignore: must be stop or skip'),
    ({'limit': -1}, 'limit=-1: must be 0 (all) or more'),
  ],
)
def test_bad_arguments(tmp_path, arguments, message):
  source = write(tmp_path / 'a.jsonl', ROWS[0])
  with pytest.raises(UserError) as e:
    sources.load(source, **{'columns': COLUMNS, **arguments})
  assert message in str(e.value)


@pytest.mark.parametrize(
  'source, module, extra',
  [('hf:squad', 'datasets', 'hub'), ('tfds:squad', 'tensorflow_datasets', 'tfds')],
)
def test_absent_library_names_the_extra(monkeypatch, source, module, extra):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError) as e:
    sources.load(source, columns=COLUMNS)
  assert source in str(e.value) and module in str(e.value) and f'pip install "past-jax[{extra}]"' in str(e.value)


# --- datasets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def datasets_dir(tmp_path_factory):
  import datasets

  datasets.disable_progress_bars()
  path = tmp_path_factory.mktemp('datasets')
  rows = datasets.Dataset.from_list(ROWS)
  rows.save_to_disk(path / 'one')
  datasets.Dataset.from_list(ROWS, split='train').save_to_disk(path / 'named')
  datasets.DatasetDict(train=rows, test=rows.select([1])).save_to_disk(path / 'splits')
  (path / 'files').mkdir()
  write(path / 'files' / 'train.jsonl', *ROWS)
  return path


@pytest.mark.parametrize('name', ['one', 'named', 'splits'])
def test_local_datasets_directory(datasets_dir, name):
  loaded = sources.load(str(datasets_dir / name), columns=COLUMNS)
  assert [(e.text, e.questions) for e in loaded.examples] == EXPECTED
  assert loaded.examples[2].where == f'{datasets_dir / name} train row 2'


def test_splits_of_a_datasets_directory(datasets_dir):
  loaded = sources.load(str(datasets_dir / 'splits'), columns=COLUMNS, split='test')
  assert content(loaded.examples) == [EXPECTED[1]]
  with pytest.raises(UserError, match=r"no split 'tset' \(did you mean test\?\): its splits are train, test"):
    sources.load(str(datasets_dir / 'splits'), columns=COLUMNS, split='tset')
  with pytest.raises(UserError, match="no split 'test': it holds train"):
    sources.load(str(datasets_dir / 'named'), columns=COLUMNS, split='test')


def test_missing_column_of_a_dataset(datasets_dir):
  with pytest.raises(UserError, match=r"one train row 0: no column 'txet'.*columns present: context, questions; set"):
    sources.load(str(datasets_dir / 'one'), columns={'text': 'txet'})


def test_hub_name_loads_and_its_errors_are_one_line(datasets_dir, tmp_path, monkeypatch):
  import datasets

  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
  source = f'hf:{datasets_dir / "files"}'  # load_dataset takes a folder of files as it takes a name
  assert content(sources.load(source, columns=COLUMNS).examples) == EXPECTED
  with pytest.raises(UserError, match=r'files: Unknown split "nope"'):
    sources.load(source, columns=COLUMNS, split='nope')
  with pytest.raises(UserError, match="files: BuilderConfig 'nope' not found"):
    sources.load(f'{source}:nope', columns=COLUMNS)


def test_directory_of_something_else(tmp_path):
  (tmp_path / 'notes.txt').write_text('x')
  with pytest.raises(UserError, match=r'looked in it for features.json \(TFDS\), dataset_dict.json or state.json'):
    sources.load(str(tmp_path), columns=COLUMNS)


# --- TFDS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  """A prepared version directory, written by a builder and without TensorFlow."""
  import tensorflow_datasets as tfds

  features = tfds.features

  class PastJaxPassages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      question = {'question': features.Text(), 'answer': features.Text()}
      return tfds.core.DatasetInfo(
        builder=self,
        features=features.FeaturesDict({'context': features.Text(), 'questions': features.Sequence(question)}),
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {'train': self._generate_examples(ROWS), 'test': self._generate_examples(ROWS[:1])}

    def _generate_examples(self, rows):
      yield from enumerate(rows)

  tfds.disable_progress_bar()
  builder = PastJaxPassages(data_dir=tmp_path_factory.mktemp('tfds'), file_format='array_record')
  builder.download_and_prepare()
  return builder.data_path


def test_local_tfds_directory(tfds_dir):
  loaded = sources.load(str(tfds_dir), columns=COLUMNS)
  assert content(loaded.examples) == EXPECTED
  assert content(sources.load(str(tfds_dir), columns=COLUMNS, split='test').examples) == [EXPECTED[0]]
  assert 'tensorflow' not in sys.modules
  with pytest.raises(UserError, match="Unknown split 'nope'. Should be one of"):
    sources.load(str(tfds_dir), columns=COLUMNS, split='nope')


def test_damaged_or_foreign_directories(datasets_dir, tfds_dir, tmp_path):
  shutil.copytree(datasets_dir / 'one', tmp_path / 'one')
  next((tmp_path / 'one').glob('*.arrow')).unlink()
  with pytest.raises(UserError, match='one: .*data-00000'):
    sources.load(str(tmp_path / 'one'), columns=COLUMNS)
  shutil.copytree(tfds_dir, tmp_path / '1.0.0')
  info = tmp_path / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='1.0.0: .*TFRECORD is not supported'):
    sources.load(str(tmp_path / '1.0.0'), columns=COLUMNS)


def test_directory_above_a_tfds_version(tfds_dir):
  with pytest.raises(UserError, match=f'did you mean {tfds_dir}'):
    sources.load(str(tfds_dir.parent), columns=COLUMNS)


def test_tfds_name(tfds_dir):
  import tensorflow_datasets as tfds

  tfds.core.add_data_dir(tfds_dir.parent.parent)
  assert content(sources.load('tfds:past_jax_passages', columns=COLUMNS).examples) == EXPECTED
  with pytest.raises(UserError, match='^tfds:past_jax_pasages: .*not found'):
    sources.load('tfds:past_jax_pasages', columns=COLUMNS)


# --- the embedded world -------------------------------------------------------------------------------------------


def test_world_is_a_source():
  loaded = sources.load('world:people', columns={'text': 'text'}, world={'count': 5, 'seed': 1, 'relations': False})
  assert len(loaded.examples) == 5 and loaded.skipped == ()
  assert (
    sources.load('world:people', columns={'text': 'text'}, world={'count': 5, 'seed': 1}, limit=2).examples
    == (loaded.examples[:2])
  )


@pytest.mark.parametrize(
  'source, world, message',
  [
    ('world:towns', {'count': 5, 'seed': 1}, "unknown world 'world:towns': there is world:arc, "),
    ('world:people', None, 'world:people takes count, seed, relations, split, not'),
    ('world:people', {'count': 5, 'sed': 1}, "unexpected keyword argument 'sed'"),
    ('world:people', {'count': 5000, 'seed': 1}, 'there are 1 to 640 distinct people'),
    ('world:preferences', {'count': 5, 'seed': 1, 'flips': 1.5}, 'a share between 0 and 1'),
  ],
)
def test_world_errors(source, world, message):
  with pytest.raises(UserError) as e:
    sources.load(source, columns={'text': 'text'}, world=world)
  assert message in str(e.value)


# --- stream -------------------------------------------------------------------------------------------------------


def taken(stream, chunks):
  position, parts = stream.start(), []
  for count in chunks:
    part, position = stream.take(json.loads(json.dumps(position)), count)  # as a checkpoint gives it back
    assert part.shape == (count,) and part.dtype == np.int64
    parts.append(part)
  return np.concatenate(parts), position


@settings(deadline=None, max_examples=60)
@given(
  n=st.integers(1, 12),
  seed=st.integers(0, 2**40),
  shuffle=st.booleans(),
  chunks=st.lists(st.integers(0, 30), min_size=1, max_size=6),
)
def test_any_chunking_is_the_same_sequence(n, seed, shuffle, chunks):
  stream = Stream(n, seed, shuffle)
  total = sum(chunks)
  pieces, end = taken(stream, chunks)
  whole, same_end = taken(stream, [total])
  np.testing.assert_array_equal(pieces, whole)
  assert end == same_end == {'epoch': total // n, 'index': total % n, 'n': n}
  for epoch in range(total // n):
    np.testing.assert_array_equal(np.sort(whole[epoch * n : (epoch + 1) * n]), np.arange(n))
  if not shuffle:
    np.testing.assert_array_equal(whole, np.arange(total) % n)


def test_epochs_and_seeds_differ():
  first, second = (taken(Stream(50, seed), [100])[0] for seed in (0, 1))
  assert not np.array_equal(first[:50], first[50:]) and not np.array_equal(first, second)


def test_the_order_never_changes():
  # A saved run relies on it. PCG64's words are fixed by numpy's compatibility policy, as `permutation` says.
  np.testing.assert_array_equal(permutation(8, 0, 0), [3, 2, 1, 6, 0, 7, 4, 5])


def test_permutation_is_uniform():
  counts = np.zeros((4, 4))
  for seed in range(2000):
    counts[np.arange(4), permutation(4, seed, 1)] += 1
  np.testing.assert_allclose(counts, 500, atol=5 * np.sqrt(2000 * 0.25 * 0.75))


def test_a_changed_number_of_examples_is_refused():
  _, position = Stream(5, 0).take(Stream(5, 0).start(), 3)
  with pytest.raises(UserError, match='had 5 examples when this run was saved and now have 6'):
    Stream(6, 0).take(position, 1)
  with pytest.raises(UserError, match='no example to stream'):
    Stream(0, 0)
  with pytest.raises(UserError, match='seed -1: must be 0 or more'):
    Stream(2, -1).take(Stream(2, -1).start(), 1)
