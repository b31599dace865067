"""How do the processes of a test start in milliseconds? This process has imported what they need, and forks them.

An engine spends 12 of its 13 seconds of CPU on imports, a driver 7 of 10, a learner 6 of 7. A forked process goes on as
the command that was asked for, with its own arguments, environment, folder and files. A driver forks a server of its
own first, so that Ray's processes are in its family, as those that start by themselves.
"""

import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl.importing import without_collector
from rl.library_output import quieten_libraries
from tests.warm_commands import WarmPopen

REPO = Path(__file__).parents[1]
MODULES = (
    *("ray", "torch", "torch.distributed.checkpoint", "transformers", "trl", "peft", "datasets", "matplotlib.pyplot"),
    *("vllm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner"),
    *("vllm.model_executor.models.nemotron_h", "vllm.model_executor.models.llama"),
    *("transformers.models.nemotron_h.modeling_nemotron_h", "transformers.models.llama.modeling_llama"),
    *("rl.train_command", "rl.train", "rl.engine.vllm_core", "rl.learner.actor", "rl.learner.learner", "sft.train"),
)
PATH = os.environ.get("PYTHONPATH")
FIRST_JOB = "01000000"
"""Ray's workers read the number of their job when the library is loaded; that of a cluster's first driver is known."""


def import_all() -> None:
    """What the processes of a run import, in an environment as theirs."""
    quieten_libraries()
    # Ray's library reads these two when it is loaded, and a worker must have them; it looks whether its raylet lives.
    os.environ.update(RAY_JOB_ID=FIRST_JOB, RAY_RAYLET_PID=str(os.getpid()), OMP_NUM_THREADS="1")
    with without_collector():
        for module in MODULES:
            importlib.import_module(module)


class Server:
    """Forks a process for each request. `serve` returns in the forked process only.

    With a driver, it ends when the driver and all that it has forked have ended.
    """

    def __init__(self, address: str) -> None:
        Path(address).unlink(missing_ok=True)  # of an earlier process of the same number
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(64)
        self.driver = -1
        self.is_last = False
        self.children: dict[int, tuple[int, int, socket.socket]] = {}
        """By the descriptors of both the child and its client: pid, pidfd and client."""

    def watch(self, driver: int) -> None:
        try:
            self.driver = os.pidfd_open(driver)
        except ProcessLookupError:
            os._exit(0)

    def serve(self) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        if self.driver >= 0:
            poll.register(self.driver, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self.driver:
                    poll.unregister(descriptor)
                    self.is_last = True
                elif descriptor == self.listener.fileno():
                    if (request := self._accept(poll)) is not None:
                        return request
                elif descriptor in self.children:
                    self._end(descriptor, poll)
                    break  # what else has happened may be of descriptors that are closed now
            if self.is_last and not self.children:
                os._exit(0)

    def _accept(self, poll: select.poll) -> dict[str, Any] | None:
        client, _ = self.listener.accept()
        request, files = received(client)
        pid = os.fork() if request is not None and is_ours(request) else None
        if pid == 0:
            client.close()
            self.close()
            for standard, file in enumerate(files):
                os.dup2(file, standard)
        for file in files:
            os.close(file)
        if pid == 0:
            return request
        if pid is None:
            client.close()
            return None
        child = pid, os.pidfd_open(pid), client
        for descriptor in (child[1], client.fileno()):
            self.children[descriptor] = child
            poll.register(descriptor, select.POLLIN)
        client.sendall(pid.to_bytes(4, "big"))
        return None

    def _end(self, descriptor: int, poll: select.poll) -> None:
        """Tell the client that its process has ended, or end the process of a client that has gone."""
        pid, pidfd, client = self.children[descriptor]
        if descriptor != pidfd:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        for one in (pidfd, client.fileno()):
            poll.unregister(one)
            del self.children[one]
        with suppress(OSError):
            client.sendall(status.to_bytes(4, "big"))
        client.close()
        os.close(pidfd)

    def close(self) -> None:
        self.listener.close()
        if self.driver >= 0:
            os.close(self.driver)
        for _, pidfd, client in set(self.children.values()):
            os.close(pidfd)
            client.close()


def received(client: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request and the three standard files of its process; None of a client that only looked."""
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    data = client.makefile("rb").read(int.from_bytes(size, "big"))
    return (json.loads(data) if data else None), files


def is_ours(request: dict[str, Any]) -> bool:
    """Whether the process would import the same modules."""
    environment, folder = request["environment"], Path(request["folder"])
    if environment.get("RAY_JOB_ID", FIRST_JOB) != FIRST_JOB:
        return False
    return environment.get("PYTHONPATH") == PATH and (folder == REPO or not (folder / "rl").exists())


def become(request: dict[str, Any]) -> None:
    """This process is the one that was asked for, up to its code."""
    os.environ.clear()
    os.environ.update(request["environment"])
    if "RAY_RAYLET_PID" in os.environ:
        os.environ["RAY_RAYLET_PID"] = str(os.getppid())  # agents end when their parent is another
    os.chdir(request["folder"])
    if request["session"] != os.getsid(0):
        os.setsid()
    elif request["process_group"] is not None:
        os.setpgid(0, request["process_group"])
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import numpy
    import ray._raylet

    library: Any = ray._raylet
    library.Config.initialize("")  # Ray has read the variables of the server's environment
    library.AuthenticationTokenLoader.instance().reset_cache()
    library.setproctitle(" ".join(["python", *request["command"]]))
    numpy.random.seed()
    random.seed()
    streams: Any = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(line_buffering=stream.isatty() or stream is sys.stderr)


def run(command: list[str]) -> None:
    sys.orig_argv = [sys.executable, *command]
    if command[0] == "-m":
        sys.argv = ["", *command[2:]]
        sys.path[0] = os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def serve_family(folder: str) -> dict[str, Any] | None:
    """Fork the server of this driver; what it is asked for, in a process that it has forked."""
    address = f"{folder}/{os.getpid()}"
    os.environ["POLYGYM_WARM"] = address
    subprocess.Popen = WarmPopen
    server = Server(address)
    driver = os.getpid()
    if os.fork():
        server.close()
        return None
    server.watch(driver)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # those of the driver's process group are for the driver
    return server.serve()


def main(address: str) -> None:
    import_all()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = Server(address).serve()
    become(request)
    while request["command"][0] == "-m" and (theirs := serve_family(str(Path(address).parent))) is not None:
        request = theirs
        become(request)
    run(request["command"])


if __name__ == "__main__":
    main(sys.argv[1])
