"""How does a command of polygym run in a process of its own, for which this one waits?"""

import subprocess
import sys
import time
from collections.abc import Sequence

from rl.stop import POLL_S, STOPS, StopRequested, end_with_parent, raise_if_requested


def run_process(words: Sequence[str]) -> tuple[int, StopRequested | None]:
    """Run `python -m WORDS`, which prints here; its exit code, and the stop that was requested meanwhile, if any.

    A stop is passed on to the process, which has ended when this function returns.
    """
    stop: StopRequested | None = None
    sys.stdout.flush()
    with subprocess.Popen([sys.executable, "-m", *words], preexec_fn=end_with_parent) as process:
        try:
            while True:
                code = process.poll()
                try:
                    raise_if_requested()  # also after the end, which Ctrl-C may bring about without this process
                except StopRequested as request:
                    stop = request
                    number = request.exit_code - 128
                    process.send_signal(number if number in STOPS else STOPS[-1])
                if code is not None:
                    return code, stop
                time.sleep(POLL_S)
        finally:
            process.kill()
