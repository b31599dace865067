"""How does a stage continue after it was stopped? From one of trl's checkpoints.

Every ten minutes, and when a signal stops it, a stage writes weights, optimiser, learning rate and random state
beside the metrics. The next start with the same configuration and rows continues from there; the result equals that of
an uninterrupted stage bit for bit. With another configuration the stage starts from the beginning; with the same one
and other rows, or another policy under the same path, it does not start, because what changed under a stopped stage is
more often a mistake. The interval is a time, not a number of steps, because a checkpoint is three times the policy's
size: a short stage writes none.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl.config.experiment import ExperimentConfig
from rl.config.saved_policy import weights_hash
from rl.ranks import ALONE, Ranks
from rl.stop import StopRequested, raise_if_requested
from sft.data import Row
from sft.rows import SftDataError

STAGE_FILE = "stage.txt"
TREES_FILE = "trees.txt"
LEARNER_KEYS = ("tokens_per_micro_batch", "share_prefixes", "logprob_chunk_tokens")
"""Of the learner, those that decide how the stage rounds."""
COMPUTES = 2
"""Raised when a stage computes otherwise from the same configuration: one that was stopped then begins anew."""
INTERVAL_S = 600.0
"""Between checkpoints; only the newest is kept."""


class Checkpoints(TrainerCallback):
    """Requests checkpoints, and ends training after the step in which a signal arrived."""

    def __init__(self, num_steps: int, ranks: Ranks = ALONE) -> None:
        self._num_steps, self._ranks = num_steps, ranks
        self._saved_at = time.monotonic()
        self.stop: StopRequested | None = None
        """Set when a signal ended training before the last step."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self._num_steps:
            return  # the final policy is written next
        requested: tuple[str, int] | None = None
        try:
            raise_if_requested()
        except StopRequested as stop:
            requested = str(stop), stop.exit_code
        is_due = time.monotonic() - self._saved_at >= INTERVAL_S
        told = self._ranks.gather((requested, is_due))  # all ranks must decide alike
        if requests := [request for request, _ in told if request is not None]:
            self.stop = StopRequested(*requests[0])
            control.should_training_stop = True
        control.should_save = self.stop is not None or any(due for _, due in told)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep only the newest checkpoint, now that it is complete."""
        self._saved_at = time.monotonic()
        for path in Path(str(args.output_dir)).glob("checkpoint-*") if self._ranks.is_first else ():
            if _step(path) != state.global_step:
                shutil.rmtree(path)


def prepare(folder: Path, rows: Iterable[Row], config: ExperimentConfig, section: str, policy: Path) -> Path | None:
    """The checkpoint in `folder` to go on from; None when there is none of this stage, and the folder is then empty.

    `section` is the stage's in the configuration, `policy` the folder that training starts from: also later it is the
    reference of DPO and the base of an adapter.

    Raises `SftDataError` when there is one of the same configuration, but of other rows or another policy.
    """
    now, file = _fingerprint(rows, config, section, policy), folder / STAGE_FILE
    before = file.read_text().split() if file.is_file() else []
    # The state is written last, so a checkpoint without it was cut off.
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    if whole and before[:1] == now[:1]:
        newest = max(whole, key=_step)
        if len(before) != len(now):
            raise SftDataError(
                f"{folder} holds a stage that another version of polygym stopped: delete it to begin again"
            )
        if before != now:
            names = " or ".join(source.name for source in getattr(config, section).sources)
            changed = (
                f"rows: {names}" if before[1:2] != now[1:2] else f"weights or configuration of the policy: {policy}"
            )
            raise SftDataError(
                f"{folder} holds a stage that was stopped after step {_step(newest)}, of this configuration but other"
                f" {changed} changed. Restore what changed to continue, or delete {folder} to start from the beginning"
            )
        return newest
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file.write_text("\n".join(now) + "\n")
    return None


def discard(folder: Path) -> None:
    """Remove from `folder` what a complete stage does not need."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    (folder / STAGE_FILE).unlink()
    (folder / TREES_FILE).unlink(missing_ok=True)


def remember_trees(folder: Path, takes_trees: bool) -> None:
    """Whether the policy that the stage began from takes trees: another start must compute as the first."""
    (folder / TREES_FILE).write_text(str(takes_trees))


def remembered_trees(folder: Path) -> bool:
    return (folder / TREES_FILE).read_text() == str(True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _fingerprint(rows: Iterable[Row], config: ExperimentConfig, section: str, policy: Path) -> list[str]:
    """What decides the outcome of the stage: digests of what it reads of the configuration, of the rows, and of the
    policy's weights and files of configuration.
    """
    parts = config.model_dump(mode="json", include={"seed", "policy", "precision", section, "learner"})
    parts["learner"] = {name: parts["learner"][name] for name in LEARNER_KEYS}
    parts["computes"] = COMPUTES
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.part, row.input_ids, row.labels, row.identity]).encode())
    told = hashlib.sha256(weights_hash(policy).encode())
    for file in sorted(policy.glob("*config.json")):
        told.update(file.read_bytes())
    return [
        hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        digest.hexdigest(),
        told.hexdigest(),
    ]
