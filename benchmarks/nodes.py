"""Does the quickstart train on two nodes as it does in one process, also if a rank and then a node are lost?

    python -m benchmarks.nodes --out benchmarks/results/nodes.json     (about 40 minutes, two cores)

For each seed the experiment runs twice from the same supervised policy: with a learner of one process on a cluster of
its own, and with two ranks on two logical nodes of this machine, each with room for one rank and one engine. During the
second run rank 1 is killed, later the node of rank 0 with all its processes, and then another node joins. The first
seed's second run is a Ray job. A run that has ended is read, not repeated.
"""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this machine's own, without a token

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.node_figures import actors, compared, figures, num_steps
from benchmarks.random_policies import untrained
from benchmarks.report import write_report

ROOT = Path(__file__).parent.parent
YAML = ROOT / "experiments/quickstart.yaml"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TWO_RANKS = ["learner.num_ranks=2", "learner.cpus=0.6", "rollout.num_workers=2", "rollout.cpus_per_worker=0.4"]
"""A node with one CPU has room for one rank and one engine, and for no second one of either."""
NODE: Mapping[str, Any] = {"num_cpus": 1, "object_store_memory": 256 * 2**20}
ABSENT_S = 5.0
"""From the loss of a node until another one joins."""
WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Form:
    keys: Sequence[str]
    """Of both runs."""
    kill_after: int
    """The step after which a rank is killed."""
    lose_after: int
    """The step after which a node is lost."""


FULL = Form((), kill_after=30, lose_after=55)
SHORT = Form(
    (
        "sft=null",
        "train={num_steps: 6, num_prompts: 2, group_size: 2, checkpoint_every: 2}",
        "evaluation.num_tasks=4",
        "rollout={num_workers: 2, cpus_per_worker: 0.5, max_reply_tokens: 64, max_in_flight: 8, kv_cache_gib: 0.1}",
    ),
    kill_after=1,
    lose_after=4,
)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "0,1,2",
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/nodes"),
    short: Annotated[bool, typer.Option(help="One seed, few steps, no job; only to see that it runs.")] = False,
) -> None:
    runs = runs.absolute()
    runs.mkdir(parents=True, exist_ok=True)
    listed = [0] if short else [int(seed) for seed in seeds.split(",")]
    form = SHORT if short else FULL
    raw = {}
    for seed in listed:
        one, two = runs / f"seed_{seed}_one", runs / f"seed_{seed}_two"
        policy = untrained(runs / "policy") if short else one / "sft"
        keys, from_policy = [*form.keys, f"seed={seed}"], [f"policy={{path: {policy}, build: null}}"]
        undisturbed(one, [*keys, *(from_policy if short else [])])
        disturbed(two, [*keys, *from_policy, "sft=null", *TWO_RANKS], form, is_job=not short and seed == listed[0])
        raw[f"seed_{seed}"] = {"one": figures(one), "two": figures(two)}
    write_report(out, {seed: compared(**pair) for seed, pair in raw.items()}, raw=raw)


def command(run_dir: Path, keys: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "rl", "train", str(YAML), f"run_dir={run_dir}", *keys, "--resume-if-any"]


def has_ended(run_dir: Path) -> bool:
    return (run_dir / "report.html").is_file()


def undisturbed(run_dir: Path, keys: Sequence[str]) -> None:
    """A run in one process for the learner, on a cluster of its own."""
    if not has_ended(run_dir):
        with started(command(run_dir, [*keys, "ray.address=local"]), run_dir) as run:
            run.wait(WAIT_S)
        check_end(run, run_dir)


def disturbed(run_dir: Path, keys: Sequence[str], form: Form, *, is_job: bool) -> None:
    """A run on two nodes that loses a rank and a node; what happened is written to its folder."""
    if has_ended(run_dir):
        return
    with Nodes(takes_jobs=is_job) as nodes:
        line = command(run_dir, keys)
        if is_job:
            line = [*RAY, "job", "submit", "--address", nodes.wait_for_jobs(), "--working-dir", str(ROOT), "--", *line]
        else:
            line.append(f"ray.address={nodes.address}")
        story = Story(run_dir, nodes, is_job)
        with started(line, run_dir) as run:
            wait_for_step(run, run_dir, form.kill_after)
            story.tell("before the loss of rank 1")
            psutil.Process(actors(run_dir)["learner rank 1"]).kill()
            wait_for_step(run, run_dir, form.lose_after)
            story.tell("before the loss of the node of rank 0")
            nodes.lose(nodes.of(actors(run_dir)["learner rank 0"]))
            time.sleep(ABSENT_S)
            nodes.add()
            wait_for_step(run, run_dir, form.lose_after + 1)
            story.tell("after both")
            run.wait(WAIT_S)
        check_end(run, run_dir)
        story.write()


@contextlib.contextmanager
def started(line: Sequence[str], run_dir: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, which prints to a file beside the run's folder; it does not outlive the block."""
    with run_dir.with_suffix(".log").open("ab") as file, subprocess.Popen(line, stdout=file, stderr=file) as run:
        try:
            yield run
        finally:
            run.terminate()  # does nothing if it has ended


def check_end(run: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    if run.returncode:
        said = run_dir.with_suffix(".log").read_text(errors="replace")
        raise SystemExit(f"the run in {run_dir} ended with exit code {run.returncode}:\n{said[-3000:]}")


def wait_for_step(run: "subprocess.Popen[bytes]", run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while num_steps(run_dir) < step:
        if run.poll() is not None or time.monotonic() > deadline:
            check_end(run, run_dir)
            raise SystemExit(f"the run in {run_dir} did not reach step {step}")
        time.sleep(0.02)


class Nodes:
    """A head without CPUs, for the driver, and two nodes, of which no process outside knows."""

    def __init__(self, *, takes_jobs: bool) -> None:
        self._takes_jobs = takes_jobs

    def __enter__(self) -> "Nodes":
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets need a short path
        os.environ["RAY_TMPDIR"] = self._folder
        # Ports of its own: another cluster of this machine may have the usual ones.
        ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
        head = {**NODE, "num_cpus": 0, "include_dashboard": self._takes_jobs, **ports}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.names: dict[Any, str] = {}
        self.add()
        self.add()
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
        del os.environ["RAY_TMPDIR"]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def wait_for_jobs(self) -> str:
        """The address that takes jobs; its agent does some seconds later than it answers."""
        address = f"http://{self._cluster.webui_url}"
        for _ in range(60):
            submit = [*RAY, "job", "submit", "--address", address, "--", "true"]
            if subprocess.run(submit, capture_output=True, check=False).returncode == 0:
                return address
            time.sleep(2)
        raise SystemExit(f"no job can be submitted at {address}")

    def add(self) -> None:
        self.names[self._cluster.add_node(**NODE)] = f"node {len(self.names) + 1}"

    def of(self, pid: int) -> Any:
        """The node of an actor's process."""
        raylet = psutil.Process(pid).ppid()
        return next(node for node in self._cluster.worker_nodes if raylet_of(node) == raylet)

    def lose(self, node: Any) -> None:
        """As if the machine lost power: Ray's processes and the actors die together."""
        family = psutil.Process(raylet_of(node)).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


class Story:
    """What happened to a run, when, and where its actors were."""

    def __init__(self, run_dir: Path, nodes: Nodes, is_job: bool) -> None:
        self._run_dir, self._nodes = run_dir, nodes
        self._told: dict[str, Any] = {"is_ray_job": is_job}

    def tell(self, when: str) -> None:
        places = {name: self._nodes.names[self._nodes.of(pid)] for name, pid in actors(self._run_dir).items()}
        self._told[when] = {"step": num_steps(self._run_dir), "places": places}

    def write(self) -> None:
        (self._run_dir / "story.json").write_text(json.dumps(self._told))


if __name__ == "__main__":
    typer.run(main)
