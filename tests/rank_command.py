"""A command that tests start as ranks: its argument tells what rank 1 does; ranks that wait must be ended."""

import os
import signal
import sys
import time

is_second, what = os.environ["RANK"] == "1", sys.argv[1]
if what == "dies" and is_second:
    os.kill(os.getpid(), signal.SIGKILL)
if what in ("dies", "waits"):
    time.sleep(600)
if what == "refuses":
    sys.exit(2 if is_second else 1)
