"""How do Python processes of Ray start warm in tests? Python imports a copy of this module, sitecustomize.py, when it
starts. A script of Ray is handed to the server of tests/warm_server.py; this process then only waits for its end.
"""

import os
import sys


def _command(argv: list[str]) -> list[str] | None:
    """The script and its arguments if this is a process of Ray, or a stage that a run or a chain starts."""
    rest = [one for one in argv[1:] if one != "-u"]
    is_ray = bool(rest) and "/ray/" in rest[0] and rest[0].endswith(".py")
    is_stage = rest[:2] == ["-m", "sft"] or rest[:3] in (["-m", "rl", "train"], ["-m", "rl", "export"])
    return rest if is_ray or is_stage else None


def _hand_over(address: str, command: list[str]) -> None:
    import json
    import select
    import signal
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
        except OSError:
            return  # the server's run is over: this process starts by itself
        signals = [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        request = {"command": command, "environment": dict(os.environ), "folder": os.getcwd(), "blocked": signals}
        request |= {"session": os.getsid(0), "process_group": 0 if os.getpgrp() == os.getpid() else None}
        data = json.dumps(request).encode()
        socket.send_fds(server, [len(data).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(data)
        pid = server.recv(4)
        if not pid:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(int.from_bytes(pid, "big"), number))
        parent = os.getppid()
        while not select.select([server], [], [], 0.5)[0]:
            if os.getppid() != parent:
                return os._exit(1)  # the server ends the process whose client has gone
        status = int.from_bytes(server.recv(4) or (9).to_bytes(4, "big"), "big")
    if os.WIFSIGNALED(status):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


if (_address := os.environ.get("POLYGYM_WARM")) and (_mine := _command(sys.orig_argv)):
    _hand_over(_address, _mine)
