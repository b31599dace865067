"""How does an engine's thread die while its worker lives?

With this folder on PYTHONPATH, SIGUSR2 to the process of a Ray worker raises an error in the thread, as if the engine
had.
"""

import ctypes
import signal
import sys
import threading


class EngineKilled(RuntimeError):
    """What the thread dies of."""

    def __str__(self) -> str:
        return "ended by benchmarks.chaos"


def wait_and_kill() -> None:
    signal.sigwait({signal.SIGUSR2})
    for thread in threading.enumerate():
        if thread.name == "engine":
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(EngineKilled)
            )


if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # in all threads, which start later
    threading.Thread(target=wait_and_kill, daemon=True, name="waits for SIGUSR2").start()
