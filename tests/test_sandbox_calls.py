"""What the filter of system calls says about each call, by an interpreter of its program, for both processors."""

import errno
import re
import struct
from pathlib import Path

import pytest

from envs.sandbox.system_calls import ALLOWED, ARCHITECTURES, RULES, call_filter, thread_filter

MACHINES = ("x86_64", "aarch64")
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
ALLOW, KILL, NOTIFY = 0x7FFF0000, 0x80000000, 0x7FC00000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a classic BPF program (linux/filter.h) on a `struct seccomp_data`."""
    given = [value & 2**64 - 1 for value in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("=iIQ6Q", number, architecture, 0, *given)
    accumulator = place = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("HBBI", program, place * 8)
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                place += if_true if accumulator == value else if_false
            case 0x35:
                place += if_true if accumulator >= value else if_false
            case 0x45:
                place += if_true if accumulator & value else if_false
            case 0x06:
                return value
            case _:
                raise ValueError(f"instruction {code:#x}")


def judged(machine: str, numbers: tuple[int, int], *arguments: int) -> int:
    number = numbers[MACHINES.index(machine)]
    return verdict(call_filter(machine), ARCHITECTURES[machine], number, *arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "numbers", "arguments", "allowed"),
    [
        ("read", (0, 63), (), True),
        ("openat", (257, 56), (), True),
        ("futex", (202, 98), (), True),
        ("exit_group", (231, 94), (), True),
        ("socket", (41, 198), (1, 1), False),
        ("connect", (42, 203), (), False),
        ("sendmsg", (46, 211), (), False),
        ("recvmsg", (47, 212), (), False),
        ("sendmmsg", (307, 269), (), False),
        ("setsockopt", (54, 208), (), False),
        ("ptrace", (101, 117), (), False),
        ("tgkill", (234, 131), (), False),
        ("execve", (59, 221), (), False),
        ("io_setup", (206, 0), (), False),
        ("io_uring_setup", (425, 425), (), False),
        ("inotify_init1", (294, 26), (), False),
        ("shmctl", (31, 195), (), False),
        ("semctl", (66, 191), (), False),
        ("mq_unlink", (241, 181), (), False),
        ("timer_create", (222, 107), (), False),
        ("listmount", (458, 458), (), False),
        ("sync", (162, 81), (), False),
        ("clone, a thread", (56, 220), (0x3D0F00,), True),
        ("clone, a thread of musl", (56, 220), (0x7D0F00,), True),
        ("clone, a process", (56, 220), (0x1200011,), False),
        ("clone, a thread that is traced", (56, 220), (0x3D2F00,), False),
        ("clone, a thread in a namespace", (56, 220), (0x3F0F00,), False),
        ("prctl PR_SET_NAME", (157, 167), (15,), True),
        ("prctl PR_SET_PDEATHSIG", (157, 167), (1,), False),
        ("prctl PR_SET_DUMPABLE", (157, 167), (4,), False),
        ("fcntl F_SETFL", (72, 25), (3, 4), True),
        ("fcntl F_DUPFD_CLOEXEC", (72, 25), (3, 1030), True),
        ("fcntl F_OFD_SETLKW", (72, 25), (3, 38), True),
        ("fcntl F_SETOWN", (72, 25), (3, 8), False),
        ("fcntl F_SETOWN, high bits that the kernel drops", (72, 25), (3, 2**32 + 8), False),
        ("fcntl F_SETSIG", (72, 25), (3, 10), False),
        ("fcntl F_SETOWN_EX", (72, 25), (3, 15), False),
        ("fcntl F_SETLEASE", (72, 25), (3, 1024), False),
        ("fcntl F_NOTIFY", (72, 25), (3, 1026), False),
        ("fcntl F_SETPIPE_SZ", (72, 25), (3, 1031), False),
        ("ioctl TCGETS", (16, 29), (0, 0x5401), True),
        ("ioctl FIONBIO", (16, 29), (0, 0x5421), True),
        ("ioctl FIOSETOWN", (16, 29), (0, 0x8901), False),
        ("ioctl FIOSETOWN, high bits that the kernel drops", (16, 29), (0, 2**32 + 0x8901), False),
        ("ioctl SIOCSPGRP", (16, 29), (0, 0x8902), False),
        ("ioctl FIOASYNC", (16, 29), (0, 0x5452), False),
        ("ioctl TIOCSTI", (16, 29), (0, 0x5412), False),
        ("mmap", (9, 222), (0, 4096, 3, 0x22), True),
        ("mmap of huge pages", (9, 222), (0, 4096, 3, 0x40022), False),
        ("socketpair of streams", (53, 199), (1, 1), True),
        ("socketpair of streams, closed on exec, not blocking", (53, 199), (1, 0x80801), True),
        ("socketpair of datagrams", (53, 199), (1, 2), False),
        ("socketpair of raw sockets", (53, 199), (1, 3), False),
        ("socketpair of packets", (53, 199), (1, 5), False),
        ("socketpair of TIPC", (53, 199), (30, 1), False),
        ("sendto without an address", (44, 206), (3, 9, 1, 0, 0, 0), True),
        ("sendto an address", (44, 206), (3, 9, 1, 0, 4096, 0), False),
        ("sendto an address with high bits only", (44, 206), (3, 9, 1, 0, 2**32, 0), False),
    ],
)
def test_a_call_is_allowed_or_refused(
    name: str, numbers: tuple[int, int], arguments: tuple[int, ...], allowed: bool, machine: str
) -> None:
    assert judged(machine, numbers, *arguments) == (ALLOW if allowed else EPERM), name


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_is_judged_by_the_list(machine: str) -> None:
    column = MACHINES.index(machine)
    entries = [entry.split() for entry in ALLOWED.split(",")]
    allowed = {int(entry[1 + column]) for entry in entries if entry[1 + column] != "-"}
    ruled = {numbers[column] for numbers, _ in RULES.values()}
    assert not allowed & ruled
    program, architecture = call_filter(machine), ARCHITECTURES[machine]
    for number in {*range(600), 2**30, 2**31 - 1, -1} - ruled:
        is_unknown = number == 435 or number > 470 or number < 0
        expected = ALLOW if number in allowed else ENOSYS if is_unknown else EPERM
        assert verdict(program, architecture, number) == expected, number


@pytest.mark.parametrize("machine", MACHINES)
def test_other_abis_are_refused(machine: str) -> None:
    for architecture in (0x40000003, 0x40000028, *(set(ARCHITECTURES.values()) - {ARCHITECTURES[machine]})):
        assert verdict(call_filter(machine), architecture, 0) == KILL
    assert verdict(call_filter(machine), ARCHITECTURES[machine], 0x40000000) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_starts_of_threads_go_to_whoever_listens(machine: str) -> None:
    number, architecture = (56, 220)[MACHINES.index(machine)], ARCHITECTURES[machine]
    assert verdict(thread_filter(machine, True), architecture, number, 0x3D0F00) == NOTIFY
    assert verdict(thread_filter(machine, False), architecture, number, 0x3D0F00) == 0x50000 | errno.EAGAIN
    assert verdict(thread_filter(machine, True), architecture, number, 0x1200011) == ALLOW
    assert verdict(thread_filter(machine, True), architecture, 0, 0x3D0F00) == ALLOW
    assert verdict(call_filter(machine, may_start_threads=False), architecture, number, 0x3D0F00) == EPERM


def test_another_processor_has_no_filter() -> None:
    with pytest.raises(ValueError, match="no filter for riscv64"):
        call_filter("riscv64")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers here")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    known = {name: int(number) for name, number in found}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    column = MACHINES.index(machine)
    listed = {entry.split()[0]: entry.split()[1 + column] for entry in ALLOWED.split(",")}
    listed |= {name: str(numbers[column]) for name, (numbers, _) in RULES.items()}
    for name, number in listed.items():
        assert known.get(name, -1) == (-1 if number == "-" else int(number)), name
