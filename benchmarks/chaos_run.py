"""How is a run started, watched, disturbed at a drawn moment, and resumed until it is done?"""

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import typer

from benchmarks.node_figures import lines, num_steps
from benchmarks.nodes import Nodes
from rl.runs.folder import RunFolder
from rl.stop import end_with_parent

WAIT_S = 420.0
"""For an attempt, and until the moment has come. The run's own deadlines are shorter."""
LEFT_S = 60.0
"""How long what an attempt started may outlive the run."""
MAX_ATTEMPTS = 4
VARIABLES = {"CHAOS_DELAY_S": "1.5"}
POLL_S = 0.02
LOOK_S = 0.3


@dataclass(frozen=True, slots=True)
class Moment:
    """After this many steps, and this fraction of the last one's time."""

    step: int
    fraction: float

    def __str__(self) -> str:
        return f"{self.step} + {self.fraction:.2f}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the command."""

    code: int | None
    """None if it had to be killed, because it ended in no time."""
    seconds: float
    said: str
    is_done: bool
    """Whether the run was complete when it ended."""

    @property
    def is_true(self) -> bool:
        """Whether the exit code says what is so."""
        return (self.code == 0) == self.is_done


@dataclass
class Run:
    """A run in a folder, with all processes that it ever had."""

    run_dir: Path
    command: Sequence[str]
    rng: random.Random
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the first attempt's environment."""
    nodes: Nodes | None = None
    attempts: list[Attempt] = field(default_factory=list)
    hit: str = ""
    """What the disturbance did."""
    _family: set[psutil.Process] = field(default_factory=set)
    _looked_at: float = 0.0

    def __post_init__(self) -> None:
        self._shared = shared_memory()

    @property
    def log(self) -> Path:
        """What the attempts printed; not on the disk of the run, which may be full."""
        return self.run_dir.parent.with_suffix(".log")

    @property
    def is_done(self) -> bool:
        return RunFolder(self.run_dir).report_file.is_file()

    @property
    def said(self) -> str:
        """All that the attempts printed and the run noted."""
        notes = [line["text"] for line in lines(self.run_dir, "note")] if num_steps(self.run_dir) else []
        return "\n".join([*(attempt.said for attempt in self.attempts), *notes])

    def until_done(
        self, disturb: "Callable[[Run], None] | None" = None, heal: Callable[[], None] | None = None
    ) -> None:
        """Run, and resume as often as it ends before it is done."""
        for number in range(MAX_ATTEMPTS):
            self.attempts.append(self._attempt(("--resume",) if number else (), None if number else disturb))
            if heal:
                heal()
            if self.is_done:
                return

    def _attempt(self, more: Sequence[str], disturb: "Callable[[Run], None] | None") -> Attempt:
        begun, before = time.monotonic(), self.log.stat().st_size if self.log.is_file() else 0
        variables = {**os.environ, **VARIABLES, **(self.variables if disturb else {})}
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [*self.command, *more],
                stdout=file,
                stderr=file,
                process_group=0,
                preexec_fn=end_with_parent,
                env=variables,
            )
        try:
            if disturb:
                disturb(self)
            self.wait_for(lambda: self.process.poll() is not None)
        finally:
            code = self.process.poll()
            self.process.kill()
            self.process.wait()
        said = self.log.read_bytes()[before:].decode(errors="replace")
        return Attempt(code, round(time.monotonic() - begun, 1), said, self.is_done)

    def wait_for(self, condition: Callable[[], bool], limit_s: float = WAIT_S) -> bool:
        """Whether it came true in time; meanwhile the run's processes are noted."""
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            if time.monotonic() - self._looked_at > LOOK_S:
                self._looked_at = time.monotonic()
                self._family |= set(psutil.Process().children(recursive=True))
            time.sleep(POLL_S)
        return True

    def wait_for_moment(self, moment: Moment) -> bool:
        """False if the run ended before."""

        def has_come() -> bool:
            return (num_steps(self.run_dir) >= moment.step and self._is_training()) or self.process.poll() is not None

        self.wait_for(has_come)
        if self.process.poll() is not None:
            return False
        trained = lines(self.run_dir, "train")
        time.sleep(moment.fraction * (trained[-1]["seconds"] if trained else 1.0))
        return True

    def _is_training(self) -> bool:
        metrics = RunFolder(self.run_dir).metrics_file  # its first line is the evaluation before the first step
        return metrics.is_file() and metrics.stat().st_size > 0

    def left(self) -> tuple[list[str], list[str]]:
        """Processes that are still there a minute later, and shared memory that nobody holds; both are removed."""
        self.wait_for(lambda: not self._living(), LEFT_S)
        living = self._living()
        told = [name_of(process) for process in living]
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
        abandoned = [path for path in shared_memory() - self._shared if not is_held(path)]
        for path in abandoned:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return told, [path.name for path in abandoned]

    def _living(self) -> list[psutil.Process]:
        return [one for one in self._family if one.is_running() and status_of(one) not in (None, psutil.STATUS_ZOMBIE)]


def status_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        return str(process.status())
    return None


def name_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:120]
    return "?"


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def is_held(path: Path) -> bool:
    """Whether a process has it open, or something in it, as far as we may see; other programs use shared memory too."""
    for held in itertools.chain(Path("/proc").glob("[0-9]*/fd/*"), Path("/proc").glob("[0-9]*/map_files/*")):
        with contextlib.suppress(OSError):
            if str(held.readlink()).startswith(str(path)):
                return True
    return False


def rl_train(yaml: Path, run_dir: Path, *keys: str) -> list[str]:
    return [sys.executable, "-m", "rl", "train", str(yaml), f"run_dir={run_dir}", *keys]


def checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    typer.echo(f"done: {' '.join(command[1:])}")


def sft_train(yaml: Path) -> list[str]:
    return [sys.executable, "-m", "sft", "train", str(yaml)]
