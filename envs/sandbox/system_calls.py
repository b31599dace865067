"""Which system calls may jailed code make? Those that Python programs need; one filter refuses all others.

Calls that are not listed reach into the host or use something that all of it shares: sockets, signals to others,
tracing, keys, mounts, System V and POSIX queues and shared memory (whose names are the host's if there is no IPC
namespace), asynchronous I/O contexts, inotify and fanotify, POSIX timers (counted for the whole user), `sync`, huge
pages. Within a listed call, `RULES` restricts the values of an argument. The calls of another ABI are refused too:
those of i386 kill the process, those of x32 have numbers that are not listed. The filter cannot judge a path: `stat`,
`access`, `readlink` and `chdir` reach all names in the file system; only the tree of `isolated` hides them.

This file runs inside the zygote (`python -I -S`), so it may import only the standard library.
"""

import errno
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57, close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24,
pipe 22 -, pipe2 293 59, sendfile 40 71, copy_file_range 326 285, flock 73 32, fsync 74 82, fdatasync 75 83,
ftruncate 77 46, fallocate 285 47, open 2 -, openat 257 56, openat2 437 437, creat 85 -, stat 4 -, lstat 6 -,
fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
readlinkat 267 78, getdents 78 -, getdents64 217 61, statfs 137 43, fstatfs 138 44, getcwd 79 17, chdir 80 49,
fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
renameat2 316 276, umask 95 166,
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441,
mprotect 10 226, munmap 11 215, mremap 25 216, brk 12 214, madvise 28 233, msync 26 227,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
restart_syscall 219 128,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -,
times 100 153,
futex 202 98, set_robust_list 273 99, rseq 334 293, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168,
set_tid_address 218 96, gettid 186 178, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95,
getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
getresgid 120 150, getgroups 115 158, getpgid 121 155, getpgrp 111 -, getsid 124 156, uname 63 160, sysinfo 99 179,
getrusage 98 165, getrandom 318 278,
recvfrom 45 207, shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209
"""
"""Name, number on x86-64, number on aarch64 (`-`: it has none). Numbers from Linux's `unistd_64.h` and `unistd.h`."""

CLONE_THREAD = 0x10000
THREAD_FLAGS, CLONE_DETACHED = 0x3D0F00, 0x400000
"""Flags that `pthread_create` passes to `clone` (musl adds the second); a process or a namespace has other flags."""
PR_GET_NAME, PR_SET_NAME, PR_SET_VMA = 16, 15, 0x53564D41
TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD = 0x5401, 0x802C542A, 0x5413, 0x541B
FIONBIO, FIONCLEX, FIOCLEX = 0x5421, 0x5450, 0x5451
DUPLICATES, FLAGS, LOCKS = (0, 1030), (1, 2, 3, 4), (5, 6, 7, 36, 37, 38)
MAP_HUGETLB = 0x40000
AF_UNIX, SOCK_STREAM, SOCK_FLAGS = 1, 1, 0x80800
ALL_BITS = 0xFFFFFFFF
Condition = tuple[int, int, tuple[int, ...]]
RULES: dict[str, tuple[tuple[int, int], tuple[Condition, ...]]] = {
    "clone": ((56, 220), ((0, ALL_BITS ^ CLONE_DETACHED, (THREAD_FLAGS,)),)),
    "prctl": ((157, 167), ((0, ALL_BITS, (PR_GET_NAME, PR_SET_NAME, PR_SET_VMA)),)),
    "ioctl": ((16, 29), ((2, ALL_BITS, (TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX)),)),
    "fcntl": ((72, 25), ((2, ALL_BITS, (*DUPLICATES, *FLAGS, *LOCKS)),)),
    "mmap": ((9, 222), ((6, MAP_HUGETLB, (0,)),)),
    "socketpair": ((53, 199), ((0, ALL_BITS, (AF_UNIX,)), (2, ALL_BITS ^ SOCK_FLAGS, (SOCK_STREAM,)))),
    "sendto": ((44, 206), ((8, ALL_BITS, (0,)), (9, ALL_BITS, (0,)))),
}
"""Name, its numbers, and conditions on 32-bit words of its arguments (two per argument, the low one first): the word
under the mask is one of the values. So `prctl` cannot let a jail outlive its supervisor (PR_SET_PDEATHSIG); `fcntl` and
`ioctl` cannot make the kernel send signals (F_SETOWN, F_SETOWN_EX, F_SETSIG, F_NOTIFY, F_SETLEASE, FIOSETOWN,
SIOCSPGRP, FIOASYNC); socket pairs are streams, which reach only each other, and nothing is sent to an address."""
CLONE3 = 435
FIRST_UNKNOWN = 471
"""Calls from this number on are newer than the list, or of the x32 ABI."""

LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE, NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT, WORD_BYTES = 0, 4, 16, 4
Instruction = tuple[int, int, int, int]
Block = tuple[Instruction, ...]


def allowed_numbers(machine: str) -> dict[str, int]:
    """Numbers of the calls that are allowed with any arguments, by name."""
    entries = [entry.split() for entry in ALLOWED.split(",")]
    return {name: int(numbers[column(machine)]) for name, *numbers in entries if numbers[column(machine)] != "-"}


def column(machine: str) -> int:
    """The index of this machine's numbers. Raises `ValueError` if there are none."""
    if machine not in ARCHITECTURES:
        raise ValueError(f"seccomp: no filter for {machine}")
    return list(ARCHITECTURES).index(machine)


def call_filter(machine: str, may_start_threads: bool = True) -> bytes:
    """The filter of jailed code: calls that it refuses fail with EPERM.

    `clone3`, and calls from `FIRST_UNKNOWN` on, fail with ENOSYS, so that libc falls back to an older call. Raises
    `ValueError` for a machine other than the two that the list has numbers for.
    """
    refuse = ((RETURN, 0, 0, REFUSE | errno.EPERM),)
    missing = ((RETURN, 0, 0, REFUSE | errno.ENOSYS),)
    allow = ((RETURN, 0, 0, ALLOW),)
    blocks: dict[int, Block] = dict.fromkeys(allowed_numbers(machine).values(), allow)
    for numbers, conditions in RULES.values():
        blocks[numbers[column(machine)]] = _checked(conditions)
    blocks[CLONE3] = missing
    if not may_start_threads:
        blocks[RULES["clone"][0][column(machine)]] = refuse
    points = [(number, blocks.get(number, refuse)) for number in range(FIRST_UNKNOWN)] + [(FIRST_UNKNOWN, missing)]
    changes = [point for place, point in enumerate(points) if place == 0 or point[1] is not points[place - 1][1]]
    program = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        *_searched(changes),
    ]
    return _packed(program)


def thread_filter(machine: str, is_heard: bool) -> bytes:
    """A filter for starts of threads only: they wait for the listener, or all fail with EAGAIN."""
    action = NOTIFY if is_heard else REFUSE | errno.EAGAIN
    program = [
        (LOAD, 0, 0, NUMBER_AT),
        (EQUAL, 0, 3, RULES["clone"][0][column(machine)]),
        (LOAD, 0, 0, ARGUMENTS_AT),
        (ANY_BIT, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, action),
        (RETURN, 0, 0, ALLOW),
    ]
    return _packed(program)


def _packed(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _checked(conditions: tuple[Condition, ...]) -> Block:
    """Allow if all conditions hold."""
    block: list[Instruction] = []
    for word, mask, values in conditions:
        block += [(LOAD, 0, 0, ARGUMENTS_AT + word * WORD_BYTES), (AND, 0, 0, mask)]
        block += [(EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
        block.append((RETURN, 0, 0, REFUSE | errno.EPERM))
    return (*block, (RETURN, 0, 0, ALLOW))


def _searched(changes: list[tuple[int, Block]]) -> Block:
    """The block of the last change at or below the loaded number, by bisection: the kernel runs it for each number."""
    if len(changes) == 1:
        return changes[0][1]
    middle = len(changes) // 2
    below = _searched(changes[:middle])
    return ((AT_LEAST, len(below), 0, changes[middle][0]), *below, *_searched(changes[middle:]))
