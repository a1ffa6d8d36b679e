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
  """If it fails: python scripts/sizes.py --only=NOTHING."""
  assert sizes.TABLE.read_text() == sizes.page(found)
  assert set(found) <= {row.name for row in sizes.rows()}


@pytest.mark.slow
def test_the_smallest_size_is_compiled_to_what_the_page_says(found):
  row = sizes.rows()[0]
  again, told = sizes.compiled(row)['programs'], found[row.name]['programs']
  assert [program['name'] for program in again] == [program['name'] for program in told]
  for now, before in zip(again, told):
    assert now['fits'] == before['fits']
    for key in ('peak_bytes', 'flops', 'bytes'):  # another libtpu may schedule otherwise
      assert now[key] == pytest.approx(before[key], rel=0.1)
