"""What does the driver pay for a rollout while hundreds of engines play thousands of them?

    python -m benchmarks.fleet --out benchmarks/results/fleet.json     (about five minutes, two cores)

The driver's own parts run as in a training run: collector, pool, ledger, samples, metrics, and the calls through Ray.
Engines are scripted: an actor of Ray stands for many workers, each of which sleeps as long as a rollout may take and
returns replies of 1,024 tokens. The learner is left out but for what it would be sent. All groups that the staleness
bound allows are in flight all the time.

Figures are CPU time and memory of the driver's process, all of its threads included. `bytes_per_token_in_flight` is the
growth of its own memory from before the first group to the greatest reading after a step, divided by the prompt and
reply tokens in flight.
"""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this machine's own, without a token

import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import ray
import typer

from benchmarks.data_path import ENV_ID, GROUP_SIZE, NUM_PROMPT_TOKENS, make_group
from benchmarks.report import write_report
from rl.cluster.actors import Pending, shared
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Update
from rl.learner.samples import JoinedSamples, make_samples
from rl.rollouts.collector import Collector
from rl.rollouts.pool import WorkerPool
from rl.rollouts.worker import GroupSpec, Played
from rl.runs.tracking import step_metrics
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from rl.weights.source import WeightSource

NUM_REPLY_TOKENS = 1024
TEMPLATES = 32
"""Groups whose tokens an actor hands out again and again."""


@dataclass(frozen=True, slots=True)
class Form:
    num_workers: int
    num_actors: int
    num_prompts: int
    max_staleness: int
    num_steps: int
    median_s: float
    """Of the seconds that a group takes; lognormal, with a 99th percentile ten times as long."""

    @property
    def num_in_flight(self) -> int:
        return self.num_prompts * (1 + self.max_staleness) * GROUP_SIZE


FULL = Form(num_workers=256, num_actors=2, num_prompts=512, max_staleness=3, num_steps=12, median_s=2.0)
SHORT = Form(num_workers=8, num_actors=1, num_prompts=4, max_staleness=1, num_steps=3, median_s=0.01)


class Engines:
    """Stands for many workers at once."""

    def __init__(self, median_s: float) -> None:
        self._groups = [make_group(number, NUM_REPLY_TOKENS) for number in range(TEMPLATES)]
        self._median_s = median_s
        self._versions: Counter[int] = Counter()
        self._random = np.random.default_rng(0)

    async def play_groups(self, worker: int, specs: Sequence[GroupSpec]) -> Played:
        version = self._versions[worker]
        await asyncio.sleep(self._median_s * self._random.lognormal(sigma=0.99))
        return Played([self._played(spec, version) for spec in specs], ())

    def _played(self, spec: GroupSpec, version: int) -> Group:
        group = self._groups[spec.task.ordinal % TEMPLATES]
        versions = np.full(NUM_REPLY_TOKENS, version, np.int32)
        rollouts = []
        for rollout in group.rollouts:
            (turn,) = rollout.turns
            reply = replace(turn.reply, columns={**turn.reply.columns, "version": versions})
            turns = (replace(turn, reply=reply),)
            rollouts.append(replace(rollout, task=spec.task, group_id=spec.group_id, turns=turns))
        return Group(spec.group_id, spec.task, tuple(rollouts))

    async def load_weights(self, worker: int, source: WeightSource) -> str:
        self._versions[worker] = source.version
        return source.hash

    async def wait_until_ready(self, worker: int) -> None:
        """It is ready."""

    async def doing(self, worker: int) -> str:
        return "sleeping"

    async def shutdown(self, worker: int) -> None:
        """It ends with the cluster."""


class ScriptedWorker:
    """Called as `rl.cluster.actors.Actor` of a worker."""

    def __init__(self, actor: Any, number: int) -> None:
        self._actor, self._number = actor, number

    def call(self, method: Callable[..., Any], *args: Any) -> Pending[Any]:
        return Pending(getattr(self._actor, method.__name__).remote(self._number, *args))


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Few workers and rollouts; only to see that it runs.")] = False,
) -> None:
    form = SHORT if short else FULL
    ray.init(address="local", num_cpus=form.num_actors, include_dashboard=False, log_to_driver=False)
    try:
        raw = run(form)
    finally:
        ray.shutdown()
    write_report(out, summarised(raw, form), settings={"in_flight": form.num_in_flight}, raw=raw)


def run(form: Form) -> dict[str, Any]:
    config = experiment(form)
    engines: Any = ray.remote(Engines)  # type: ignore[call-overload]
    actors = [
        engines.options(num_cpus=1, max_concurrency=100_000).remote(form.median_s) for _ in range(form.num_actors)
    ]
    numbers = itertools.count()

    def start(place: Any) -> Any:
        number = next(numbers)
        return ScriptedWorker(actors[number % form.num_actors], number)

    pool = WorkerPool(config, config.run_dir, list(range(form.num_workers)), start)  # pyright: ignore[reportArgumentType]
    pool.wait_until_ready()
    stream, ledger = TaskStream(config.environments, 0, form.num_prompts), Ledger()
    collector = Collector(config, pool, stream, ledger)
    process, raw = psutil.Process(), {"cpu_s": [], "seconds": [], "mib": [memory_mib(psutil.Process())], "ages": []}
    for version in range(1, form.num_steps + 1):
        cpu_s, begun = time.process_time(), time.monotonic()
        groups = collector.collect()
        samples = make_samples(groups, config.algorithm_of)
        shared(JoinedSamples.join(samples))
        metrics = step_metrics(groups, update(version, len(samples)), {"collect": 1.0}, {})
        for group in groups:
            ledger.finish(group.task.ordinal, masked=False)
        pool.load_weights(WeightSource(version, "", "hash"))
        raw["cpu_s"].append(time.process_time() - cpu_s)
        raw["seconds"].append(time.monotonic() - begun)
        raw["mib"].append(memory_mib(process))
        raw["ages"].append(metrics["staleness_max"])
        typer.echo(
            f"step {version}: {raw['seconds'][-1]:.1f} s, {raw['cpu_s'][-1]:.2f} s of CPU, {raw['mib'][-1]:.0f} MiB"
        )
    return raw


def memory_mib(process: psutil.Process) -> float:
    return process.memory_full_info().uss / 2**20


def update(version: int, num_samples: int) -> Update:
    return Update(
        policy_version=version,
        loss=0.0,
        grad_norm=1.0,
        learning_rate=1e-3,
        mismatch=1.0,
        mismatch_stale=None,
        mismatch_kl=0.0,
        entropy=1.0,
        codes_changed=0.0,
        num_loss_tokens=num_samples,
        num_row_tokens=num_samples,
        num_tokens=num_samples,
        seconds=1.0,
    )


def summarised(raw: dict[str, Any], form: Form) -> dict[str, float]:
    """Of the steps after the first ones, in which groups of older steps are collected, as many as the bound says."""
    steady = slice(1 + form.max_staleness, None) if form.num_steps > 1 + form.max_staleness else slice(None)
    num_rollouts = form.num_prompts * GROUP_SIZE
    tokens_in_flight = form.num_in_flight * (NUM_PROMPT_TOKENS + NUM_REPLY_TOKENS)
    return {
        "driver_cpu_ms_per_rollout": 1000 * statistics.fmean(raw["cpu_s"][steady]) / num_rollouts,
        "rollouts_per_s": num_rollouts / statistics.fmean(raw["seconds"][steady]),
        "bytes_per_token_in_flight": (max(raw["mib"]) - raw["mib"][0]) * 2**20 / tokens_in_flight,
        "age_max": max(raw["ages"]),
        "age_bound": form.max_staleness,
    }


def experiment(form: Form) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "run_dir": tempfile.gettempdir(),
            "seed": 0,
            "policy": {"path": "none", "max_tokens": NUM_PROMPT_TOKENS + NUM_REPLY_TOKENS},
            "environments": {ENV_ID: {}},
            "learner": {"tokens_per_micro_batch": 8 * (NUM_PROMPT_TOKENS + NUM_REPLY_TOKENS)},
            "rollout": {"num_workers": form.num_workers},
            "train": {
                **{"num_steps": form.num_steps, "max_staleness": form.max_staleness},
                **{"num_prompts": form.num_prompts, "group_size": GROUP_SIZE},
            },
        }
    )


if __name__ == "__main__":
    typer.run(main)
