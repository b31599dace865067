"""What does this machine have: cores, GPUs, memory, shared memory, disk, Ray, a sandbox, trackers?"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from envs.sandbox import LAYERS, level_here, require_level
from rl.cluster.cluster import try_cluster
from rl.cluster.places import cgroup, num_cores
from rl.config.checkpoint_files import CheckpointFileError, num_parameters
from rl.config.experiment import ExperimentConfig
from rl.cpu_bfloat16 import has_quick_bfloat16
from rl.doctor.findings import INSTALL, Finding
from rl.preflight import is_installed
from rl.runs.sinks import SINKS

GIB = 2**30
LITTLE_MEMORY_GIB, LITTLE_DISK_GIB, LITTLE_SHARED_GIB = 4.0, 1.0, 0.125
"""Below these the quickstart is in danger."""
LEARNER_BYTES = 12
"""Per weight in a checkpoint: the weight and AdamW's two moments, in float32."""
PROGRAM_S = 60.0
CUDA = "import torch; print(torch.cuda.device_count(), torch.version.cuda or 'none')"


def core_findings(config: ExperimentConfig | None) -> Iterator[Finding]:
    cores = num_cores()
    reserved = config.reserved[0] if config else 0.0
    found = f"{cores:g} CPU cores for this process"
    if reserved > cores:
        fix = "lower rollout.num_workers or the cpus keys, or accept that processes take turns"
        yield Finding("cores", "warning", f"{found}, and the run reserves {reserved:g}", fix)
    elif config and config.precision.arithmetic == "bfloat16" and not config.reserved[1] and not has_quick_bfloat16():
        told = f"{found}, without instructions for bfloat16: products take tens of times as long as in float32"
        yield Finding("cores", "warning", told, "set precision: float32, or use a machine with AVX-512")
    else:
        yield Finding("cores", "ok", found)


def gpu_findings(config: ExperimentConfig | None) -> Iterator[Finding]:
    """That a run reserves more GPUs than there are is found with the cluster."""
    wanted = config.reserved[1] if config else 0.0
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    cards = (_output(query) or "").splitlines()
    if not cards:
        status, fix = ("failed", "look at: nvidia-smi; or set the gpus keys to 0") if wanted else ("ok", "")
        yield Finding("GPUs", status, "none (nvidia-smi names no card)", fix)  # type: ignore[arg-type]
        return
    found = "; ".join(f"{name}, {memory}, driver {driver}" for name, memory, driver in map(_fields, cards))
    usable = (_output([sys.executable, "-c", CUDA]) or "0 unknown").split()
    if int(usable[0]) == 0:
        grave = "failed" if wanted else "warning"
        told = f"{found}; torch (CUDA {usable[1]}) can use none of them"
        yield Finding("GPUs", grave, told, f"with nvidia-smi working, install the list for GPUs: {INSTALL}")
    else:
        yield Finding("GPUs", "ok", f"{found}; torch uses {usable[0]} of them with CUDA {usable[1]}")


def _fields(card: str) -> list[str]:
    return [field.strip() for field in card.rsplit(",", 2)]


def memory_findings() -> Iterator[Finding]:
    free = float(psutil.virtual_memory().available)
    limit, used = cgroup("memory.max"), cgroup("memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    found = f"{free / GIB:.1f} GiB free"
    if free < LITTLE_MEMORY_GIB * GIB:
        fix = "end other programs, or give the container more memory"
        yield Finding("memory", "warning", f"{found}; a tiny policy needs about {LITTLE_MEMORY_GIB:g} GiB", fix)
    else:
        yield Finding("memory", "ok", found)


def shared_memory_findings() -> Iterator[Finding]:
    """Whether the weights of an experiment fit is checked with the experiment."""
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    found = f"{folder} has {free / GIB:.2f} GiB free"
    if free < LITTLE_SHARED_GIB * GIB:
        yield Finding("shared memory", "warning", found, "give the container more shared memory (docker: --shm-size)")
    else:
        yield Finding("shared memory", "ok", found)


def disk_findings(config: ExperimentConfig | None) -> Iterator[Finding]:
    run_dir = config.run_dir.absolute() if config else Path.cwd()
    place = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    needed = LITTLE_DISK_GIB * GIB
    if config and config.policy.path is not None:
        num_checkpoints = config.train.keep_checkpoints + 1  # one is written before the oldest is removed
        with contextlib.suppress(CheckpointFileError):  # told with the checkpoint
            needed += num_checkpoints * LEARNER_BYTES * num_parameters(config.policy.path)
    free = shutil.disk_usage(place).free
    found = f"{place} has {free / GIB:.1f} GiB free"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("disk", "failed", f"{place} cannot be written", "choose another run_dir")
    elif free < needed:
        fix = "free some space, choose a run_dir on another disk, or lower train.keep_checkpoints"
        yield Finding("disk", "failed", f"{found}, and the run needs about {needed / GIB:.1f} GiB", fix)
    else:
        yield Finding("disk", "ok", found)


def ray_findings(config: ExperimentConfig | None) -> Iterator[Finding]:
    asked = config.ray.address if config else "auto"
    yield Finding("Ray", "ok", f"ray.address {asked}: {try_cluster(asked)}")


def sandbox_findings(config: ExperimentConfig | None) -> Iterator[Finding]:
    """Raises `SandboxError` if no level that is allowed works here."""
    if config:
        require_level(config.rollout.sandbox_level)
    level = level_here()
    yield Finding("sandbox", "ok", f"level {level}: {LAYERS[level]}")


def sink_findings() -> Iterator[Finding]:
    """Whether the sinks of an experiment can be used is checked with the experiment."""
    packages = {name: sink.package for name, sink in SINKS.items()}
    missing = [f"{name} ({package})" for name, package in packages.items() if package and not is_installed(package)]
    there = ", ".join(name for name, package in packages.items() if not package or is_installed(package))
    more = f"; not installed: {', '.join(missing)} (make trackers)" if missing else ""
    yield Finding("trackers", "ok", there + more)


def _output(command: list[str]) -> str | None:
    """What a program prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine_checks(config: ExperimentConfig | None) -> dict[str, Callable[[], Iterator[Finding]]]:
    """The checks of the machine by name; with an experiment, for what it needs."""
    return {
        "cores": functools.partial(core_findings, config),
        "GPUs": functools.partial(gpu_findings, config),
        "memory": memory_findings,
        "shared memory": shared_memory_findings,
        "disk": functools.partial(disk_findings, config),
        "sandbox": functools.partial(sandbox_findings, config),
        "trackers": sink_findings,
        "Ray": functools.partial(ray_findings, config),
    }
