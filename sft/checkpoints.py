"""How does the supervised stage continue after it was stopped? From one of trl's checkpoints.

Every ten minutes, and when a signal stops the stage, it writes weights, optimiser, learning rate and random state
next to the metrics. The next start with the same configuration and rows continues from there; the result equals that of
an uninterrupted stage bit for bit. With another configuration the stage starts from the beginning. The interval is a
time, not a number of steps, because a checkpoint is three times the policy's size: a short stage writes none.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from rl.config.experiment import ExperimentConfig
from rl.stop import StopRequested, raise_if_requested
from sft.data import Row

STAGE_FILE = "stage.json"
INTERVAL_S = 600.0
"""Between checkpoints; only the newest is kept."""


class Trainer(SFTTrainer):
    """trl's trainer for a model that is already loaded from the checkpoint; writes no model card."""

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Does nothing: transformers would look for the names in memory, but experts are stored under other names."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Does nothing: the folder belongs to a run, which records what was done."""


class Checkpoints(TrainerCallback):
    """Requests checkpoints, and ends training after the step in which a signal arrived."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._saved_at = time.monotonic()
        self.stop: StopRequested | None = None
        """Set when a signal ended training before the last step."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self._num_steps:
            return  # the final policy is written next
        try:
            raise_if_requested()
        except StopRequested as stop:
            self.stop = stop
            control.should_training_stop = True
        is_due = time.monotonic() - self._saved_at >= INTERVAL_S
        control.should_save = self.stop is not None or is_due

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep only the newest checkpoint, now that it is complete."""
        self._saved_at = time.monotonic()
        for path in Path(str(args.output_dir)).glob("checkpoint-*"):
            if _step(path) != state.global_step:
                shutil.rmtree(path)


def prepare(folder: Path, rows: Sequence[Row], config: ExperimentConfig) -> Path | None:
    """The checkpoint in `folder` to continue from; None if there is none of this stage: then the folder is emptied."""
    fingerprint = _fingerprint(rows, config)
    file = folder / STAGE_FILE
    if file.is_file() and file.read_text() == fingerprint:
        # The state is written last, so a checkpoint without it was cut off.
        whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        if whole:
            return max(whole, key=_step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file.write_text(fingerprint)
    return None


def discard(folder: Path) -> None:
    """Remove from `folder` what a complete stage does not need."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    (folder / STAGE_FILE).unlink()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _fingerprint(rows: Sequence[Row], config: ExperimentConfig) -> str:
    """Hash of what determines the result of the stage: the rows, and the parts of the configuration that it reads."""
    parts = config.model_dump(mode="json", include={"seed", "policy", "precision", "sft"})
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps([row.input_ids, row.labels]).encode())
    return json.dumps({"sha256": digest.hexdigest()}) + "\n"
