"""Isolates this process by the kernel, then becomes a Python program. Started as a script by `sandbox`, never imported.

In layers, each of which is required: user, mount, pid, network, IPC and UTS namespaces (the program sees an empty root
with Python's own files, read-only, and a scratch folder of limited size; no other process, no network, no /proc, no
/dev), no capabilities, Landlock, resource limits, and a seccomp filter without new processes or threads. A layer that
the kernel lacks, or any other failure, is written to the status pipe and ends the process before the program begins.

Only the standard library, and of this package nothing: what is imported here is what could go wrong before the walls
stand. Written for x86-64 and AArch64; the numbers are of the kernel's headers.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

NOBODY = 65534
ROOT, SCRATCH = '/tmp', '/scratch'  # where the new root is built in the old one; the scratch folder in the new one
LIBRARIES = ('/lib', '/lib64', '/usr/lib', '/usr/lib64')

CLONE = {'mount': 0x20000, 'cgroup': 0x2000000, 'uts': 0x4000000, 'ipc': 0x8000000, 'user': 0x10000000}
CLONE |= {'pid': 0x20000000, 'net': 0x40000000}
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
CAPABILITIES_3 = 0x20080522
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446
EPERM, ENOSYS = 1, 38

MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}  # column of the tables below, AUDIT_ARCH
PIVOT_ROOT, CAPSET = (155, 41), (126, 91)
CLONE3 = 435  # answered ENOSYS: the C library then tries the older call
# What the program may not call, with its numbers on x86-64 and AArch64; -1: not there.
DENIED = {
  'clone': (56, 220),
  'fork': (57, -1),
  'vfork': (58, -1),
  'socket': (41, 198),
  'socketpair': (53, 199),
  'ptrace': (101, 117),
  'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271),
  'kcmp': (312, 272),
  'pidfd_send_signal': (424, 424),
  'pidfd_open': (434, 434),
  'pidfd_getfd': (438, 438),
  'process_madvise': (440, 440),
  'unshare': (272, 97),
  'setns': (308, 268),
  'mount': (165, 40),
  'umount2': (166, 39),
  'pivot_root': PIVOT_ROOT,
  'chroot': (161, 51),
  'open_tree': (428, 428),
  'move_mount': (429, 429),
  'fsopen': (430, 430),
  'fsconfig': (431, 431),
  'fsmount': (432, 432),
  'fspick': (433, 433),
  'mount_setattr': (MOUNT_SETATTR, MOUNT_SETATTR),
  'name_to_handle_at': (303, 264),
  'open_by_handle_at': (304, 265),
  'bpf': (321, 280),
  'perf_event_open': (298, 241),
  'userfaultfd': (323, 282),
  'io_uring_setup': (425, 425),
  'io_uring_enter': (426, 426),
  'io_uring_register': (427, 427),
  'keyctl': (250, 219),
  'add_key': (248, 217),
  'request_key': (249, 218),
  # Memory that no limit of this process counts.
  'memfd_create': (319, 279),
  'memfd_secret': (447, 447),
  'shmget': (29, 194),
  'semget': (64, 190),
  'msgget': (68, 186),
  'mq_open': (240, 180),
  'personality': (135, 92),
  'modify_ldt': (154, -1),
  'iopl': (172, -1),
  'ioperm': (173, -1),
  'init_module': (175, 105),
  'finit_module': (313, 273),
  'delete_module': (176, 106),
  'kexec_load': (246, 104),
  'kexec_file_load': (320, 294),
  'reboot': (169, 142),
  'swapon': (167, 224),
  'swapoff': (168, 225),
  'acct': (163, 89),
  'quotactl': (179, 60),
  'quotactl_fd': (443, 443),
  'syslog': (103, 116),
  'settimeofday': (164, 170),
  'clock_settime': (227, 112),
  'adjtimex': (159, 171),
  'sethostname': (170, 161),
  'setdomainname': (171, 162),
}

# Landlock's rights: 16 for files, of which older versions know fewer; what a folder of Python's files is read with.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
EXECUTE, WRITE, READ, LIST = 1, 2, 4, 8
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_FILE, MAKE_LINK, REFER, TRUNCATE = (1 << n for n in (4, 5, 7, 8, 12, 13, 14))
IN_SCRATCH = WRITE | READ | LIST | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_FILE | MAKE_LINK | REFER | TRUNCATE

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
  """A layer is not to be had."""


def call(what: str, function, *args) -> int:
  """A C function or system call whose failure ends everything. Integers go as longs: registers are that wide."""
  wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
  result = function(*wide)
  if result < 0:
    raise Refused(f'{what}: {os.strerror(ctypes.get_errno())}')
  return result


def system_call(what: str, number: int, *args) -> int:
  return call(what, libc.syscall, number, *args)


def write(path: str, text: str) -> None:
  with open(path, 'w') as file:
    file.write(text)


# --- layers -------------------------------------------------------------------------------------------------------


def namespaces() -> None:
  """New ones of every kind, in which the user is nobody: also root is, and has no power over what is outside."""
  uid, gid = os.getuid(), os.getgid()
  call('namespaces', libc.unshare, sum(CLONE.values()))
  write('/proc/self/setgroups', 'deny')
  write('/proc/self/uid_map', f'{NOBODY} {uid} 1')
  write('/proc/self/gid_map', f'{NOBODY} {gid} 1')


def mount(source, target: str, kind, flags: int, options=None) -> None:
  encoded = [None if x is None else x.encode() for x in (source, target, kind)]
  options = None if options is None else options.encode()
  call(f'mount of {source} on {target}', libc.mount, *encoded, flags, options)


def read_only(path: str, recursive: int) -> None:
  attributes = struct.pack('QQQQ', ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
  system_call('mount_setattr', MOUNT_SETATTR, AT_FDCWD, path.encode(), recursive, attributes, len(attributes))


def new_root(files: dict, source: bytes, scratch: int, column: int) -> None:
  """`files`: {path: descriptor, or the target of a symbolic link} of what the program reads."""
  mount('none', '/', None, MS_REC | MS_PRIVATE)
  mount('tmpfs', ROOT, 'tmpfs', MS_NOSUID | MS_NODEV, 'size=1m,nr_inodes=1k,mode=755')
  for path, found in sorted(files.items()):
    target = ROOT + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if isinstance(found, str):
      os.symlink(found, target)
      continue
    if os.path.isdir(f'/proc/self/fd/{found}'):
      os.makedirs(target, exist_ok=True)
    else:
      os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(f'/proc/self/fd/{found}', target, None, MS_BIND | MS_REC)
    read_only(target, AT_RECURSIVE)
    os.close(found)
  with open(f'{ROOT}/program.py', 'wb') as file:
    file.write(source)
  os.mkdir(ROOT + SCRATCH)
  options = f'size={scratch},nr_inodes=1k,mode=700'
  mount('tmpfs', ROOT + SCRATCH, 'tmpfs', MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
  read_only(ROOT, 0)
  os.chdir(ROOT)
  system_call('pivot_root', PIVOT_ROOT[column], b'.', b'.')  # the old root now lies over the new one
  call('umount', libc.umount2, b'.', MNT_DETACH)
  os.chdir(SCRATCH)


def limit(limits: dict) -> None:
  bounds = {'CPU': limits['seconds'], 'AS': limits['memory'], 'FSIZE': limits['file'], 'NOFILE': 64}
  for name, value in {**bounds, 'NPROC': 1, 'CORE': 0, 'MEMLOCK': 0, 'MSGQUEUE': 0}.items():
    resource.setrlimit(getattr(resource, f'RLIMIT_{name}', 12), (value, value))  # MSGQUEUE has no name in Python


def landlock(folders: list) -> None:
  """Files by path once more, and independent of mounts; no network, no signals or sockets out of here where it can."""
  version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_long(0), ctypes.c_long(1))
  if version < 1:
    raise Refused('Landlock: not in this kernel')
  known = (1 << FILE_RIGHTS[min(version, 5)]) - 1
  network, scoped = 3 * (version >= 4), 3 * (version >= 6)
  attributes = struct.pack('QQQ', known, network, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
  rules = system_call('Landlock', LANDLOCK_CREATE, attributes, len(attributes), 0)
  allowed = [('/', LIST), *((folder, EXECUTE | READ | LIST) for folder in folders), (SCRATCH, IN_SCRATCH)]
  for path, rights in allowed:
    folder = os.open(path, os.O_PATH)
    if not os.path.isdir(path):
      rights &= EXECUTE | READ
    system_call('Landlock', LANDLOCK_ADD, rules, 1, struct.pack('=Qi', rights & known, folder), 0)
    os.close(folder)
  system_call('Landlock', LANDLOCK_RESTRICT, rules, 0)
  os.close(rules)


def drop_capabilities(column: int) -> None:
  for capability in range(64):
    libc.prctl(PR_CAPBSET_DROP, ctypes.c_long(capability), 0, 0, 0)  # fails behind the last that there is
  header, none = struct.pack('Ii', CAPABILITIES_3, 0), struct.pack('6I', *[0] * 6)
  system_call('capset', CAPSET[column], header, none)
  call('prctl', libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def seccomp(column: int, arch: int) -> None:
  """Denied calls fail with EPERM; another architecture's calls kill."""
  load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
  kill, error, allow = 0x80000000, 0x00050000, 0x7FFF0000
  numbers = [pair[column] for pair in DENIED.values() if pair[column] >= 0]
  n = len(numbers)
  program = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0)]
  program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]  # the x32 ABI, whose numbers are others
  program += [(equal, 0, 1, CLONE3), (give, 0, 0, error | ENOSYS)]
  program += [(equal, n - i, 0, number) for i, number in enumerate(numbers)]
  program += [(give, 0, 0, allow), (give, 0, 0, error | EPERM)]
  packed = b''.join(struct.pack('HBBI', *step) for step in program)
  held = ctypes.create_string_buffer(packed, len(packed))
  filter_ = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(program), ctypes.addressof(held)))
  call('seccomp', libc.prctl, PR_SET_SECCOMP, 2, filter_, 0, 0)


# --- the program --------------------------------------------------------------------------------------------------


def opened(readable: list) -> dict:
  """{path: descriptor or link}, what lies within another left out. Opened before the new root hides some of it."""
  files = {}
  for path in sorted(readable):
    if not os.path.lexists(path) or any(path.startswith(f'{folder}/') for folder in files):
      continue
    files[path] = os.readlink(path) if os.path.islink(path) else os.open(path, os.O_PATH)
  return files


def end_with_parent() -> None:
  call('prctl', libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter(order: dict, source: bytes, column: int, arch: int) -> None:
  """In the child: everything up to the program's first instruction."""
  end_with_parent()
  files = opened([*LIBRARIES, *order['readable']])
  new_root(files, source, order['scratch'], column)
  limit(order['limits'])
  drop_capabilities(column)
  landlock([path for path, found in files.items() if not isinstance(found, str)] + ['/program.py'])
  seccomp(column, arch)
  arguments = [order['python'], '-I', '-S', '-B', '-X', 'utf8', '/program.py']
  os.execve(order['python'], arguments, {'HOME': SCRATCH, 'TMPDIR': SCRATCH, 'LANG': 'C.UTF-8'})


def main() -> None:
  order = json.loads(sys.argv[1])
  status = order['status']
  try:
    if platform.machine() not in MACHINES:
      raise Refused(f'{platform.machine()}: no table of system calls')
    column, arch = MACHINES[platform.machine()]
    with open(order['source'], 'rb') as file:  # a descriptor
      source = file.read()
    os.set_inheritable(status, False)  # it closes, empty, when the program begins
    namespaces()
    end_with_parent()
    child = os.fork()
    if child == 0:
      enter(order, source, column, arch)
  except Exception as error:  # whatever it is: the program has not begun, and must not
    os.write(status, str(error).encode())
    os._exit(1)
  os.close(status)
  _, ended = os.waitpid(child, 0)
  code = os.waitstatus_to_exitcode(ended)
  os._exit(code if code >= 0 else 128 - code)


if __name__ == '__main__':
  main()
