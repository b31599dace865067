"""What confines a jailed process? Each layer is one function over Linux's own calls; none needs root or a binary.

This file runs inside the zygote (`python -I -S`), so it may import only the standard library.
"""

import ctypes
import errno
import os
import platform
import resource
import struct

libc = ctypes.CDLL(None, use_errno=True)
MACHINE = platform.machine()
NAMESPACES = {
    "mount": 0x20000,
    "UTS": 0x4000000,
    "IPC": 0x8000000,
    "user": 0x10000000,
    "PID": 0x20000000,
    "network": 0x40000000,
}
INSIDE_ID = 1000
"""User and group id that the code has inside its user namespace."""


class LayerError(OSError):
    """A layer could not be applied; the message says which and why."""


def call(layer: str, function: str, *arguments: object) -> int:
    """Call libc and return its result. Raises `LayerError`."""
    result = getattr(libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise LayerError(number, f"{layer}: {function}: {os.strerror(number)}")
    return result


def system_call(layer: str, number: int, *arguments: object) -> int:
    return call(layer, "syscall", ctypes.c_long(number), *arguments)


# -- namespaces ------------------------------------------------------------------------------------------

SCRATCH, EMPTY = "/tmp", "/empty"
"""The only folder that jailed code can write to, and an empty folder."""
NUM_FILES = 256
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_SETATTR, AT_CWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1


def leave_host(visible: list[str], hidden: list[str]) -> None:
    """Enter new user and mount namespaces, whose root has the `visible` files and folders, each at its own path.

    Empty folders cover the `hidden` ones. The whole tree is read-only, and no other file of the host has a name in it.
    Costs some milliseconds, once for all jails. Raises `LayerError`, also if the root is the kernel's first one
    (initramfs), which cannot be replaced.
    """
    if any(path.startswith(SCRATCH + "/") for path in visible):
        raise LayerError(errno.EINVAL, f"mount namespace: Python itself is below {SCRATCH}, which jails cover")
    uid, gid = os.getuid(), os.getgid()
    call("namespaces", "unshare", NAMESPACES["user"] | NAMESPACES["mount"])
    for name, text in (("setgroups", "deny"), ("uid_map", f"{INSIDE_ID} {uid} 1"), ("gid_map", f"{INSIDE_ID} {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise LayerError(error.errno, f"user namespace: {name}: {error.strerror}") from error
    _mount("/", MS_REC | MS_PRIVATE)
    _mount(SCRATCH, MS_NOSUID | MS_NODEV, "tmpfs", "tmpfs", "mode=755")
    os.chdir(SCRATCH)
    for path in (SCRATCH, EMPTY):
        os.mkdir(f".{path}")
    for path in visible:
        is_folder = os.path.isdir(path)
        os.makedirs(f".{path}" if is_folder else f".{os.path.dirname(path)}", exist_ok=True)
        if not is_folder:
            os.close(os.open(f".{path}", os.O_CREAT))
        _mount(f".{path}", MS_BIND | MS_REC, path)
    for path in hidden:
        _mount(f".{path}", MS_BIND, f".{EMPTY}")
    attributes = struct.pack("QQQQ", READ_ONLY, 0, 0, 0)
    where = (ctypes.c_int(AT_CWD), b".", ctypes.c_uint(AT_RECURSIVE))
    system_call("mount namespace", MOUNT_SETATTR, *where, attributes, ctypes.c_size_t(len(attributes)))
    call("mount namespace", "pivot_root", b".", b".")
    call("mount namespace", "umount2", b".", MNT_DETACH)  # the old root, which now covers the new one
    os.chdir("/")


def enter_namespaces(scratch_bytes: int) -> None:
    """Enter new mount, network, IPC and UTS namespaces; the next child is alone in a PID namespace.

    `leave_host` must have run. `SCRATCH` becomes an empty file system in memory of `scratch_bytes`, which ends with the
    namespace. Raises `LayerError`.
    """
    call("namespaces", "unshare", sum(NAMESPACES.values()) - NAMESPACES["user"])
    _mount(SCRATCH, MS_NOSUID | MS_NODEV, "tmpfs", "tmpfs", f"size={scratch_bytes},nr_inodes={NUM_FILES},mode=700")


def _mount(place: str, flags: int, source: str = "", kind: str = "", options: str = "") -> None:
    texts = (text.encode() if text else None for text in (source, place, kind))
    call("mount namespace", "mount", *texts, ctypes.c_ulong(flags), options.encode() or None)


# -- resource limits -------------------------------------------------------------------------------------

NUM_DESCRIPTORS = 32


def limit_resources(cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    """Set limits that the process cannot raise again."""
    bounds = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: NUM_DESCRIPTORS,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


def drop_root(uid: int = 65534) -> None:
    """Become the user nobody if the process is root, since the limit on processes does not apply to root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


# -- privileges ------------------------------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522


def die_with_parent() -> None:
    call("parent death signal", "prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)


def forbid_new_privileges() -> None:
    call("no new privileges", "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_privileges() -> None:
    """Drop all capabilities, forbid gaining any, and hide this process's memory from other processes."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    call("capabilities", "capset", header, bytes(24))
    forbid_new_privileges()
    call("no dumps", "prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


# -- Landlock --------------------------------------------------------------------------------------------

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITES = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8)  # write, remove and make files and folders
TRUNCATE = 1 << 14
NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
ALL_FILE_RIGHTS = 16  # since version 5


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 if there is none."""
    version = libc.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, version)


def restrict_files(readable: list[tuple[int, bool]], scratch: str | None) -> None:
    """Allow only reads of `readable` (open files and folders, and whether it is a folder), writes to `scratch`, no TCP.

    From version 6 on, also forbid signals to processes outside, and their abstract sockets.
    """
    version = landlock_version()
    if version < 1:
        raise LayerError(errno.ENOSYS, "Landlock: the kernel has none")
    file_rights = (1 << NUM_FILE_RIGHTS.get(version, ALL_FILE_RIGHTS)) - 1
    rules = [file_rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    attributes = struct.pack("QQQ", *rules)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = system_call("Landlock", LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for descriptor, is_folder in readable:
        _allow(ruleset, descriptor, (READ_FILE | READ_DIR) if is_folder else READ_FILE)
    if scratch is not None:
        descriptor = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
        _allow(ruleset, descriptor, (READ_FILE | READ_DIR | WRITES | TRUNCATE) & file_rights)
        os.close(descriptor)
    forbid_new_privileges()
    system_call("Landlock", LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def _allow(ruleset: int, descriptor: int, rights: int) -> None:
    rule = struct.pack("=Qi", rights, descriptor)
    system_call("Landlock", LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))


# -- seccomp ---------------------------------------------------------------------------------------------

SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_FILTER = 1


def install_filter(program: bytes, flags: int = 0) -> int:
    """Filter the system calls of this process and of all that it forks, with a program of `system_calls`.

    Returns the listener if the flags ask for one. Raises `LayerError`.
    """
    if MACHINE not in SECCOMP:
        raise LayerError(errno.ENOSYS, f"seccomp: no filter for {MACHINE}")
    forbid_new_privileges()
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    return system_call("seccomp", SECCOMP[MACHINE], ctypes.c_uint(SET_FILTER), ctypes.c_uint(flags), header)
