"""Several processes are one run: they learn what one process learns, stop together, and fail together."""

import http.server
import signal
import threading
import time

import jax
import numpy as np
import pytest
from processes import finish, mesh, start, study

from past_jax import hosts
from past_jax.checkpoint import Checkpoints
from past_jax.metrics import rows
from past_jax.types import UserError

# The whole loop in 2 rounds of 1 update.
PAST = 'configs/past.py:size=tiny,group=2'
SHORT = ('--config.study.curriculum.epochs=1', '--config.study.generator.length=16')
# Texts alone, and nothing is sampled: little to compile.
RAW = 'configs/past.py:size=tiny,arm=raw'
FEW = ('--config.eval.tasks={}', '--config.eval.heldout=general', '--config.eval.heldout_length=32')


# --- in this process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('total, count', [(8, 2), (8, 4), (7, 2), (5, 4), (2, 4)])
def test_shares_are_all_rows_and_overlap_only_to_fill_up(total, count):
  shares = [hosts.share(total, i, count) for i in range(count)]
  assert len({len(share) for share in shares}) == 1
  assert np.concatenate(shares)[:total].tolist() == list(range(total))  # what `gathered` makes of them


@pytest.mark.parametrize('flag', ['two', 'localhost,0/2', 'localhost:80,2/2', 'localhost:80,a/2'])
def test_a_malformed_flag_is_refused(flag):
  with pytest.raises(UserError, match='ADDRESS:PORT,INDEX/COUNT'):
    hosts.join(flag)


def test_one_process_asks_itself():
  with hosts.joined(''):
    assert hosts.first('question', lambda: 3) == 3
    hosts.same('nothing', object())
  assert not hosts.several() and hosts.is_first()


@pytest.mark.parametrize(
  'environ, count',
  [
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}, 4),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '2'}, 4),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, 1),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, 1),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_PROCESS_BOUNDS': '1,1,1'}, 1),
    ({}, 1),
  ],
)
def test_the_environment_tells_a_slice(environ, count, tmp_path):
  assert hosts.of_slice(environ, str(tmp_path)) == count


def test_the_metadata_server_tells_a_slice(tmp_path):
  class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked = self.path == '/computeMetadata/v1/instance/attributes/worker-network-endpoints'
      self.send_response(200 if asked and self.headers['Metadata-Flavor'] == 'Google' else 403)
      self.end_headers()
      self.wfile.write(b'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2')

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('localhost', 0), Metadata) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ = {'GCE_METADATA_IP': f'localhost:{server.server_port}'}
    assert hosts.of_slice(environ, str(tmp_path)) == 1  # no TPU: nobody is asked
    (tmp_path / 'accel0').touch()
    assert hosts.of_slice(environ, str(tmp_path)) == 2
    assert hosts.of_slice(environ | {'TPU_SKIP_MDS_QUERY': '1'}, str(tmp_path)) == 1
    server.shutdown()


def test_one_host_of_many_is_told(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b,c,d')
  with pytest.raises(UserError, match='one of 4 hosts.*--hosts=auto'), hosts.joined(''):
    pass


# --- several processes --------------------------------------------------------------------------------------------


def params(workdir):
  restored = Checkpoints(workdir / 'checkpoints').restore()
  return restored.step, jax.tree.leaves(restored.tree['state']['params'])


def assert_near(a, b, most: float):
  assert a[0] == b[0]
  assert max(float(np.abs(x - y).max()) for x, y in zip(a[1], b[1], strict=True)) <= most


def assert_alike(a, b):
  """Nested rows: floats within rounding, all else equal."""
  leaves = [jax.tree.flatten(x, is_leaf=lambda leaf: leaf is None) for x in (a, b)]
  (a, tree), (b, other) = leaves
  assert tree == other
  for x, y in zip(a, b):
    assert x == (pytest.approx(y, abs=1e-5) if isinstance(y, float) else y)


@pytest.mark.slow
@pytest.mark.parametrize('count, axes', [(2, (2, 2, 2)), (4, (2, 4, 2))])
def test_processes_learn_what_one_process_learns(tmp_path, count, axes):
  devices, one, many = int(np.prod(axes)), tmp_path / 'one', tmp_path / 'many'
  study(one, PAST, *SHORT, *mesh(*axes), devices=devices)
  said = study(many, PAST, *SHORT, *mesh(*axes), devices=devices, count=count)
  assert_near(params(one), params(many), 1e-6)
  assert_alike(rows(one / 'groups.jsonl'), rows(many / 'groups.jsonl'))  # the same texts, sampled alike, judged alike
  strip = lambda row: {k: v for k, v in row.items() if isinstance(v, float) and not k.startswith('perf/')}
  for a, b in zip(rows(one / 'metrics.jsonl'), rows(many / 'metrics.jsonl'), strict=True):
    assert strip(b) == pytest.approx(strip(a), abs=2e-5)
  assert {file.name for file in one.iterdir()} == {file.name for file in many.iterdir()}
  assert 'Report' not in ''.join(said[1:]) and not any('update' in text for text in said[1:])  # one process speaks


SEAL = 'configs/seal.py:size=tiny,reward=logp,seeds=2'
EDITS = (
  *('--config.study.rounds=1', '--config.study.curriculum.epochs=1', '--config.study.generator.group=2'),
  *('--config.data.limit=4', '--config.study.sample_prompts=4', '--config.study.batch=4', '--config.eval.limit=4'),
  *('--config.study.curriculum.prompts=4', '--config.inner.chunk=8', '--config.inner.epochs=2'),
)


@pytest.mark.slow
def test_inner_runs_are_split_over_processes(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  study(one, SEAL, *EDITS, *mesh(2, 2, 2))
  study(two, SEAL, *EDITS, *mesh(2, 2, 2), count=2)
  scores = [c['score'] for group in rows(one / 'groups.jsonl') for c in group['completions']]
  assert len(set(scores)) == 8  # 4 texts, 2 notes of each, and every one was trained on
  assert_alike(rows(one / 'groups.jsonl'), rows(two / 'groups.jsonl'))
  assert_alike(rows(one / 'evaluations.jsonl'), rows(two / 'evaluations.jsonl'))
  assert_near(params(one), params(two), 1e-5)


@pytest.mark.slow
def test_a_host_judge_scores_its_own_prompts(tmp_path, monkeypatch):
  (tmp_path / 'asked.py').write_text(
    'import jax\n'
    'def score(text, example):\n'
    f'  with open(f"{tmp_path}/{{jax.process_index()}}", "a") as file:\n'
    '    file.write(example.text + "\\n")\n'
    '  return float(len(example.text))\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
  judge = "--config.study.judge={'name':'text','rule':'function','pattern':'','function':'asked:score'}"
  study(tmp_path / 'run', PAST, *SHORT, *mesh(2, 2, 2), judge, '--config.study.rounds=1', count=2)
  asked = [(tmp_path / str(i)).read_text().splitlines() for i in range(2)]
  assert len(asked[0]) == len(asked[1]) == 8  # 8 texts, 2 completions of each: half of them
  assert not set(asked[0]) & set(asked[1]) and len(set(asked[0]) | set(asked[1])) == 8
  groups = rows(tmp_path / 'run' / 'groups.jsonl')
  assert len(groups) == 8 and len({len(group['text']) for group in groups}) > 1
  assert all(c['score'] == len(group['text']) for group in groups for c in group['completions'])


# A second stage whose teacher is what the first one ended with, and whose reference follows the policy.
ROLES = """
from configs import past
def get_config(arg):
  c = past.get_config(arg)
  c.teacher.spec, c.study.generator.role = 'policy', 'teacher'
  del c.study.losses['replay']
  c.stages, c.again = ('study', 'again'), c.study.copy_and_resolve_references()
  c.study.update(rounds=1, curriculum={'epochs': 1})
  c.again.update(rounds=2, curriculum={'epochs': 2})
  return c
"""
HALFWAY = """
from past_jax import train
real = train.Loop.log
def log(loop, *args):
  real(loop, *args)
  if loop.cursor[:3] == (1, 0, 0): loop.stop.reason = 'the test'  # after the second stage's first update
train.Loop.log = log
"""


@pytest.mark.slow
def test_frozen_roles_wait_in_the_memory_of_all_hosts(tmp_path):
  """Parameters are split over both processes: each keeps half of `ref`, `base` and `teacher`.

  What two do, stopped in the middle of a round and started again, is what one does that is not stopped.
  """
  config, one, two = tmp_path / 'roles.py', tmp_path / 'one', tmp_path / 'two'
  config.write_text(ROLES)
  flags = [*FEW, *(f'--config.{stage}.generator.length=16' for stage in ('study', 'again')), *mesh(1, 2, 2)]
  command = f'{config}:size=tiny,group=2,judge=length_normalised,refresh=soft,arm=dpo_only', *flags
  study(one, *command, devices=4)
  said = study(two, *command, devices=4, count=2, patches={0: HALFWAY, 1: HALFWAY})
  assert 'saved at step 2' in said[0]
  study(two, *command, devices=4, count=2)

  def models(workdir):
    tree = Checkpoints(workdir / 'checkpoints').restore().tree
    return [jax.tree.leaves(params) for params in (tree['state']['params'], tree['ref'], tree['teacher'])]

  far = lambda a, b: max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
  found, other = models(one), models(two)
  assert min(far(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-4  # by now they are three models
  assert max(map(far, found, other)) < 1e-6
  assert_alike(rows(one / 'groups.jsonl'), rows(two / 'groups.jsonl'))


DIE = 'from past_jax import train\nimport os, signal\ndef die(*_): {}\ntrain.Loop.tick = die\n'
ENDS = {
  'raises': (DIE.format("raise ValueError('no such luck')"), 'ValueError: no such luck', 1),
  'user error': (
    DIE.format("from past_jax.types import UserError; raise UserError('a row is odd')"),
    'a row is odd',
    2,
  ),
  'killed': (DIE.format('os.kill(os.getpid(), signal.SIGKILL)'), 'another process has died', -signal.SIGKILL),
}


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize('how', ENDS)
def test_all_stop_when_one_fails(tmp_path, how, index):
  """In the first device call, in which the other one waits for it."""
  patch, text, code = ENDS[how]
  processes = start(tmp_path / 'run', RAW, *FEW, *mesh(2, 2, 2), count=2, patches={index: patch})
  processes[index].wait(timeout=600)
  begun = time.monotonic()
  ended = finish(processes)
  assert time.monotonic() - begun < 60
  assert ended[index][0] == code, ended
  survivor, error = ended[1 - index]
  assert survivor == (2 if how == 'user error' else 1), error  # as the one that failed, if it could tell
  (line,) = [line for line in error.splitlines() if line.startswith('past study:')]
  assert text in line and 'start the same command on all hosts' in line, error
  assert 'Traceback' not in error


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
  """And the run goes on in one process, to what a run without a stop ends with."""
  run, whole = tmp_path / 'run', tmp_path / 'whole'
  two = start(run, RAW, *FEW, *mesh(2, 2, 2), '--config.study.rounds=1000', '--config.checkpoint.every=1000', count=2)
  while all(process.poll() is None for process in two) and len(rows(run / 'metrics.jsonl')) < 3:
    time.sleep(0.1)
  two[1].send_signal(signal.SIGTERM)
  ended = finish(two)
  assert [code for code, _ in ended] == [0, 0], ended
  step, _ = params(run)
  assert f'saved at step {step}' in ended[0][1]
  assert len(rows(run / 'metrics.jsonl')) == step < 2000
  rounds = f'--config.study.rounds={step // 2 + 1}'
  study(run, RAW, *FEW, *mesh(4, 2, 1), rounds)
  study(whole, RAW, *FEW, *mesh(2, 2, 2), rounds)
  assert_near(params(run), params(whole), 1e-5)
  assert [row['step'] for row in rows(run / 'metrics.jsonl')] == list(range(1, params(whole)[0] + 1))


OTHER_DATA = """
from past_jax import build
real = build.load_examples
def load(config):
  found = real(config)
  return found._replace(examples=found.examples[::-1])
build.load_examples = load
"""


@pytest.mark.slow
def test_processes_with_different_data_are_refused(tmp_path):
  ended = finish(start(tmp_path / 'run', RAW, *FEW, *mesh(2, 2, 2), count=2, patches={1: OTHER_DATA}))
  assert [code for code, _ in ended] == [2, 2]
  assert 'the data of process 1 differs from that of process 0' in ended[0][1]
