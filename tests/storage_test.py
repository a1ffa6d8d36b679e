"""Runs on object storage, against an emulator of it: our code, gcsfs, Orbax and TensorStore are the real ones."""

import hashlib
import importlib.util
import json
import os
import signal

import bucket
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kill_test import MOMENTS, assert_same, finish, outcome, start

from past_jax import storage
from past_jax.checkpoint import Checkpoints
from past_jax.main import main
from past_jax.types import UserError

HOST = {'cursor': {'step': 3}}


@pytest.fixture(scope='module')
def address():
  with bucket.serving() as address:
    yield address


@pytest.fixture
def where(address, request):
  """A folder in the bucket, of this test alone."""
  return f'gs://{bucket.NAME}/{request.node.name.replace("[", "-").rstrip("]")}'


def inside(where, name=''):
  """The name of the object in the bucket."""
  return f'{where.removeprefix(f"gs://{bucket.NAME}/")}/{name}'


def tree(scale=1.0):
  return {'state': {'a': jnp.arange(5000.0) * scale, 'b': jnp.full((3, 4), scale, jnp.bfloat16)}, 'n': np.arange(3)}


def same(x, y):
  return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def saved(where, steps, keep=2):
  checkpoints = Checkpoints(f'{where}/checkpoints', keep)
  for step in steps:
    checkpoints.save(step, tree(step), HOST)
  checkpoints.wait()
  return checkpoints


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_from_the_bucket(address, where):
  saved(where, [1, 2, 3])
  again = Checkpoints(f'{where}/checkpoints')
  assert again.steps() == [2, 3]  # the older one is gone
  restored = again.restore(tree())
  assert (restored.step, restored.host, restored.skipped) == (3, HOST, ())
  assert same(restored.tree, tree(3.0))
  assert same(again.restore(only='state/').tree['state'], tree(3.0)['state'])


def test_the_manifest_has_the_sha256_of_every_object(address, where):
  saved(where, [1])
  folder = inside(where, 'checkpoints/1/')
  manifest = json.loads(bucket.get(address, folder + 'manifest.json'))
  names = {name.removeprefix(folder) for name in bucket.listed(address, folder)}
  assert names == {*manifest, 'manifest.json'} and any(name.startswith('state/') for name in names)
  for name, entry in manifest.items():
    content = bucket.get(address, folder + name)
    assert entry == {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize('damage', ['flipped', 'deleted', 'added'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(address, where, damage):
  saved(where, [1, 2])
  folder = inside(where, 'checkpoints/2/')
  victim = max(bucket.listed(address, folder + 'state/d/'), key=lambda name: len(bucket.get(address, name)))
  content = bytearray(bucket.get(address, victim))
  content[len(content) // 2] ^= 1
  if damage == 'flipped':
    bucket.put(address, victim, bytes(content))
  elif damage == 'deleted':
    bucket.delete(address, victim)
  else:
    bucket.put(address, folder + 'state/more', b'x')
  restored = Checkpoints(f'{where}/checkpoints').restore(tree())
  assert restored.step == 1 and same(restored.tree, tree(1.0))
  words = {'flipped': 'has a wrong SHA-256', 'deleted': 'is missing', 'added': 'is not in its manifest.json'}
  assert words[damage] in restored.skipped[0]


def test_an_unfinished_checkpoint_is_ignored_and_then_removed(address, where):
  saved(where, [1, 2])
  bucket.delete(address, inside(where, 'checkpoints/2/manifest.json'))
  again = Checkpoints(f'{where}/checkpoints')
  assert again.steps() == [1] and again.latest_host() == HOST and again.restore(tree()).step == 1
  again.save(3, tree(3.0), HOST)
  again.wait()
  assert not bucket.listed(address, inside(where, 'checkpoints/2/')) and again.restore(tree()).step == 3


def test_a_bucket_that_does_not_exist(address):
  with pytest.raises(UserError, match='checkpoint at step 1 in gs://no-such-bucket/run cannot be written: .*bucket'):
    Checkpoints('gs://no-such-bucket/run').save(1, tree(), HOST)
  with pytest.raises(UserError, match='gs://no-such-bucket/run cannot be written'):
    storage.Workdir('gs://no-such-bucket/run').probe()


# --- small files ----------------------------------------------------------------------------------------------------


def test_files_that_grow_are_copied_whole_and_only_when_they_changed(address, where):
  with storage.Workdir(where) as home:
    home.probe()
    assert not bucket.listed(address, inside(where))
    (home.local / 'metrics.jsonl').write_text('{"step": 1}\n')
    (home.local / 'config.json').write_text('{}')
    (home.local / 'config.json.tmp').write_text('half')
    (home.local / 'tensorboard').mkdir()
    (home.local / 'tensorboard' / 'events').write_bytes(b'\0\xff')
    home.push()
    first = bucket.listed(address, inside(where))
    names = {'metrics.jsonl', 'config.json', 'tensorboard/events'}
    assert set(first) == {inside(where, name) for name in names}
    with (home.local / 'metrics.jsonl').open('a') as file:
      file.write('{"step": 2}\n')
    home.push()
    second = bucket.listed(address, inside(where))
    assert [name for name in first if first[name] != second[name]] == [inside(where, 'metrics.jsonl')]
    (home.local / 'report.html').write_text('at the end')
  assert bucket.get(address, inside(where, 'metrics.jsonl')) == b'{"step": 1}\n{"step": 2}\n'
  assert bucket.get(address, inside(where, 'report.html')) == b'at the end'


def test_the_next_process_begins_with_what_is_there(address, where):
  bucket.put(address, inside(where, 'metrics.jsonl'), b'{"step": 1}\n')
  bucket.put(address, inside(where, 'checkpoints/1/host.json'), b'{}')
  before = bucket.listed(address, inside(where))
  with storage.Workdir(where) as home:
    assert [path.name for path in home.local.iterdir()] == ['metrics.jsonl']
    home.push()
  assert bucket.listed(address, inside(where)) == before
  with storage.Workdir(where, writes=False) as reader:
    (reader.local / 'metrics.jsonl').write_text('not mine')
    reader.push()
  assert bucket.listed(address, inside(where)) == before


def test_changes_are_copied_now_and_then(address, where, monkeypatch):
  monkeypatch.setattr(storage, 'SECONDS', 0.01)
  with storage.Workdir(where) as home:
    (home.local / 'metrics.jsonl').write_text('{"step": 1}\n')
    while not bucket.listed(address, inside(where)):
      pass
  assert bucket.get(address, inside(where, 'metrics.jsonl')) == b'{"step": 1}\n'


def test_a_local_folder_is_its_own(tmp_path):
  with storage.Workdir(tmp_path / 'run') as home:
    assert home.local == home.path == tmp_path / 'run'
    home.probe()
    home.push()
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize('where', ['s3://bucket/run', 'gs://bucket', 'gs://bucket/', 'gs:///run', 'http://host/run'])
def test_places_that_are_none(where):
  with pytest.raises(UserError, match='is no place for a run: give a local folder, or gs://BUCKET/FOLDER'):
    storage.path(where)


def test_without_gcsfs_it_says_what_to_install(monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'gcsfs' else real(name))
  with pytest.raises(UserError, match='pip install gcsfs'):
    storage.path('gs://bucket/run')


@pytest.mark.parametrize(
  'argv',
  [
    ['export', '--workdir=runs/x', '--out=gs://bucket/out'],
    ['sample', '--model=scratch:tiny', '--prompts=p.jsonl', '--out=gs://bucket/out.jsonl'],
    ['ablate', 'configs/ablations/dpo.py', '--workdir=gs://bucket/runs'],
  ],
)
def test_what_can_only_be_local_says_so(argv, capsys):
  assert main(argv) == 2
  assert 'only local files here' in capsys.readouterr().err


# --- the whole command ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_object_storage_is_killed_and_ends_like_a_local_one(where, tmp_path):
  finish(start(tmp_path / 'local'))
  finish(start(where, MOMENTS['before the second checkpoint has its manifest']), -signal.SIGKILL)
  assert 'resuming from checkpoint' in finish(start(where))
  with storage.Workdir(where, writes=False) as home:
    assert {'config.json', 'timing.json', 'report.html'} <= set(os.listdir(home.local))
    remote = outcome(home.local, Checkpoints(f'{where}/checkpoints'))
  assert_same(remote, outcome(tmp_path / 'local'))
  assert 'This run is finished' in finish(start(where))
  assert main(['report', f'--workdir={where}']) == 0
  assert main(['export', f'--workdir={where}', f'--out={tmp_path / "model"}']) == 0
  assert (tmp_path / 'model' / 'config.json').exists()
