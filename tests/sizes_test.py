"""The page of sizes: made from what was compiled, which compiling again gives again."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / 'scripts' / 'sizes.py'
spec = importlib.util.spec_from_file_location('sizes', SCRIPT)
sizes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sizes)


@pytest.fixture(scope='module')
def found():
  return json.loads(sizes.FOUND.read_text())


def test_the_page_is_that_of_what_was_compiled(found):
  """If it fails: python scripts/sizes.py --table."""
  assert sizes.TABLE.read_text() == sizes.page(found)
  assert set(found) <= {row.name for row in sizes.rows()}


@pytest.mark.parametrize(
  'only, said',
  [
    ('(8b', '--only=(8b: no regular expression: missing )'),
    ('9b', '--only=9b: it is in none of these rows:\n  1b Llama-3.2-1B, all, v5e:2x2, 2048 + 8 x 256\n'),
  ],
)
def test_an_odd_choice_of_rows_is_refused_in_a_sentence(capsys, only, said):
  with pytest.raises(SystemExit) as end:
    sizes.main([f'--only={only}'])
  error = capsys.readouterr().err
  assert end.value.code == 2 and said in error and 'Traceback' not in error


def test_rows_are_chosen_by_size_model_and_slice():
  assert [row.size for row in sizes.chosen('')] == [row.size for row in sizes.rows()]
  assert {row.model for row in sizes.chosen('^8b Llama.*v6e')} == {'Llama-3.1-8B'}
  assert {row.slice for row in sizes.chosen('^8b Llama.*v6e')} == {'v6e:2x4'}


@pytest.mark.slow
def test_the_smallest_size_is_compiled_to_what_the_page_says(found):
  row = sizes.rows()[0]
  again, told = sizes.compiled(row)['programs'], found[row.name]['programs']
  assert [program['name'] for program in again] == [program['name'] for program in told]
  for now, before in zip(again, told):
    assert now['fits'] == before['fits']
    for key in ('peak_bytes', 'flops', 'bytes'):  # another libtpu may schedule otherwise
      assert now[key] == pytest.approx(before[key], rel=0.1)
