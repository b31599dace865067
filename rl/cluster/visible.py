"""Does every node see what learner and engines need there: the policy's folder, the run's folder, the environments?"""

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from envs.registry import EnvironmentPluginError, UnknownEnvironmentError, whole_name
from rl.cluster.address import ClusterError
from rl.cluster.placement import Node
from rl.stop import POLL_S, raise_if_requested


@contextlib.contextmanager
def mark_in(folder: Path) -> Iterator[Path]:
    """A file in the folder, by which other machines see that theirs is the same folder and no other of its name."""
    mark = folder / f".driver_{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def check_visible(
    nodes: Sequence[Node],
    folders: Sequence[Path],
    env_ids: Sequence[str],
    timeout_s: float,
    mark: Path | None = None,
) -> None:
    """Look for the folders, the environments and the file of `mark_in` in a process on each node.

    Raises `ClusterError` with the address of the first node that lacks something or does not answer in time.
    """
    look: Any = ray.remote(missing_here)
    asked = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        asked[look.options(num_cpus=0, scheduling_strategy=on_node).remote(folders, env_ids, mark)] = node
    waiting, deadline = list(asked), time.monotonic() + timeout_s
    while waiting:
        raise_if_requested()
        answered, waiting = ray.wait(waiting, timeout=POLL_S)
        for reference in answered:
            _check_answer(asked[reference], reference)
        if waiting and time.monotonic() > deadline:
            raise ClusterError(
                f"node {asked[waiting[0]].address} did not look for the run's files within {timeout_s:g} s"
                " (train.start_timeout_s)"
            )


def _check_answer(node: Node, reference: Any) -> None:
    try:
        missing = ray.get(reference)
    except (RayError, ImportError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ClusterError(f"node {node.address} cannot run the project's code: {reason}") from error
    if missing:
        raise ClusterError(
            f"node {node.address}, where the learner or an engine may be placed, lacks {'; '.join(missing)}. Folders"
            " must lie on a file system that all nodes share, under absolute paths; environments must be installed on"
            " all nodes, or come with the job (ray job submit --runtime-env-json)"
        )


def missing_here(folders: Sequence[Path], env_ids: Sequence[str], mark: Path | None = None) -> list[str]:
    """What this machine lacks, in words."""
    missing = [f"the folder {folder}" for folder in folders if not folder.is_dir()]
    if mark is not None and mark.parent.is_dir() and not mark.exists():
        missing.append(f"the run's own {mark.parent} (it has another folder of that name)")
    for env_id in env_ids:
        try:
            whole_name(env_id)
        except (UnknownEnvironmentError, EnvironmentPluginError) as error:
            missing.append(str(error))
    return missing
