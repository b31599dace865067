"""Which resources have machine and cluster, how many are free, and which actors of this run are not placed yet?"""

import contextlib
import os
from pathlib import Path

import ray
from ray._private import state

WITHOUT_PROCESS = ("PENDING_CREATION", "DEPENDENCIES_UNREADY")
"""States of Ray's actors before they run."""


def num_cores() -> float:
    """Cores that this process may use, within a container's share of CPU time."""
    cores = float(len(os.sched_getaffinity(0)))
    limit = cgroup("cpu.max").split()
    return min(cores, int(limit[0]) / int(limit[1])) if limit and limit[0] != "max" else cores


def cgroup(name: str) -> str:
    """A value of this process's control group; empty where there is none."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return ""


def room() -> str:
    """What the cluster has and how much of it is free: `2 nodes, 8 of Ray's 16 CPU slots and 0 of 1 GPUs free`.

    Slots are what actors reserve. Whoever starts a node of Ray chooses how many it has, however many cores there are.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get('CPU', 0.0):g} of Ray's {total.get('CPU', 0.0):g} CPU slots"]
    if total.get("GPU"):
        parts.append(f"{free.get('GPU', 0.0):g} of {total['GPU']:g} GPUs")
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{num_nodes} node{'s' if num_nodes != 1 else ''}, {' and '.join(parts)} free"


def unplaced() -> str:
    """A sentence on how many actors of this run have no place, and on what is free; empty if all have one."""
    if not ray.is_initialized():  # the calls below would start a cluster
        return ""
    with contextlib.suppress(Exception):  # only a hint: the deadline error is raised in any case
        job = ray.get_runtime_context().get_job_id()
        actors = [actor for actor in state.actors().values() if actor["JobID"] == job]
        num = sum(actor["State"] in WITHOUT_PROCESS and not actor["Pid"] for actor in actors)
        if num:
            return (
                f". {num} of the run's {len(actors)} actors have no place yet, because other jobs use the"
                f" cluster ({room()}): wait for them to end, or lower what the run reserves"
            )
    return ""
