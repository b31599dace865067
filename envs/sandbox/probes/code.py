"""Pieces of code that several probes share."""

SYSTEM_CALL = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    ctypes.set_errno(0)
    number = x86 if platform.machine() == "x86_64" else arm
    return libc.syscall(ctypes.c_long(number), *arguments)
"""

START_THREADS = """
import ctypes
libc = ctypes.CDLL(None)
small, thread, num_started = ctypes.create_string_buffer(256), ctypes.c_ulong(), 0
libc.pthread_attr_init(small)
libc.pthread_attr_setstacksize(small, ctypes.c_size_t(16384))
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
while num_started < 1000 and libc.pthread_create(ctypes.byref(thread), small, pause, None) == 0:
    num_started += 1
print("ESCAPED" if num_started == 1000 else "", num_started)
"""


def reaches_kernel(*calls: str) -> str:
    """Code that makes system calls, each given as the arguments of `call`; a call that is not refused has escaped.

    A call that is not refused succeeds, or fails with an error other than EPERM or ENOSYS.
    """
    attempts = "".join(
        f"if call({arguments}) >= 0 or ctypes.get_errno() not in (1, 38):\n"
        f"    print('ESCAPED', {arguments.split(',')[0]}, ctypes.get_errno())\n"
        for arguments in calls
    )
    return SYSTEM_CALL + attempts
