"""Can code make the kernel do what no program needs: tracing, mounts, signals, keys, shared names, old interfaces?

The numbers are those of x86-64 and of aarch64; -1 means no such call. The arguments are wrong or harmless, in case a
call is let through.
"""

from envs.sandbox.probes.attempt import Probe
from envs.sandbox.probes.code import SYSTEM_CALL, reaches_kernel

_FCNTL, _IOCTL = "72, 25, 1", "16, 29, 1"

KERNEL = (
    Probe(
        "attaches to a process",
        SYSTEM_CALL + "print('ESCAPED' if call(101, 117, 16, $victim, 0, 0) == 0 else '')",
    ),
    Probe(
        "reads another process's memory",
        SYSTEM_CALL + "print('ESCAPED' if call(310, 270, $host, None, 0, None, 0, 0) == 0 else '')",
    ),
    Probe(
        "namespaces of its own",
        SYSTEM_CALL + "print('ESCAPED' if call(272, 97, 0x10000000) == 0 else '')",
    ),
    Probe("mounts", SYSTEM_CALL + "print('ESCAPED' if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else '')"),
    Probe(
        "system calls of another ABI",
        SYSTEM_CALL + "print('ESCAPED' if call(0x40000000 + 39, 0x40000000 + 172) > 0 else '')",
    ),
    Probe(
        "outlives its supervisor",
        SYSTEM_CALL + "print('ESCAPED' if libc.prctl(1, 0, 0, 0, 0) == 0 else '')",
    ),
    Probe(
        "system calls of 32-bit programs",
        SYSTEM_CALL + "import mmap\n"
        "if platform.machine() == 'x86_64':\n"
        "    page = mmap.mmap(-1, 4096, prot=7)\n"
        "    page.write(bytes.fromhex('53b814000000cd805bc3'))\n"  # push rbx; mov eax, getpid; int 0x80; pop rbx; ret
        "    address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "    print('ESCAPED' if ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 else '')",
    ),
    Probe(
        "has the kernel send signals",  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
        reaches_kernel(*(f"{_FCNTL}, {command}, bytes(8)" for command in (8, 10, 15, 1024, 1026))),
    ),
    Probe(
        "has descriptors send signals",  # FIOSETOWN, SIOCSPGRP, FIOASYNC, TIOCSTI
        reaches_kernel(*(f"{_IOCTL}, {request}, bytes(8)" for request in (0x8901, 0x8902, 0x5452, 0x5412))),
    ),
    Probe(
        "signals by other calls",  # tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_open, _send_signal, _getfd
        reaches_kernel(
            *(
                "200, 130, -1, 0",
                "234, 131, -1, -1, 0",
                "129, 138, -1, 0, bytes(128)",
                "297, 240, -1, -1, 0, bytes(128)",
            ),
            *("434, 434, os.getpid(), 0", "424, 424, -1, 0, None, 0", "438, 438, -1, 0, 0"),
        ),
    ),
    Probe(
        "looks into processes",  # process_vm_writev, kcmp, perf_event_open, get_robust_list, process_madvise, _mrelease
        reaches_kernel(
            *(
                "311, 271, $host, None, 0, None, 0, 0",
                "312, 272, $host, $host, 0, 0, 0",
                "298, 241, bytes(128), 0, -1, -1, 0",
            ),
            *("274, 100, 0, bytearray(8), bytearray(8)", "440, 440, -1, None, 0, 0, 0", "448, 448, -1, 0"),
        ).replace("bytearray(8)", "ctypes.create_string_buffer(8)"),
    ),
    Probe(
        "shared memory of the host",
        SYSTEM_CALL + "call(31, 195, $segment, 0, None)",
    ),
    Probe(
        "System V names",  # shmget, shmctl, shmdt, semget, semctl, semop, semtimedop, msgget, msgctl, msgsnd, msgrcv
        reaches_kernel(
            *(
                "29, 194, 99, 1, 0",
                "31, 195, -1, 0, None",
                "67, 197, None",
                "64, 190, 99, 1, 0",
                "66, 191, -1, 0, 0, None",
            ),
            *("65, 193, -1, bytes(6), 1", "220, 192, -1, bytes(6), 1, None", "68, 186, 99, 0", "71, 187, -1, 0, None"),
            *("69, 189, -1, bytes(16), 1, 0", "70, 188, -1, bytes(16), 1, 0, 0"),
        ),
    ),
    Probe(
        "message queues",  # mq_open, mq_unlink, mq_timedsend, mq_timedreceive, mq_notify, mq_getsetattr
        reaches_kernel(
            *("240, 180, b'polygym-none', 0, 0, None", "241, 181, b'polygym-none'", "242, 182, -1, b'', 0, 0, None"),
            *("243, 183, -1, None, 0, None, None", "244, 184, -1, None", "245, 185, -1, None, None"),
        ),
    ),
    Probe(
        "asynchronous input and output",  # io_setup, io_destroy, io_uring_setup, io_uring_enter, io_uring_register
        reaches_kernel(
            *("206, 0, 1000, ctypes.byref(ctypes.c_ulong())", "207, 1, 0", "425, 425, 1, bytes(120)"),
            *("426, 426, -1, 0, 0, 0, None, 0", "427, 427, -1, 0, None, 0"),
        ),
    ),
    Probe(
        "watches files",  # inotify_init1, inotify_add_watch, fanotify_init, fanotify_mark
        reaches_kernel("294, 26, 0", "254, 27, -1, b'/', 1", "300, 262, 0, 0", "301, 263, -1, 0, 0, -1, None"),
    ),
    Probe(
        "timers of the user",  # timer_create, timerfd_create, signalfd4, eventfd2
        reaches_kernel(
            "222, 107, 1, None, ctypes.byref(ctypes.c_int())",
            "283, 85, 1, 0",
            "289, 74, -1, bytes(8), 8, 0",
            "290, 19, 0, 0",
        ),
    ),
    Probe(
        "lists mounts",  # listmount, statmount, open_tree, fsopen, fspick, mount_setattr
        reaches_kernel(
            *("458, 458, b'\\x18\\0\\0\\0\\0\\0\\0\\0' + b'\\xff' * 8 + bytes(8), bytes(128), 16, 0",),
            *("457, 457, bytes(24), bytes(512), 512, 0", "428, 428, -100, b'/', 0", "430, 430, b'tmpfs', 0"),
            *("433, 433, -100, b'/', 0", "442, 442, -100, b'/', 0, bytes(32), 32"),
        ),
    ),
    Probe(
        "enters other namespaces",  # setns, pivot_root, chroot
        reaches_kernel("308, 268, -1, 0", "155, 41, b'/', b'/'", "161, 51, b'.'"),
    ),
    Probe(
        "keys",  # add_key, request_key, keyctl
        reaches_kernel(
            "248, 217, b'user', b'x', b'y', 1, -2", "249, 218, b'user', b'x', None, 0", "250, 219, 0, -4, 0"
        ),
    ),
    Probe("writes out all disks", reaches_kernel("162, 81", "306, 267, 1")),  # sync, syncfs
    Probe("huge pages", reaches_kernel("9, 222, None, 2 << 20, 3, 0x40022, -1, 0")),
    Probe(
        "locks memory",  # mlock, mlockall, mlock2, memfd_secret, userfaultfd
        reaches_kernel("149, 228, None, 0", "151, 230, 1", "325, 284, None, 0, 0", "447, 447, 0", "323, 282, 1"),
    ),
    Probe(
        "old and odd calls",  # bpf, modify_ldt, splice, tee, vmsplice, remap_file_pages, personality
        reaches_kernel(
            *("321, 280, 0, bytes(64), 64", "154, -1, 0, bytes(16), 16", "275, 76, -1, None, -1, None, 1, 0"),
            *("276, 77, -1, -1, 1, 0", "278, 75, -1, None, 0, 0", "216, 234, None, 0, 0, 0, 0", "135, 92, 0xffffffff"),
        ),
    ),
)
