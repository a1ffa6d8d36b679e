"""What is saved comes back bit for bit; damage is named and never used; a kill loses nothing that was saved."""

import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from past_jax.checkpoint import Checkpoints
from past_jax.types import Batch, Prompts, Selection, TrainState, UserError


def state(seed: int = 0) -> TrainState:
  rng = np.random.default_rng(seed)
  params = {
    'embed': jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
    'layer': {'kernel': jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16), 'frozen': None, 'none': {}},
    'odd': jnp.array([0.0, -0.0, np.nan, np.inf, 1e-42], jnp.float32),
  }
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 10)))
  return TrainState(jnp.int32(seed), params, optimizer.init(params))


def batch() -> Batch:
  ids = jnp.arange(24, dtype=jnp.int32).reshape(2, 3, 4)
  score = jnp.linspace(0.0, 1.0, 6).reshape(2, 3)
  none_BxJ = jnp.zeros((2, 0), jnp.int32)  # no pairs: an array without elements
  selection = Selection(none_BxJ, none_BxJ, jnp.zeros((2, 0)), score, score, jnp.zeros((2, 3), jnp.int32))
  prompts = Prompts(jnp.ones((2, 5), jnp.int32), jnp.array([5, 0], jnp.int32))
  return Batch(prompts, ids, jnp.full((2, 3), 4, jnp.int32), None, None, jnp.zeros((2, 3), jnp.int32), selection)


def abstract(tree, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(directory, *steps, keep=2) -> Checkpoints:
  checkpoints = Checkpoints(directory, keep)
  for step in steps:
    checkpoints.save(step, state(step), {'round': step})
  checkpoints.wait()
  return checkpoints


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A directory with checkpoints 4 and 8. Tests that write work on a copy."""
  directory = tmp_path_factory.mktemp('two') / 'checkpoints'
  save(directory, 4, 8)
  return directory


@pytest.fixture
def copied(two, tmp_path):
  return shutil.copytree(two, tmp_path / 'copy')


def test_restores_types_and_bits(tmp_path):
  tree = {'state': state(3), 'buffer': (batch(), None), 'host_array': np.arange(3), 'empty': {}}
  checkpoints = Checkpoints(tmp_path / 'not' / 'there' / 'yet')
  assert checkpoints.restore(abstract(tree)) is None
  assert checkpoints.latest_host() is None
  checkpoints.save(3, tree, {'round': 1, 'lr': 0.1, 'names': ['a', 'b']})
  restored = checkpoints.restore(abstract(tree))
  assert restored.step == 3 and restored.skipped == ()
  assert restored.host == {'round': 1, 'lr': 0.1, 'names': ['a', 'b']}
  assert checkpoints.host(3) == checkpoints.latest_host() == restored.host
  assert_same(restored.tree, tree)
  plain = checkpoints.restore().tree
  assert isinstance(plain['state']['params']['layer']['kernel'], np.ndarray)
  assert_same(
    plain['state']['params'], {**tree['state'].params, 'layer': {'kernel': tree['state'].params['layer']['kernel']}}
  )


def test_restores_on_another_mesh(tmp_path):
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
  specs = {'a': PartitionSpec('fsdp', 'tensor'), 'b': PartitionSpec(('data', 'fsdp', 'tensor')), 'c': PartitionSpec()}
  key = jax.random.key(0)
  one = {name: jax.random.normal(jax.random.fold_in(key, i), (16, 4)) for i, name in enumerate(specs)}
  shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, one, {})
  eight = checkpoints.restore(
    jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), one, shardings)
  )
  assert jax.tree.map(lambda x: x.sharding, eight.tree) == shardings
  assert_same(eight.tree, one)
  checkpoints.save(2, eight.tree, {})
  back = checkpoints.restore(abstract(one))
  assert back.step == 2 and all(len(x.sharding.device_set) == 1 for x in back.tree.values())
  assert_same(back.tree, one)


def test_arrays_may_be_donated_or_deleted_after_save(tmp_path):
  add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  tree = {'a': jnp.zeros((512, 512)), 'b': jnp.zeros((512, 512)), 'host_array': np.zeros(3)}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, tree, {})
  tree['host_array'] += 1
  tree['a'].delete()
  b = tree['b']
  for _ in range(5):
    b = add(b)
  b.block_until_ready()
  assert all((x == 0).all() for x in jax.tree.leaves(checkpoints.restore().tree))


def test_keeps_the_newest(tmp_path):
  checkpoints = save(tmp_path, 1, 2, 3, 10, keep=3)
  assert checkpoints.steps() == [2, 3, 10]
  assert sorted(os.listdir(tmp_path)) == ['10', '2', '3']
  with pytest.raises(UserError, match='keep at least 1'):
    Checkpoints(tmp_path, keep=0)


def test_same_step_is_written_once(copied):
  checkpoints = Checkpoints(copied)
  before = (copied / '8').stat().st_ino, (copied / '8' / 'manifest.json').stat().st_mtime_ns
  checkpoints.save(8, state(99), {'round': 99})
  checkpoints.wait()
  assert ((copied / '8').stat().st_ino, (copied / '8' / 'manifest.json').stat().st_mtime_ns) == before
  assert checkpoints.latest_host() == {'round': 8}


def test_incomplete_is_ignored_then_removed(copied):
  (copied / '8' / 'manifest.json').unlink()
  (copied / '12').mkdir()
  (copied / 'notes').mkdir()  # not ours
  checkpoints = Checkpoints(copied)
  restored = checkpoints.restore(abstract(state()))
  assert restored.step == 4 and restored.skipped == ()
  assert_same(restored.tree, state(4))
  checkpoints.save(8, state(8), {'round': 8})
  checkpoints.wait()
  assert checkpoints.restore().step == 8
  assert sorted(os.listdir(copied)) == ['4', '8', 'notes']


def largest(folder: pathlib.Path) -> pathlib.Path:
  return max((folder / 'state').rglob('*'), key=lambda path: path.is_file() and path.stat().st_size)


def flip(path: pathlib.Path, byte: int, bit: int = 3) -> None:
  data = bytearray(path.read_bytes())
  data[byte % len(data)] ^= 1 << bit
  path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
  'truncated': (lambda folder: truncate(largest(folder)), r'file state/\S+ was truncated to \d+ bytes, was \d+'),
  'missing': (lambda folder: largest(folder).unlink(), r'file state/\S+ is missing'),
  'bit in data': (lambda folder: flip(largest(folder), 1000), r'file state/\S+ has a wrong SHA-256'),
  'bit in host': (lambda folder: flip(folder / 'host.json', 5), 'file host.json has a wrong SHA-256'),
  'bit in arrays': (lambda folder: flip(folder / 'arrays.json', 30), 'file arrays.json has a wrong SHA-256'),
  'grown': (lambda folder: (folder / 'host.json').write_text('{"round": 8000000000}'), 'file host.json has grown, was'),
  'extra': (lambda folder: (folder / 'state' / 'stray').touch(), 'file state/stray is not in its manifest.json'),
  'no manifest': (lambda folder: truncate(folder / 'manifest.json'), 'file manifest.json cannot be parsed'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_is_named_and_the_previous_used(copied, kind):
  break_it, text = DAMAGE[kind]
  break_it(copied / '8')
  checkpoints = Checkpoints(copied)
  restored = checkpoints.restore(abstract(state()))
  assert restored.step == 4 and restored.host == {'round': 4}
  assert_same(restored.tree, state(4))
  [sentence] = restored.skipped
  assert re.fullmatch(f'checkpoint 8 is damaged: {text}.*; using checkpoint 4', sentence)
  # A damaged one is no reason to delete an intact one, and is replaced when the run comes by.
  checkpoints.save(6, state(6), {'round': 6})
  checkpoints.wait()
  assert checkpoints.steps() == [4, 6, 8]
  checkpoints.save(8, state(8), {'round': 8})
  checkpoints.wait()
  assert checkpoints.steps() == [6, 8]
  assert checkpoints.restore().step == 8


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_of_all_is_an_error(copied, kind):
  break_it, text = DAMAGE[kind]
  break_it(copied / '4')
  break_it(copied / '8')
  before = sorted(copied.rglob('*'))
  with pytest.raises(UserError, match=f'no intact.*checkpoint 8 is damaged: {text}.*; checkpoint 4 is damaged: {text}'):
    Checkpoints(copied).restore(abstract(state()))
  assert sorted(copied.rglob('*')) == before


def test_every_file_and_the_manifest_are_guarded(copied):
  shutil.rmtree(copied / '4')
  checkpoints = Checkpoints(copied)
  rng = np.random.default_rng(0)
  for path in sorted(p for p in (copied / '8').rglob('*') if p.is_file()):
    intact = path.read_bytes()
    if not intact:
      continue
    for byte in rng.integers(0, len(intact), 2):
      flip(path, int(byte), int(rng.integers(8)))
      with pytest.raises(UserError, match='checkpoint 8 is damaged'):
        checkpoints.restore()
      path.write_bytes(intact)
  manifest = copied / '8' / 'manifest.json'
  intact = manifest.read_bytes()
  for byte in range(0, len(intact), 7):
    flip(manifest, byte, byte % 8)
    with pytest.raises(UserError, match='checkpoint 8 is damaged'):
      checkpoints.restore()
    manifest.write_bytes(intact)
  assert checkpoints.restore().step == 8


def test_host_is_read_cheaply_from_the_newest_intact(copied):
  checkpoints = Checkpoints(copied)
  assert checkpoints.latest_host() == {'round': 8}
  flip(copied / '8' / 'host.json', 5)
  assert checkpoints.latest_host() == {'round': 4}
  truncate(largest(copied / '4'))
  with pytest.raises(UserError, match='host.json has a wrong SHA-256.*was truncated'):
    checkpoints.latest_host()


def test_the_tree_may_depend_on_what_was_saved(two):
  def make(specs):
    assert specs['params/layer/kernel'] == ['bfloat16', [8, 8]] and specs['step'] == ['int32', []]
    return abstract(state())

  assert_same(Checkpoints(two).restore(make).tree, state(8))


@pytest.mark.parametrize(
  'other, text',
  [
    (lambda s: s.params | {'odd': jnp.zeros(6)}, r'params/odd is float32\[5\] there and float32\[6\] here'),
    (
      lambda s: s.params | {'odd': jnp.zeros(5, jnp.bfloat16)},
      r'params/odd is float32\[5\] there and bfloat16\[5\] here',
    ),
    (lambda s: s.params | {'new': jnp.zeros(())}, r'params/new is absent there and float32\[\] here'),
    (lambda s: {'embed': s.params['embed']}, r'params/odd is float32\[5\] there and absent here'),
  ],
)
def test_another_model_is_an_error(two, other, text):
  tree = state()
  with pytest.raises(UserError, match=text):
    Checkpoints(two).restore(abstract(TrainState(tree.step, other(tree), tree.opt_state)))


def test_a_write_that_fails_half_way_leaves_the_previous(copied):
  """A real refusal by the system in the middle of Orbax's write: no file may grow beyond 200 kB."""
  checkpoints = Checkpoints(copied)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
  try:
    checkpoints.save(12, {'a': jnp.zeros((300, 300))}, {'round': 12})
    with pytest.raises(UserError, match=r'checkpoint at step 12 could not be written: File too large; the previous'):
      checkpoints.wait()
    checkpoints.save(16, {'a': jnp.zeros((300, 300))}, {'round': 16})
    with pytest.raises(UserError, match=r'at step 16 .*\(step 8\) is intact; free some space and run the same command'):
      checkpoints.save(20, state(20), {'round': 20})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert sorted(os.listdir(copied)) == ['4', '8']
  checkpoints.save(12, state(12), {'round': 12})
  checkpoints.wait()
  assert checkpoints.restore().step == 12


def test_full_disk(copied, monkeypatch):
  """Arrays that do not fit are not begun: filling the disk would hurt others too."""
  usage = shutil.disk_usage(copied)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1000))
  checkpoints = Checkpoints(copied)
  with pytest.raises(
    UserError,
    match=r'checkpoint at step 12 could not be written: No space left on device; the previous checkpoint \(step 8\) is '
    'intact; free some space and run the same command again',
  ):
    checkpoints.save(12, {'a': jnp.zeros((300, 300))}, {})
  assert sorted(os.listdir(copied)) == ['4', '8']


def test_a_refused_removal_costs_no_checkpoint(copied, monkeypatch):
  (copied / '12').mkdir()

  def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))

  with (
    monkeypatch.context() as patch,
    pytest.raises(UserError, match=r'Permission denied; the previous.*step 8\) is intact'),
  ):
    patch.setattr(shutil, 'rmtree', refuse)
    Checkpoints(copied).save(8, state(8), {'round': 8})
  assert Checkpoints(copied).restore().step == 8


def test_unwritable_directory(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='Not a directory; there is no earlier one; make .*/file/checkpoints a folder'):
    Checkpoints(tmp_path / 'file' / 'checkpoints').save(1, state(), {})


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(TypeError):
    Checkpoints(tmp_path / 'new').save(1, state(), {'round': np.float32(1)})
  assert not (tmp_path / 'new').exists()


# Run in a subprocess that forks before JAX starts its threads, so that each moment costs only a fork. A child saves
# checkpoint 2 and is killed before its k-th change to the file system by Python, or (k < 0) while TensorStore writes.
KILLED = """
import os, pathlib, shutil, signal, sys, threading
import numpy as np
from past_jax.checkpoint import Checkpoints

root = pathlib.Path(sys.argv[1])
CHANGES = {'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'shutil.rmtree', 'os.link'}

def die_at(k):
  seen = [0]
  def hook(event, args):
    if event in CHANGES or event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
      seen[0] += 1
      if seen[0] == k:
        os.kill(os.getpid(), signal.SIGKILL)
  sys.addaudithook(hook)

def die_writing(directory):
  while not any(p.stat().st_size for p in directory.glob('2/*/**/d/*')):
    pass
  os.kill(os.getpid(), signal.SIGKILL)

def tree(step):
  return {'a': np.full((256, 256), step, np.float32), 'b': np.full(2_000_000, step, np.float32)}

def save(directory, step):
  checkpoints = Checkpoints(directory, keep=1)
  checkpoints.save(step, tree(step), {'round': step})
  checkpoints.wait()
  return checkpoints

def forked(function, *args):
  pid = os.fork()
  if pid == 0:
    code = 1
    try:
      function(*args)
      code = 0
    finally:
      sys.stderr.flush()
      os._exit(code)
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def interrupted(directory, k):
  if k < 0:
    threading.Thread(target=die_writing, args=(directory,), daemon=True).start()
  else:
    die_at(k)
  save(directory, 2)

def resumed(directory, answer):
  restored = Checkpoints(directory).restore()
  assert restored.skipped == () and restored.host == {'round': restored.step}
  for x in (restored.tree['a'], restored.tree['b']):
    assert (x == restored.step).all()
  assert save(directory, 3).steps() == [3] and os.listdir(directory) == ['3']
  answer.write_text(str(restored.step))

assert forked(save, root / 'first', 1) == 0
k, steps = -1, []
while True:
  directory = root / 'copy'
  shutil.rmtree(directory, ignore_errors=True)
  shutil.copytree(root / 'first', directory)
  code = forked(interrupted, directory, k)
  assert code in (0, -signal.SIGKILL), code
  if code == 0:
    break
  assert forked(resumed, directory, root / 'answer') == 0, k
  steps.append((root / 'answer').read_text())
  k = 1 if k < 0 else k + 1
print(''.join(steps))
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_checkpoint(tmp_path):
  run = subprocess.run([sys.executable, '-c', KILLED, tmp_path], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert re.fullmatch('1{10,}2{2,}', run.stdout.strip())  # the old one until the manifest is in place, then the new one
