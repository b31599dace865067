"""Is an asynchronous run repeated bit for bit, also one whose parts were killed and that was resumed?

    python -m benchmarks.replay --out benchmarks/results/replay.json     (about 30 minutes, two cores)

Two engines play several environments, with tools and several turns, one in processes of its own, while the learner
publishes in the middle of their replies. The run is repeated with `rl train --replay`, several times, each in new
processes. Then it is compared with its repetitions by what their folders hold: all tokens, rewards and versions, and
the bytes of the last checkpoint.
"""

import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.chaos_checks import bits
from benchmarks.chaos_faults import to_actor, to_driver
from benchmarks.chaos_run import Moment, Run, checked, rl_train, sft_train
from benchmarks.node_figures import lines
from benchmarks.report import write_report
from envs.rollout_file import read_rollouts
from rl.runs.folder import RunFolder
from rl.runs.saved_rollouts import load_rollouts

CHECKPOINT_EVERY = 2
IN_PROCESSES = "tools/Store-v0"


@dataclass(frozen=True, slots=True)
class Form:
    environments: Sequence[str]
    num_steps: int
    num_prompts: int
    supervised_steps: int
    kills: Mapping[str, Mapping[int, str]]
    """What is killed in a run, by its name, after which step: a worker, the learner or the driver."""
    num_replays: int


FULL = Form(
    ("math/Arithmetic-v0", "tools/Store-v0", "chat/Constraints-v0", "code/Functions-v0"),
    num_steps=30,
    num_prompts=4,
    supervised_steps=100,
    kills={
        "undisturbed": {},
        "resumed": {16: "driver"},
        "repaired": {5: "worker", 11: "learner", 17: "worker", 23: "driver"},
    },
    num_replays=3,
)
SHORT = Form(
    FULL.environments[:3],
    num_steps=8,
    num_prompts=3,
    supervised_steps=30,
    kills={"repaired": {2: "worker", 5: "learner", 7: "driver"}},
    num_replays=1,
)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/replay"),
    short: Annotated[bool, typer.Option(help="One run of eight steps, one repetition.")] = False,
) -> None:
    form, runs = SHORT if short else FULL, runs.absolute()
    experiment = prepared(runs, form)
    summary, raw = {}, {}
    for name, kills in form.kills.items():
        recorded = runs / name / "run"
        codes = record(recorded, experiment, kills)
        replays = [repeated(recorded, runs / name / f"replay_{number}" / "run") for number in range(form.num_replays)]
        raw[name] = {"codes": codes, "replays": replays, **counted(recorded)}
        equal = sum(one["code"] == 0 and one["is_equal"] for one in replays)
        summary[name] = {**counted(recorded), "replays": len(replays), "equal_replays": equal}
    write_report(out, summary, raw=raw)


def prepared(runs: Path, form: Form) -> Path:
    """The experiment, on a policy that calls tools after a supervised stage."""
    runs.mkdir(parents=True, exist_ok=True)
    environments = {env_id: {} for env_id in form.environments}
    stage = {"num_steps": form.supervised_steps, "num_conversations": 20 * form.supervised_steps, "batch_size": 16}
    supervised = {"run_dir": str(runs / "supervised"), "seed": 3, "policy": {"build": {}}, "environments": environments}
    before = runs / "supervised.yaml"
    before.write_text(yaml.safe_dump({**supervised, "train": {"num_steps": 1}, "sft": stage}))
    if not (runs / "supervised/sft").is_dir():
        checked(sft_train(before))
    experiment = {
        "seed": 3,
        "policy": {"path": str(runs / "supervised/sft")},
        # One that calls tools for several turns has a process an episode.
        "environments": environments | {IN_PROCESSES: {"process": True}},
        "train": {
            **{"num_steps": form.num_steps, "num_prompts": form.num_prompts, "group_size": 4, "max_staleness": 2},
            "checkpoint_every": CHECKPOINT_EVERY,
        },
        "evaluation": {"num_tasks": 1, "every": form.num_steps // 2},
        # So few rollouts at a time that engines are always at work, and each publish meets replies.
        "rollout": {"max_in_flight": 2, "num_workers": 2, "kv_cache_gib": 0.1, "temperature": 1.3},
        "ray": {"address": "local"},
    }
    path = runs / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def record(run_dir: Path, experiment: Path, kills: Mapping[int, str]) -> list[int | None]:
    """Run it with these killed, and resume it if the driver was; the exit codes of its attempts."""
    run = Run(run_dir, rl_train(experiment, run_dir), random.Random(0))

    def kill(run: Run) -> None:
        for step, name in kills.items():
            if run.wait_for_moment(Moment(step, 0.5)):
                strike = to_driver(signal.SIGKILL) if name == "driver" else to_actor(name, signal.SIGKILL)
                strike(run)

    run_dir.parent.mkdir(parents=True, exist_ok=True)
    if not run.is_done:
        run.until_done(kill if kills else None)
        run.left()
    return [attempt.code for attempt in run.attempts]


def repeated(recorded: Path, run_dir: Path) -> dict[str, Any]:
    """Replay the run; the exit code, and whether both folders hold the same."""
    command = [sys.executable, "-m", "rl", "train", "--replay", str(recorded), f"run_dir={run_dir}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    is_equal = done.returncode == 0 and held(run_dir) == held(recorded)
    return {"code": done.returncode, "is_equal": is_equal, "said": (done.stdout + done.stderr)[-500:]}


def held(run_dir: Path) -> dict[str, Any]:
    """Every rollout but its seconds, and the weights."""
    files = sorted(RunFolder(run_dir).rollouts.glob("*.jsonl"))
    rollouts = {file.name: [one | {"seconds": 0} for one in read_rollouts(file)] for file in files}
    return {"rollouts": rollouts, "weights": bits(run_dir)["weights"]}


def counted(run_dir: Path) -> dict[str, int]:
    """Of the run: steps, and what makes it hard to repeat."""
    files = RunFolder(run_dir).rollouts_files("train").values()
    played = [rollout for file in files for rollout in load_rollouts(file)]
    replies = [turn.reply for rollout in played for turn in rollout.turns]
    return {
        "steps": len(lines(run_dir, "train")),
        "attempts": len(list((run_dir / "record").iterdir())),
        "replaced_workers": sum("died and is replaced" in line["text"] for line in lines(run_dir, "note")),
        "replies": len(replies),
        "rollouts_of_several_turns": sum(len(rollout.turns) > 1 for rollout in played),
        "replies_across_a_publish": sum(len(set(reply.columns["version"].tolist())) > 1 for reply in replies),
    }


if __name__ == "__main__":
    typer.run(main)
