"""Does a run keep the contract whatever is killed, stopped or used up, at any moment, synchronous or not?

    python -m benchmarks.chaos --out benchmarks/results/chaos.json     (about an hour, two cores, root's rights)

Points are drawn: a fault, a staleness, and the moment of a run at which the fault happens. What ends is resumed until
it is done. Then the run's folder is compared with the contract and, if it is synchronous, with the undisturbed run. A
point that has ended is read, not repeated.
"""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml

from benchmarks.chaos_checks import bits, counts
from benchmarks.chaos_faults import FAULTS, Fault, filler_of, is_told, small_disk
from benchmarks.chaos_run import Moment, Run, checked, rl_train, sft_train
from benchmarks.nodes import Nodes
from benchmarks.random_policies import untrained
from benchmarks.report import write_report
from envs.sandbox.forking import ZYGOTES

T = TypeVar("T")
ENVIRONMENTS = ("code/Functions-v0", "tools/Python-v0", "benchmarks.chaos_store:SlowStore")
STALENESS = (0, 1, 2, 4)


@dataclass(frozen=True, slots=True)
class Form:
    train: Mapping[str, int]
    faults: Sequence[str]
    staleness: Sequence[int] = STALENESS
    num_supervised_steps: int = 0


FULL = Form({"num_steps": 8, "num_prompts": 6, "group_size": 6}, tuple(FAULTS), num_supervised_steps=150)
SHORT = Form({"num_steps": 4, "num_prompts": 3, "group_size": 2}, ("driver SIGKILL", "worker SIGKILL"), (0, 2))


@dataclass(frozen=True, slots=True)
class Point:
    fault: str
    staleness: int
    moment: Moment


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    seed: Annotated[int, typer.Option(help="Of the draw of points.")] = 0,
    points: Annotated[int, typer.Option(min=1, help="Number of points.")] = 20,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/chaos"),
    only: Annotated[str, typer.Option(help="Only points with this fault.")] = "",
    short: Annotated[bool, typer.Option(help="Few steps and faults; only to see that it runs.")] = False,
) -> None:
    form = SHORT if short else FULL
    folder = runs.absolute() / f"seed_{seed}"
    experiment = prepared(folder, form)
    played = []
    typer.echo(f"seed {seed}")
    for number, point in enumerate(draw(seed, points, form)):
        if only in ("", point.fault):
            played.append(play(folder / f"point_{number:02d}", point, experiment, random.Random(f"{seed} {number}")))
            typer.echo(as_row(played[-1]))
    write_report(out, summary(played), seed=seed, raw=played)


def draw(seed: int, num: int, form: Form) -> list[Point]:
    """Each fault and each staleness once before one comes again, in random order, and random moments."""
    rng = random.Random(seed)
    faults, staleness = in_rounds(rng, form.faults), in_rounds(rng, form.staleness)
    last = form.train["num_steps"] - 3  # a later fault may be without effect
    return [
        Point(next(faults), next(staleness), Moment(rng.randint(0, last), round(rng.random(), 2))) for _ in range(num)
    ]


def in_rounds(rng: random.Random, values: Sequence[T]) -> Iterator[T]:
    while True:
        yield from rng.sample(list(values), len(values))


def prepared(folder: Path, form: Form) -> Path:
    """The experiment; its policy calls tools and writes functions, after some supervised steps."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    if path.is_file():
        return path
    experiment: dict[str, Any] = {
        "seed": 3,
        "policy": {"path": str(folder / "supervised/sft")},
        "environments": {env_id: {} for env_id in ENVIRONMENTS},
        "train": {**form.train, "checkpoint_every": 2, "update_timeout_s": 30, "publish_timeout_s": 30},
        "evaluation": {"num_tasks": 2},
        "rollout": {"num_workers": 2, "max_in_flight": 18, "kv_cache_gib": 0.1, "heartbeat_timeout_s": 15},
        "ray": {"address": "local"},
    }
    experiment["rollout"] |= {"cpus_per_worker": 0.4, "max_reply_tokens": 96}
    experiment["learner"] = {"cpus": 0.6}  # on two nodes of one CPU, each has room for one engine
    if form.num_supervised_steps:
        stage = {"num_steps": form.num_supervised_steps, "num_conversations": 16 * form.num_supervised_steps}
        before = {**experiment, "policy": {"build": {}}, "sft": {**stage, "batch_size": 16}}
        supervised = folder / "supervised.yaml"
        supervised.write_text(yaml.safe_dump({**before, "run_dir": str(folder / "supervised")}))
        checked(sft_train(supervised))
    else:
        untrained(folder / "supervised/sft")
    path.write_text(yaml.safe_dump(experiment))
    return path


def play(folder: Path, point: Point, experiment: Path, rng: random.Random) -> dict[str, Any]:
    """Disturb a run as the point says; what happened, and what the checks found."""
    told = folder.with_suffix(".json")
    if told.is_file():
        return json.loads(told.read_text())
    fault, run_dir = FAULTS[point.fault], folder / "run"
    with places(fault, folder) as nodes:
        keys = [f"train.max_staleness={point.staleness}", *fault.keys]
        keys += [f"ray.address={nodes.address}"] if nodes else []
        run = Run(run_dir, rl_train(experiment, run_dir, *keys), rng, fault.variables(), nodes)

        def disturb(run: Run) -> None:
            run.hit = fault.strike(run) if run.wait_for_moment(point.moment) else "nothing: the run had ended"

        run.until_done(disturb, heal=lambda: filler_of(run_dir).unlink(missing_ok=True))
        found = counts(run_dir) if run.is_done else {}
        for zygote in ZYGOTES.values():  # of the sandbox in which rewards were computed again, here
            zygote.close()
        same = bits(run_dir) == undisturbed(experiment) if run.is_done and point.staleness == 0 else None
    processes, memory = run.left()
    first = run.attempts[0]
    result = {
        **asdict(point),
        "hit": run.hit,
        "codes": [attempt.code for attempt in run.attempts],
        "seconds": [attempt.seconds for attempt in run.attempts],
        "has_ended": run.attempts[-1].is_done and all(attempt.code is not None for attempt in run.attempts),
        "has_true_codes": all(attempt.is_true for attempt in run.attempts)
        and (first.is_done or first.code in fault.codes),
        "is_told": is_told(fault, run),
        **found,
        "has_the_bits": same,
        "processes_left": processes,
        "shared_memory_left": memory,
    }
    told.write_text(json.dumps(result))
    return result


@contextlib.contextmanager
def places(fault: Fault, folder: Path) -> Iterator[Nodes | None]:
    """What the fault needs around the run."""
    with contextlib.ExitStack() as stack:
        if fault.on_small_disk:
            stack.enter_context(small_disk(folder))
        yield stack.enter_context(Nodes(takes_jobs=False)) if fault.on_nodes else None


def undisturbed(experiment: Path) -> dict[str, Any]:
    """The bits of the synchronous run."""
    run_dir = experiment.parent / "undisturbed/run"
    run = Run(run_dir, rl_train(experiment, run_dir), random.Random(0))
    if not run.is_done:
        run.until_done()
    return bits(run_dir)


def summary(played: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over all points; each but the first three should be 0."""
    synchronous = [one["has_the_bits"] for one in played if one["has_the_bits"] is not None]
    return {
        "points": len(played),
        "synchronous_points": len(synchronous),
        "attempts": sum(len(one["codes"]) for one in played),
        **{name: sum(one.get(name, 0) for one in played) for name in ("lost", "twice", "poisoned")},
        "masked_without_reason": sum(one.get("masked_without_reason", 0) for one in played),
        "without_the_bits": synchronous.count(False),
        "not_ended": sum(not one["has_ended"] for one in played),
        "untrue_codes": sum(not one["has_true_codes"] for one in played),
        "not_told": sum(not one["is_told"] for one in played),
        "processes_left": sum(len(one["processes_left"]) for one in played),
        "shared_memory_left": sum(len(one["shared_memory_left"]) for one in played),
    }


def as_row(one: Mapping[str, Any]) -> str:
    """A row of a table in Markdown."""
    moment = Moment(**one["moment"])
    same = {None: "-", True: "same", False: "other"}[one["has_the_bits"]]
    checks = " ".join(str(one.get(name, "?")) for name in ("lost", "twice", "poisoned"))
    left = len(one["processes_left"]) + len(one["shared_memory_left"])
    told = "yes" if one["is_told"] else "no"
    codes = ", ".join(map(str, one["codes"]))
    cells = [one["fault"], one["staleness"], moment, one["hit"], codes, sum(one["seconds"]), checks, same, told, left]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    typer.run(main)
