"""Which resources does the cluster have, how many are free, and which actors of this run are not placed yet?"""

import contextlib

import ray
from ray._private import state

WITHOUT_PROCESS = ("PENDING_CREATION", "DEPENDENCIES_UNREADY")
"""States of Ray's actors before they run."""


def room() -> str:
    """What the cluster has and how much of it is free: `2 nodes, 8 of 16 CPUs and 0 of 1 GPUs free`."""
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [
        f"{free.get(kind, 0.0):g} of {total.get(kind, 0.0):g} {kind}s"
        for kind in ("CPU", "GPU")
        if kind == "CPU" or total.get(kind)
    ]
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
