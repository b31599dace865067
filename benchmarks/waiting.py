"""What does staleness bring where environments wait, beside what their waits allow?

    python -m benchmarks.waiting --out benchmarks/results/waiting.json     (about 25 minutes, two cores)

One engine and the learner train the quickstart's tiny hybrid on an environment of three turns with heavy-tailed waits
(`benchmarks.waiting_env`), at several bounds of the staleness and with three seeds, from one supervised policy. All
runs of a seed train the same number of steps, so held-out rewards are those of equal samples. `ideal` is a simulation
(`benchmarks.waiting_ideal`): the same rollouts, with the lengths and waits of the synchronous run, on an engine and a
learner of the measured speeds that do nothing else.

A synchronous run is also played with other locksteps (`rollout.lockstep_steps`): its reproducible default lets the
engine wait for environments. `long_prompts` are runs of the first seed in which sampling is quicker than training, for
the age of tokens: the learner computes the prompt of each row, as it would if no rows shared one.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.node_figures import lines
from benchmarks.nodes import ROOT
from benchmarks.random_policies import untrained
from benchmarks.report import write_report
from benchmarks.waiting_ideal import calibrated, played_groups, seconds_a_step

ENVIRONMENT = "benchmarks.waiting_env:Waits"
NUM_LEFT_OUT = 3
"""First steps of a run: they fill the line of groups."""
NUM_SETTLED = 10
"""Last steps of a run: by then no more groups are in flight than the run needs."""
WORKING = ("engines", "learner", "both", "neither")


@dataclass(frozen=True, slots=True)
class Case:
    bound: int
    """Of the staleness."""
    lockstep_steps: int = 4
    num_words: int = 0
    """Before the first question of an episode. With them, the learner trains each row whole, for more steps."""

    def num_steps(self, usual: int) -> int:
        return usual + NUM_SETTLED if self.num_words else usual


def cases(*bounds: int, locksteps: Sequence[int] = (), num_words: int = 0) -> dict[str, Case]:
    """By name."""
    usual = {f"bound_{bound}": Case(bound) for bound in bounds}
    other = {f"bound_0_lockstep_{steps}": Case(0, steps) for steps in locksteps}
    long = {f"long_prompts_bound_{bound}": Case(bound, num_words=num_words) for bound in bounds if bound and num_words}
    return {**usual, **other, **long}


@dataclass(frozen=True, slots=True)
class Form:
    cases: Mapping[str, Case]
    seeds: Sequence[int]
    num_steps: int
    num_prompts: int
    group_size: int
    scale: float
    """Of the waits."""
    sft_steps: int
    num_tasks: int


FULL = Form(
    cases(0, 1, 2, 4, locksteps=(32, 0), num_words=100),
    (0, 1, 2),
    **{"num_steps": 23, "num_prompts": 8, "group_size": 8, "scale": 1.0, "sft_steps": 200, "num_tasks": 64},
)
SHORT = Form(
    {"bound_0": Case(0), "long_prompts_bound_1": Case(1, num_words=3)},
    (0,),
    **{"num_steps": 5, "num_prompts": 1, "group_size": 2, "scale": 0.1, "sft_steps": 0, "num_tasks": 1},
)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs; one that has ended is read.")] = Path("runs/waiting"),
    short: Annotated[bool, typer.Option(help="One seed, five short steps; only to see that it runs.")] = False,
) -> None:
    form, runs = SHORT if short else FULL, runs.absolute()
    runs.mkdir(parents=True, exist_ok=True)
    policy = untrained(runs / "policy")
    if form.sft_steps:
        train(runs / "sft", experiment(form, policy, 0, Case(0), form.sft_steps))
        policy = runs / "sft" / "sft"
    raw: dict[str, Any] = {}
    for seed in form.seeds:
        for name, case in form.cases.items():
            if case.num_words and seed != form.seeds[0]:
                continue
            run_dir = runs / f"seed_{seed}_{name}"
            train(run_dir, experiment(form, policy, seed, case))
            raw[run_dir.name] = measured(run_dir)
        synchronous = runs / f"seed_{seed}_bound_0"
        groups, figures = played_groups(synchronous, form.scale), raw[synchronous.name]
        speeds = calibrated(groups, form.num_prompts, figures)
        for name, case in form.cases.items():
            if not case.num_words:
                ideal_s = seconds_a_step(groups, form.num_prompts, case.bound, speeds)
                raw[f"seed_{seed}_{name}"]["ideal_s"] = ideal_s
    write_report(out, summarised(raw, form), raw=raw)


def experiment(form: Form, policy: Path, seed: int, case: Case, sft_steps: int = 0) -> Mapping[str, Any]:
    stage = {"num_steps": sft_steps, "num_conversations": 32 * sft_steps, "giving_up_share": 0.4}
    # Conversations of the stage are played one after the other, and its rows do not depend on the waits.
    options = {"scale": 0.0 if sft_steps else form.scale, "num_words": case.num_words}
    return {
        "seed": seed,
        "policy": {"path": str(policy), "max_tokens": 1024 if case.num_words else 512},
        "environments": {ENVIRONMENT: {"options": options}},
        **({"sft": stage} if sft_steps else {}),
        "train": {
            **{"num_steps": 1 if sft_steps else case.num_steps(form.num_steps), "max_staleness": case.bound},
            **{"num_prompts": form.num_prompts, "group_size": form.group_size},
        },
        "learner": {"share_prefixes": not case.num_words},
        "rollout": {
            "num_workers": 1,
            "cpus_per_worker": 0.5,
            "max_in_flight": 64 * (1 + case.bound),
            "max_reply_tokens": 48,
            "lockstep_steps": case.lockstep_steps,
        },
        "evaluation": {"num_tasks": form.num_tasks},
        "ray": {"address": "local"},
    }


def train(run_dir: Path, experiment: Mapping[str, Any]) -> None:
    if (run_dir / "report.html").is_file():
        return
    yaml = run_dir.with_suffix(".yaml")
    yaml.write_text(json.dumps({**experiment, "run_dir": str(run_dir)}))
    command = [sys.executable, "-m", "rl", "train", str(yaml)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{run_dir.name}: {done.stdout[-2000:]}{done.stderr[-4000:]}")


def measured(run_dir: Path) -> dict[str, Any]:
    """Means over the steps but the first, and the held-out reward before and after."""
    steps = lines(run_dir, "train")[NUM_LEFT_OUT:]

    def mean(name: str) -> float:
        return statistics.fmean(line.get(name) or 0.0 for line in steps)

    before, after = (next(one for one in lines(run_dir, "evaluation") if one["label"] == label) for label in LABELS)
    return {
        "step_s": (steps[-1]["time"] - steps[0]["time"]) / (len(steps) - 1),
        "update_s": mean("seconds/update"),
        "working": {which: mean(f"working/{which}") for which in WORKING},
        "age": mean("staleness"),
        "age_settled": statistics.fmean(line["staleness"] for line in steps[-NUM_SETTLED:]),
        "age_max": max(line["staleness_max"] for line in steps),
        "reward_before": before["reward/mean"],
        "reward_after": after["reward/mean"],
    }


LABELS = ("before", "after")


def summarised(raw: Mapping[str, Mapping[str, Any]], form: Form) -> dict[str, Any]:
    """By case, the means over seeds; `by_synchronous` is how many times the steps an hour of the synchronous run."""
    summary: dict[str, dict[str, float]] = {}
    for name, case in form.cases.items():
        runs = [raw[key] for seed in form.seeds if (key := f"seed_{seed}_{name}") in raw]
        synchronous = [raw[f"seed_{seed}_bound_0"] for seed in form.seeds]
        summary[name] = {
            "steps_an_hour": statistics.fmean(3600 / run["step_s"] for run in runs),
            **{which: statistics.fmean(run["working"][which] for run in runs) for which in WORKING},
            **{age: statistics.fmean(run[age] for run in runs) for age in ("age", "age_settled")},
            "age_max": max(run["age_max"] for run in runs),
            "reward_after": statistics.fmean(run["reward_after"] for run in runs),
        }
        if case.num_words:
            continue
        pairs = list(zip(synchronous, runs, strict=True))
        summary[name] |= {
            "by_synchronous": statistics.fmean(s["step_s"] / r["step_s"] for s, r in pairs),
            "ideal_by_synchronous": statistics.fmean(s["step_s"] / r["ideal_s"] for s, r in pairs),
            "seconds_by_ideal": statistics.fmean(run["step_s"] / run["ideal_s"] for run in runs),
        }
    return summary


if __name__ == "__main__":
    typer.run(main)
