"""What is done to a run: which process is killed or stopped, or what is used up, and what must the run say of it?"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos_run import POLL_S, Run
from benchmarks.node_figures import actors
from benchmarks.nodes import ABSENT_S, raylet_of

SITE = Path(__file__).parent / "chaos_site"
JAILER = "envs/sandbox/zygote.py"
FIND_S = 30.0
"""How long a process is looked for that is there only now and then."""
DISK_BYTES = 96 * 2**20
SPARE_BYTES = 9 * 2**29
"""How far the memory in use may rise above what it is at the start of a run before Ray ends a process."""
CHUNK_BYTES = 2**29
KEPT_BYTES = 3 * 2**30
"""Other programs keep as much of the machine's memory."""


@dataclass(frozen=True, slots=True)
class Fault:
    strike: Callable[[Run], str]
    """Does it; what it hit, in words."""
    codes: tuple[int | None, ...]
    """Exit codes of the attempt that it hits, if that did not complete the run; empty if it must."""
    says: str
    """Must be found in what an attempt that it ended printed, or what the run noted; empty if it cannot be told."""
    variables: Callable[[], Mapping[str, str]] = dict
    """Of the environment, when the run is started."""
    keys: tuple[str, ...] = ()
    """Overrides of the run's configuration, which change no bit of it."""
    on_nodes: bool = False
    """On two logical nodes of this machine instead of a cluster of the run's own."""
    on_small_disk: bool = False


def actor(run: Run, name: str) -> psutil.Process:
    """The living learner, or one of the workers."""
    pids = sorted(pid for what, pid in actors(run.run_dir).items() if what.startswith(name))
    return psutil.Process(run.rng.choice(pids))


def to_actor(name: str, number: signal.Signals) -> Callable[[Run], str]:
    def strike(run: Run) -> str:
        process = actor(run, name)
        process.send_signal(number)
        return f"{name} {process.pid}"

    return strike


def to_driver(number: signal.Signals) -> Callable[[Run], str]:
    def strike(run: Run) -> str:
        run.process.send_signal(number)
        return f"driver {run.process.pid}"

    return strike


def to_ray(name: str) -> Callable[[Run], str]:
    """Kill one of the processes of the run's own cluster."""

    def strike(run: Run) -> str:
        (process,) = [one for one in psutil.Process(run.process.pid).children() if one.name() == name]
        process.kill()
        return f"{name} {process.pid}"

    return strike


def to_raylet_of_a_node(run: Run) -> str:
    """Kill the raylet of a node that the driver is not on, and nothing else; another node joins some seconds later."""
    assert run.nodes is not None
    node = run.rng.choice(sorted(run.nodes.names, key=run.nodes.names.__getitem__))
    lost = sorted(name for name, pid in actors(run.run_dir).items() if run.nodes.of(pid) is node)
    psutil.Process(raylet_of(node)).kill()
    time.sleep(ABSENT_S)
    run.nodes.add()
    return f"raylet of {run.nodes.names[node]} with {', '.join(lost)}"


def to_sandbox(run: Run) -> str:
    """Kill what runs or supervises code, or forks the processes for it."""
    jailers = jailers_below(actor(run, "worker").pid)
    what = run.rng.choice(["zygote", "jail"])
    if what == "jail" and jailers and (pid := run_found(run, jailers)):
        return f"jail {pid}"
    for pid in jailers:
        kill(pid)
    return f"zygote {', '.join(map(str, jailers)) or '(none was there)'}"


def jailers_below(pid: int) -> list[int]:
    """The processes that jails are forked from, of this process and of what it started; not their forks."""
    found: list[int] = []
    for child in children(pid):
        found += [child] if JAILER in command_of(child) else jailers_below(child)
    return found


def run_found(run: Run, jailers: list[int]) -> int | None:
    """The first process below these that was seen, and is killed; they live for milliseconds."""
    deadline = time.monotonic() + FIND_S
    while time.monotonic() < deadline and run.process.poll() is None:
        for supervisor in [pid for jailer in jailers for pid in children(jailer)]:
            found = run.rng.choice([supervisor, *children(supervisor)])
            if kill(found):
                return found
    return None


def to_environment(run: Run) -> str:
    """Kill the process of an episode or, if there is none for long, the one that they are forked from."""
    worker = actor(run, "worker").pid
    zygotes = [pid for pid in children(worker) if JAILER not in command_of(pid)]
    if pid := run_found(run, zygotes):
        return f"environment {pid}"
    return f"zygote of environments {[pid for pid in zygotes if kill(pid)]}"


def to_memory(run: Run) -> str:
    """Use up memory until Ray's monitor ends a process of the run."""
    before, hog = set(actors(run.run_dir).values()), list[bytes]()
    while set(actors(run.run_dir).values()) >= before and psutil.virtual_memory().available > KEPT_BYTES:
        hog.append(b"\1" * CHUNK_BYTES)  # not zeros, which would take no memory
        run.wait_for(lambda: not set(actors(run.run_dir).values()) >= before, limit_s=2 * POLL_S)
    lost = before - set(actors(run.run_dir).values())
    return f"{len(hog) * CHUNK_BYTES / 2**30:.1f} GiB of memory; Ray ended {sorted(lost) or 'nothing'}"


def memory_monitor() -> dict[str, str]:
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + SPARE_BYTES) / memory.total
    return {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}


def to_disk(run: Run) -> str:
    """Fill the disk of the run's folder; `heal` frees it."""
    with contextlib.suppress(OSError), filler_of(run.run_dir).open("wb", buffering=0) as file:
        while file.write(bytes(2**12)):
            pass
    return f"{filler_of(run.run_dir).stat().st_size / 2**20:.0f} MiB that were free"


def filler_of(run_dir: Path) -> Path:
    return run_dir.parent / "filler"


def children(pid: int) -> list[int]:
    """Faster than psutil, which reads all processes."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return sorted(found)


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def kill(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


REPLACED, RESTARTED = r"worker \d died and is replaced: ", r"the learner died and was started again from step \d"
FAULTS: Mapping[str, Fault] = {
    "driver SIGKILL": Fault(to_driver(signal.SIGKILL), (-9,), ""),
    "driver SIGTERM": Fault(to_driver(signal.SIGTERM), (143,), "stopped by SIGTERM; continue with --resume"),
    "driver SIGINT": Fault(to_driver(signal.SIGINT), (130,), "stopped by SIGINT; continue with --resume"),
    "learner SIGKILL": Fault(to_actor("learner", signal.SIGKILL), (), RESTARTED),
    "learner SIGSTOP": Fault(to_actor("learner", signal.SIGSTOP), (), RESTARTED),
    "worker SIGKILL": Fault(to_actor("worker", signal.SIGKILL), (), REPLACED),
    "worker SIGSTOP": Fault(to_actor("worker", signal.SIGSTOP), (), REPLACED),
    "engine thread": Fault(
        to_actor("worker", signal.SIGUSR2),
        (),
        f"(?s){REPLACED}.*the engine failed: EngineKilled",
        variables=lambda: {"PYTHONPATH": str(SITE)},
    ),
    "environment process": Fault(
        to_environment,
        (),
        "",
        keys=('environments={"benchmarks.chaos_store:SlowStore": {process: true}}',),
    ),
    "sandbox process": Fault(to_sandbox, (), ""),
    "raylet of a node": Fault(to_raylet_of_a_node, (), f"{REPLACED}|{RESTARTED}", on_nodes=True),
    # Ray ends the driver in C++, at once.
    "raylet of the head": Fault(to_ray("raylet"), (1,), "Ray ended it because the raylet beside it died"),
    "GCS": Fault(to_ray("gcs_server"), (1,), "the loss of the Ray cluster: its head at .* no longer answers"),
    "memory": Fault(to_memory, (1,), "OutOfMemory", variables=memory_monitor),
    "disk full": Fault(to_disk, (1,), "No space left on device|disk is full", on_small_disk=True),
}


def is_told(fault: Fault, run: Run) -> bool:
    return re.search(fault.says, run.said) is not None


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small file system in memory at this folder, for which root's rights are needed."""
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "polygym-chaos", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
