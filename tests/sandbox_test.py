"""Programs in the sandbox compute and print; what else they try fails, and leaves nothing behind.

Each break-out below prints ESCAPED where it succeeds. The test also looks outside for what it was after.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from past_jax.tools import jail, sandbox
from past_jax.tools.sandbox import Limits, run
from past_jax.types import UserError

QUICK = Limits(seconds=1, wall=20, memory=256 << 20, file=64 << 10, scratch=1 << 20)

SYSCALL = 'import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n'
ESCAPES = {
  'a network connection': 'import socket; socket.create_connection(("127.0.0.1", {port}), 1); print("ESCAPED")',
  'a name is resolved': 'import socket; socket.getaddrinfo("localhost", 80); print("ESCAPED")',
  'a socket of this machine': 'import socket; socket.socket(socket.AF_UNIX); print("ESCAPED")',
  'the password file': 'print("ESCAPED", open("/etc/passwd").read())',
  'the shadow file': 'print("ESCAPED", open("/etc/shadow").read())',
  # Where Python itself is installed there, its own folder is all that is to be seen.
  'a home folder': 'import os; assert set(os.listdir("{home}")) - set("{prefix}".split("/")); print("ESCAPED")',
  'a file outside': 'print("ESCAPED", open("{secret}").read())',
  'a write outside': 'open("{folder}/made", "w").write("ESCAPED"); print("ESCAPED")',
  'a write to the root': 'open("/made", "w"); print("ESCAPED")',
  'a write to its own program': 'open("/program.py", "a"); print("ESCAPED")',
  'a write to the library': 'import os; open(os.path.dirname(os.__file__) + "/made.py", "w"); print("ESCAPED")',
  'a change of the library': 'import os; os.chmod(os.__file__, 0o777); print("ESCAPED")',
  'a symbolic link outwards': 'import os; os.symlink("{secret}", "link"); print("ESCAPED", open("link").read())',
  'a path upwards': 'print("ESCAPED", open("../../../../../../../{secret}").read())',
  'a hard link to the library': 'import os; os.link(os.__file__, "link"); print("ESCAPED")',
  'the old root': 'import os; os.chroot("."); print("ESCAPED")',
  '/proc': 'import os; print("ESCAPED", os.listdir("/proc"))',
  '/proc of the parent': 'print("ESCAPED", open("/proc/{parent}/environ").read())',
  '/sys': 'import os; print("ESCAPED", os.listdir("/sys"))',
  'a device': 'print("ESCAPED", open("/dev/vda", "rb").read(1))',
  'a device node': 'import os; os.mknod("disk", 0o60600, os.makedev(8, 0)); print("ESCAPED")',
  'a mount': SYSCALL + 'assert libc.mount(b"none", b"/scratch", b"tmpfs", 0, None) == 0; print("ESCAPED")',
  'a /proc of its own': SYSCALL + 'assert libc.mount(b"p", b"/scratch", b"proc", 0, None) == 0; print("ESCAPED")',
  'another namespace': SYSCALL + 'assert libc.unshare(0x10000000) == 0; print("ESCAPED")',
  'a tracer': SYSCALL + 'assert libc.ptrace(16, {parent}, 0, 0) == 0; print("ESCAPED")',
  'memory of the parent': SYSCALL + 'assert libc.syscall(310, {parent}, 0, 0, 0, 0, 0) >= 0; print("ESCAPED")',
  'a signal to the parent': 'import os; os.kill({parent}, 10); print("ESCAPED")',
  'a signal to everybody': 'import os; os.kill(-1, 10); print("ESCAPED")',
  'a signal to the group': 'import os, signal; signal.signal(10, 1); os.kill({group}, 10); print("ESCAPED")',
  'a child': 'import os; os.fork(); print("ESCAPED")',
  'a fork bomb': 'import os\nwhile True: os.fork(); print("ESCAPED")',
  'a shell': 'import subprocess; subprocess.run(["/bin/sh", "-c", "true"]); print("ESCAPED")',
  'a thread': 'import threading; threading.Thread(target=print, args=("ESCAPED",)).start()',
  'clone3': SYSCALL + 'assert libc.syscall(435, bytes([0] * 88), 88) >= 0; print("ESCAPED")',
  'an x32 call': SYSCALL + 'libc.syscall(0x40000000 + 39); print("ESCAPED")',
  'memory that no limit counts': 'import os; os.memfd_create("m"); print("ESCAPED")',
  'io_uring': SYSCALL + 'assert libc.syscall(425, 8, bytes([0] * 120)) >= 0; print("ESCAPED")',
  'keys of the kernel': SYSCALL + 'assert libc.syscall(250, 0, -3, 0) >= 0; print("ESCAPED")',
  'a higher limit': 'import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99)); print("ESCAPED")',
  'root': 'import os; os.setuid(0); print("ESCAPED")',
  'secrets of the environment': 'import os; print("ESCAPED" if "SECRET" in str(os.environ) else "")',
  'an inherited descriptor': (
    'import os\nfor n in range(3, 256):\n  try: os.fstat(n)\n  except OSError: continue\n  print("ESCAPED", n)'
  ),
  'modules of this environment': 'import numpy; print("ESCAPED")',
  'a memory bomb': 'x = bytearray(1 << 30); print("ESCAPED")',
  'a huge power': 'x = 9 ** 9 ** 9; print("ESCAPED")',
  'a huge file': 'open("f", "wb").write(b"x" * (1 << 18)); print("ESCAPED")',
  'many files': (
    'for n in range(99):\n  with open(str(n), "wb") as f: f.write(b"x" * (60 << 10)), f.flush()\nprint("ESCAPED")'
  ),
  'a busy loop': 'while True: pass\nprint("ESCAPED")',
  'a long sleep': 'import time; time.sleep(99); print("ESCAPED")',
  'a loop that no signal ends': (
    'import signal\nfor n in (1, 2, 3, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass'
  ),
}


@pytest.fixture(scope='module')
def outside(tmp_path_factory):
  folder = tmp_path_factory.mktemp('outside')
  (folder / 'secret').write_text('the secret')
  home = str(Path.home())
  words = {'folder': folder, 'secret': folder / 'secret', 'home': home, 'parent': os.getpid(), 'group': -os.getpgid(0)}
  return words | {'port': 9, 'prefix': sys.base_prefix}


@pytest.mark.parametrize('name', ESCAPES)
def test_nothing_gets_out(name, outside, monkeypatch):
  monkeypatch.setenv('SECRET', 'SECRET of the environment')
  inherited = os.open(outside['secret'], os.O_RDONLY)
  os.set_inheritable(inherited, True)
  signals = []
  before = signal.signal(signal.SIGUSR1, lambda *_: signals.append(1))
  try:
    program = ESCAPES[name].format(**outside) if '{' in ESCAPES[name] else ESCAPES[name]
    outcome = run(program, limits=dataclasses.replace(QUICK, wall=4) if 'sleep' in name else QUICK)
  finally:
    os.close(inherited)
    signal.signal(signal.SIGUSR1, before)
  assert 'ESCAPED' not in outcome.output, outcome
  assert 'the secret' not in outcome.output + outcome.errors
  assert not signals
  assert sorted(path.name for path in outside['folder'].iterdir()) == ['secret']
  harmless = name in ('secrets of the environment', 'an inherited descriptor')
  assert harmless or outcome.code != 0, outcome  # it was refused, and not just silent


def test_output_is_cut_where_files_are():
  outcome = run('while True: print("x" * 99)', limits=QUICK)
  assert outcome.code != 0 and len(outcome.output) == QUICK.file


def test_a_program_computes_reads_its_input_and_has_a_folder():
  program = 'import math, tempfile\nwith tempfile.TemporaryFile() as f: f.write(b"1")\nprint(math.pi, input())'
  outcome = run(program, 'ü\n')
  assert outcome == (0, '3.141592653589793 ü\n', '')
  failed = run('1 / 0')
  assert failed.code == 1 and 'ZeroDivisionError' in failed.errors and 'line 1' in failed.errors


def processes(file: int) -> list[str]:
  """Programs that run in a sandbox with this limit of file sizes, which no other test has."""
  found = []
  for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
      limits, command = (Path(f'/proc/{pid}/{name}').read_text() for name in ('limits', 'cmdline'))
    except OSError:  # it has ended in between
      continue
    if '/program.py' in command and f' {file} ' in limits:
      found.append(pid)
  return found


def gone(file: int) -> bool:
  for _ in range(200):
    if not processes(file):
      return True
    time.sleep(0.05)
  return False


def test_no_process_is_left_of_one_that_left_its_group():
  program = 'import os, time\nos.setsid()\nprint("on its own", flush=True)\ntime.sleep(99)'
  outcome = run(program, limits=Limits(wall=5, file=54321))
  assert outcome.code == 128 + signal.SIGKILL and outcome.output == 'on its own\n'
  assert gone(54321)


def test_the_program_ends_with_who_started_it():
  code = (
    'import sys; sys.path.insert(0, sys.argv[1])\n'
    'from past_jax.tools.sandbox import Limits, run\n'
    'run("import time\\ntime.sleep(99)", limits=Limits(wall=99, file=65432))'
  )
  parent = subprocess.Popen([sys.executable, '-c', code, str(Path(__file__).parent.parent)])
  while not processes(65432):
    time.sleep(0.05)
  parent.kill()
  parent.wait()
  assert gone(65432)


# --- refusals -----------------------------------------------------------------------------------------------------


def broken(tmp_path, monkeypatch, old: str, new: str) -> None:
  """A jail in which one layer is not to be had."""
  source = Path(jail.__file__).read_text()
  assert source.count(old) == 1
  (tmp_path / 'jail.py').write_text(source.replace(old, new))
  monkeypatch.setattr(sandbox, '__file__', str(tmp_path / 'sandbox.py'))


@pytest.mark.parametrize(
  'old, new, message',
  [
    ("call('namespaces', libc.unshare,", "call('namespaces', lambda *_: -1,", 'namespaces'),
    ('PIVOT_ROOT[column], b', '-1, b', 'pivot_root'),
    ('version < 1', 'version > 0', 'Landlock: not in this kernel'),
    ("call('seccomp', libc.prctl,", "call('seccomp', lambda *_: -1,", 'seccomp'),
    ('platform.machine() not in MACHINES', "platform.machine() not in ('vax',)", 'no table of system calls'),
    ('PR_SET_NO_NEW_PRIVS, 1, 0', 'PR_SET_NO_NEW_PRIVS, 7, 0', 'prctl: Invalid argument'),
  ],
)
def test_without_a_layer_nothing_is_run(tmp_path, monkeypatch, old, new, message):
  broken(tmp_path, monkeypatch, old, new)
  with pytest.raises(UserError, match=f'Programs are not run here.*{message}'):
    run('print("ESCAPED")')
