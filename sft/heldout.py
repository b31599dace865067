"""Which rows are held out, and how is their loss measured? By trl's trainer, between two steps."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from rl.learner.adapter import save_matrices
from rl.precision.folded import FoldedWeights
from rl.weights.merged import adapted_weights
from sft.data import IGNORED_LABEL, Row
from sft.precision import ADAPTER
from sft.rows import SftDataError


def split_rows(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train, and the rows held out: `share` of the distinct conversations, at least one unless it is 0.

    Equal conversations stay together, so that none is trained and held out. The order of the rows does not matter, and
    adding rows moves few. Raises `SftDataError` if none would be left to train.
    """
    if share == 0:
        return list(rows), []

    def rank(ids: tuple[int, ...]) -> bytes:
        return hashlib.sha256(json.dumps([seed, ids]).encode()).digest()

    distinct = sorted({row.input_ids for row in rows}, key=rank)
    heldout = frozenset(distinct[: max(1, round(share * len(distinct)))])
    if len(heldout) == len(distinct):
        raise SftDataError(
            f"sft.heldout_share ({share:g}) of {len(distinct)} distinct conversations leaves none to train; lower it"
        )
    return (
        [row for row in rows if row.input_ids not in heldout],
        sorted((row for row in rows if row.input_ids in heldout), key=lambda row: len(row.input_ids)),
    )


class Trainer(SFTTrainer):
    """trl's trainer for a model that is already the checkpoint's, without a model card.

    Its `evaluate` measures the mean loss of the trained tokens of all held-out rows (nats a token), with the folded
    weights.
    """

    def __init__(self, *, folded: FoldedWeights, heldout: Sequence[Row], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._folded = folded
        num_tokens = sum(label != IGNORED_LABEL for row in heldout for label in row.labels)
        self._tokens_per_row = num_tokens / max(1, len(heldout))

    def evaluate(self, *arguments: Any, **more: Any) -> dict[str, float]:
        with self._folded.in_place():
            return super().evaluate(*arguments, **more)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """A batch's loss, divided so that transformers' mean over the rows becomes one over all of their tokens."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[assignment]
        with torch.no_grad(), self.compute_loss_context_manager():
            num_items = self._tokens_per_row * len(inputs["labels"])
            return self.compute_loss(model, inputs, num_items_in_batch=num_items), None, None  # type: ignore[return-value]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy, or only its adapter: the base does not change."""
        assert isinstance(self.model, PreTrainedModel)
        if not any(adapted_weights(self.model)):
            super()._save(output_dir, state_dict)
            return
        assert output_dir is not None
        save_matrices(self.model, Path(output_dir) / ADAPTER)

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Nothing: transformers would look for the names in memory, but experts are stored under others."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the folder belongs to a run, which says what was done."""


class Measurements(TrainerCallback):
    """Requests the held-out loss after every `every` steps, and after the last."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_evaluate = state.global_step % self._every == 0 or state.global_step == state.max_steps
