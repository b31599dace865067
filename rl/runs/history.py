"""How is the history of a run read from its folder, whether it has finished or not?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.errors import InputError
from envs.json_lines import JsonObject, read_lines
from rl.runs.folder import RunFolder
from rl.runs.versions import read_versions

Line = JsonObject


@dataclass(frozen=True, slots=True)
class History:
    """The data of the report except rollouts; missing data is empty."""

    run: RunFolder
    config_text: str
    starts: Sequence[JsonObject]
    """Versions, one entry a start of the run."""
    steps: Sequence[Line]
    evaluations: Sequence[Line]
    notes: Sequence[Line]
    sft: Sequence[Line]
    budgets: Mapping[str, Line]
    """Evaluations by thinking budget, in the order of the command line."""

    @property
    def env_ids(self) -> list[str]:
        """Environments that occur in steps or evaluations, sorted."""
        trained = {
            name.split("/", 1)[1].rpartition("/")[0] for line in self.steps for name in line if "outcome/" in name
        }
        evaluated = {name.removeprefix("num/") for name in _names(self.evaluations, "num/")}
        return sorted((trained | evaluated) - {""})

    @property
    def missing_steps(self) -> list[int]:
        """Steps without a line though a later step has one: the run failed between an update and its metrics."""
        steps = {line["step"] for line in self.steps}
        return sorted(set(range(1, max(steps, default=0))) - steps)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was measured."""
        return points(self.steps, name)

    def evaluation(self, label: str) -> Line | None:
        """The last evaluation with this label."""
        found = [line for line in self.evaluations if line.get("label") == label]
        return found[-1] if found else None


class NoRunError(InputError):
    """There is no run folder to read."""


class DamagedError(InputError):
    """A file of the run cannot be read."""


def read_history(run_dir: Path) -> History:
    """Raises `NoRunError` when the folder is not there or holds no run, `JsonLineError`, `VersionsError` and
    `DamagedError` for a damaged file."""
    if not run_dir.is_dir():
        raise NoRunError(f"there is no run folder {run_dir}; give the run_dir of an experiment")
    run = RunFolder(run_dir)
    if not run.holds_run:
        raise NoRunError(f"{run_dir} holds no run (no metrics.jsonl or other file of a run); give the run_dir of a run")
    lines = list(read_lines(run.metrics_file))
    return History(
        run,
        run.config_file.read_text(encoding="utf-8") if run.config_file.is_file() else "",
        read_versions(run.versions_file),
        [line for line in lines if line.get("kind") == "train"],
        [line for line in lines if line.get("kind") == "evaluation"],
        [line for line in lines if line.get("kind") == "note"],
        list(read_lines(run.sft_metrics_file)),
        _budgets(run),
    )


def _budgets(run: RunFolder) -> Mapping[str, Line]:
    if not run.evaluation_file.is_file():
        return {}
    try:
        found = json.loads(run.evaluation_file.read_bytes())["budgets"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{run.evaluation_file} is damaged: {error}; delete it, or evaluate again") from None
    return {budget: line for budget, line in found.items() if budget != "own"}


def points(lines: Sequence[Line], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have a number of this name."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _names(lines: Sequence[Line], prefix: str) -> set[str]:
    return {name for line in lines for name in line if name.startswith(prefix)}
