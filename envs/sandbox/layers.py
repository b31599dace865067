"""What holds a jailed process? Each layer is one function over Linux's own calls; nothing here needs root or a binary.

This file runs inside the zygote (`python -I -S`), so it may import nothing but the standard library.
"""

import ctypes
import errno
import os
import platform
import resource
import struct

libc = ctypes.CDLL(None, use_errno=True)
MACHINE = platform.machine()
NAMESPACES = {"mount": 0x20000, "UTS": 0x4000000, "IPC": 0x8000000, "user": 0x10000000, "PID": 0x20000000}
NETWORK = 0x40000000
CLONE_THREAD = 0x10000
INSIDE_ID = 1000
"""User and group id that the code has inside its user namespace."""


class LayerError(OSError):
    """A layer could not be applied; says which and why."""


def call(layer: str, function: str, *arguments: object) -> int:
    """Call libc and give its result. Raises `LayerError`."""
    result = getattr(libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise LayerError(number, f"{layer}: {function}: {os.strerror(number)}")
    return result


def system_call(layer: str, number: int, *arguments: object) -> int:
    return call(layer, "syscall", ctypes.c_long(number), *arguments)


# -- namespaces ------------------------------------------------------------------------------------------


def enter_namespaces(scratch: str, scratch_bytes: int) -> None:
    """New user, mount, network, IPC and UTS namespaces; the next child is alone in a PID namespace.

    `scratch` becomes an empty file system in memory of that size, which goes with the namespace.
    """
    uid, gid = os.getuid(), os.getgid()
    call("namespaces", "unshare", sum(NAMESPACES.values()) | NETWORK)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{INSIDE_ID} {uid} 1"), ("gid_map", f"{INSIDE_ID} {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise LayerError(error.errno, f"user namespace: {name}: {error.strerror}") from error
    private = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
    call("mount namespace", "mount", None, b"/", None, ctypes.c_ulong(private), None)
    options = f"size={scratch_bytes},nr_inodes=256,mode=700".encode()
    no_set_id, no_devices = 2, 4
    flags = ctypes.c_ulong(no_set_id | no_devices)
    call("mount namespace", "mount", b"tmpfs", scratch.encode(), b"tmpfs", flags, options)


# -- resource limits -------------------------------------------------------------------------------------

NUM_DESCRIPTORS = 32


def limit_resources(cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    """Bounds that the process cannot raise again."""
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
    """Become nobody where the process is root; the limit on processes does not hold for root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


# -- privileges ------------------------------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 4, 38, 22
CAPABILITY_VERSION_3 = 0x20080522


def die_with_parent() -> None:
    call("parent death signal", "prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)


def drop_privileges() -> None:
    """No capabilities, none to be gained, and no look into this process's memory from outside."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    call("capabilities", "capset", header, bytes(24))
    call("no new privileges", "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("no dumps", "prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


# -- Landlock --------------------------------------------------------------------------------------------

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITES = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8)  # write, remove and make files and folders
TRUNCATE = 1 << 14
NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
ALL_FILE_RIGHTS = 16  # since version 5


def landlock_version() -> int:
    """Which Landlock the kernel has; 0 where there is none."""
    version = libc.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, version)


def restrict_files(readable: list[tuple[int, bool]], scratch: str | None) -> None:
    """Only `readable` (open files and folders, and whether it is a folder) can be read, only `scratch` written; no TCP.

    From version 6 on no signal and no abstract socket of a process outside either.
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
    call("no new privileges", "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    system_call("Landlock", LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def _allow(ruleset: int, descriptor: int, rights: int) -> None:
    rule = struct.pack("=Qi", rights, descriptor)
    system_call("Landlock", LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))


# -- seccomp ---------------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = {
    "x86_64": (
        *(41, 49, 50, 42, 43, 288),  # socket, bind, listen, connect, accept, accept4
        *(57, 58, 59, 322),  # fork, vfork, execve, execveat
        *(101, 310, 311, 312, 440, 448),  # ptrace, process_vm_readv, _writev, kcmp, process_madvise, process_mrelease
        *(62, 200, 234, 129, 297, 424, 434, 438),  # kill, tkill, tgkill, rt_(tg)sigqueueinfo, pidfd_*
        *(165, 166, 155, 161, 308, 272),  # mount, umount2, pivot_root, chroot, setns, unshare
        *(
            428,
            429,
            430,
            431,
            432,
            442,
            300,
        ),  # open_tree, move_mount, fsopen, fsconfig, fsmount, mount_setattr, fanotify
        *(321, 298, 425, 426, 427, 323, 250, 248, 249),  # bpf, perf_event_open, io_uring_*, userfaultfd, keys
        *(303, 304, 135, 319, 447),  # name_to_handle_at, open_by_handle_at, personality, memfd_create, memfd_secret
        *(29, 30, 64, 68, 240),  # shmget, shmat, semget, msgget, mq_open
        *(302, 141, 144, 142, 203, 314, 251, 256, 279),  # prlimit64 (see below), priorities, affinity, moving pages
        *(90, 91, 268, 452, 92, 93, 260, 94),  # chmod and chown families
        *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199, 133, 259),  # times, extended attributes, mknod
        *(246, 320, 175, 313, 176, 169, 167, 168, 179, 163),  # kexec, modules, reboot, swap, quota, accounting
        *(164, 227, 159, 305, 170, 171, 103, 153, 173, 172, 317),  # clocks, names, syslog, vhangup, ports, seccomp
        *(76, 463, 466, 469),  # truncate (which Landlock 1 and 2 do not know), setxattrat, removexattrat, file_setattr
    ),
    "aarch64": (
        *(198, 200, 201, 203, 202, 242),
        *(221, 281),
        *(117, 270, 271, 272, 440, 448),
        *(129, 130, 131, 138, 240, 424, 434, 438),
        *(40, 39, 41, 51, 268, 97),
        *(428, 429, 430, 431, 432, 442, 262),
        *(280, 241, 425, 426, 427, 282, 219, 217, 218),
        *(264, 265, 92, 279, 447),
        *(194, 196, 190, 186, 180),
        *(261, 140, 119, 118, 122, 274, 30, 238, 239),
        *(52, 53, 452, 55, 54),
        *(88, 5, 6, 7, 14, 15, 16, 33),
        *(104, 294, 105, 273, 106, 142, 224, 225, 60, 89),
        *(170, 112, 171, 266, 161, 162, 116, 58, 277),
        *(45, 463, 466, 469),
    ),
}
CLONE = {"x86_64": 56, "aarch64": 220}
REFUSED_WITH = {
    "x86_64": ((157, 0, (1,)), (72, 1, (8, 10, 15))),
    "aarch64": ((167, 0, (1,)), (25, 1, (8, 10, 15))),
}
"""Calls refused for these values of one argument: prctl with PR_SET_PDEATHSIG, which would let a jail outlive its
supervisor; fcntl with F_SETOWN, F_SETSIG and F_SETOWN_EX, by which the kernel signals others."""
CLONE3 = 435
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT, ARGUMENT_BYTES = 0, 4, 16, 8
FOREIGN_ABI = 0x40000000
"""Bit of x86-64 system call numbers in the x32 ABI."""


def seccomp_program() -> bytes:
    """The filter: threads may start, processes may not; what reaches out of the process is refused with EPERM."""
    if MACHINE not in ARCHITECTURES:
        raise LayerError(errno.ENOSYS, f"seccomp: no filter for {MACHINE}")
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    program = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURES[MACHINE]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (AT_LEAST, 0, 1, FOREIGN_ABI),
        refuse,
        (EQUAL, 0, 1, CLONE3),  # its flags cannot be looked at; libc falls back to clone
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
        (EQUAL, 0, 4, CLONE[MACHINE]),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        (ANY_BIT, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, ALLOW),
        refuse,
    ]
    for number, argument, values in REFUSED_WITH[MACHINE]:
        checks = [step for value in values for step in ((EQUAL, 0, 1, value), refuse)]
        program += [
            (EQUAL, 0, len(checks) + 2, number),
            (LOAD, 0, 0, FIRST_ARGUMENT_AT + argument * ARGUMENT_BYTES),
            *checks,
            (RETURN, 0, 0, ALLOW),
        ]
    for number in REFUSED[MACHINE]:
        program += [(EQUAL, 0, 1, number), refuse]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def filter_system_calls(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    call("seccomp", "prctl", PR_SET_SECCOMP, 2, header, 0, 0)
