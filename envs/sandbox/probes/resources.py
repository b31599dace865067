"""Can code take more than its share: time, memory, output, disk, threads, processes, shared kernel resources?"""

from envs.sandbox.probes.attempt import Probe
from envs.sandbox.probes.code import START_THREADS

_ENDLESS = ("timeout", "killed")

RESOURCES = (
    Probe("infinite loop", "while True: pass", "process", _ENDLESS),
    Probe("sleep without end", "import time\ntime.sleep(10**6)", "process", _ENDLESS),
    Probe(
        "ignores signals",
        "import signal, time\nfor n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(10**6)",
        "process",
        _ENDLESS,
    ),
    Probe(
        "busy threads",
        "import threading\ndef spin():\n    while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()",
        "process",
        (*_ENDLESS, "error"),
    ),
    Probe("waits for input", "input()\nprint('ESCAPED')", "process", ("error",)),
    Probe(
        "fork bomb",
        "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        print('ESCAPED', flush=True); os._exit(0)",
        "process",
    ),
    Probe(
        "daemon that outlives its run",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(4)\n"
        "        open('$planted', 'w').close()\n        os._exit(0)\n    os._exit(0)",
        "process",
    ),
    Probe("runs another program", "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])"),
    Probe("posix_spawn", "import subprocess\nprint(subprocess.run(['/bin/echo', 'ESCAPED']))", "process"),
    Probe("memory bomb", "a = []\nwhile True: a.append(bytearray(10**7))", "process", ("memory", *_ENDLESS)),
    Probe("mapped memory", "import mmap\nm = mmap.mmap(-1, 4 * 1024**3)\nprint('ESCAPED')", "process"),
    Probe(
        "memory in nameless files",
        "import os\nf = os.memfd_create('x')\nfor _ in range(100): os.write(f, bytes(10**7))\nprint('ESCAPED')",
    ),
    Probe("floods stdout", "while True: print('x' * 10**6)", "process", ("output_limit",)),
    Probe(
        "floods stderr",
        "import sys\nwhile True: print('x' * 10**6, file=sys.stderr)",
        "process",
        ("output_limit",),
    ),
    Probe(
        "fills the disk with one file",
        "f = open('big', 'wb')\nfor _ in range(100): f.write(bytes(10**6))\nprint('ESCAPED')",
        "process",
    ),
    Probe(
        "fills the disk with many files",
        "for i in range(2000): open(f'f{i}', 'wb').write(bytes(10**5))\nprint('ESCAPED')",
        "process",
    ),
    Probe(
        "raises its limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))\nprint('ESCAPED')",
        "process",
    ),
    Probe(
        "holds on to its own pipes",
        "import os, time\nfor n in range(6):\n    try: os.open(f'/proc/self/fd/{n}', os.O_WRONLY)\n"
        "    except OSError: pass\ntime.sleep(10**6)",
        "process",
        _ENDLESS,
    ),
    Probe("threads without end", START_THREADS, "process"),
)
