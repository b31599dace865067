"""Which rows are held out, and when is their loss measured?"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.data import Row
from sft.rows import SftDataError


def split_rows(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train, and the rows held out: `share` of the distinct conversations, at least one unless it is 0.

    Equal conversations stay together, and so do the rows of a dialogue, so that none is trained and held out. The order
    of the rows does not matter, and adding rows moves few. Raises `SftDataError` if none would be left to train.
    """
    if share == 0:
        return list(rows), []

    def rank(ids: tuple[int, ...]) -> bytes:
        return hashlib.sha256(json.dumps([seed, ids]).encode()).digest()

    distinct = sorted({_whole(row) for row in rows}, key=rank)
    heldout = frozenset(distinct[: max(1, round(share * len(distinct)))])
    if len(heldout) == len(distinct):
        raise SftDataError(
            f"sft.heldout_share ({share:g}) of {len(distinct)} distinct conversations leaves none to train; lower it"
        )
    return (
        [row for row in rows if _whole(row) not in heldout],
        sorted((row for row in rows if _whole(row) in heldout), key=lambda row: len(row.input_ids)),
    )


def _whole(row: Row) -> tuple[int, ...]:
    """What rows of one dialogue, and of equal ones, have in common."""
    return row.last_ids or row.input_ids


class Measurements(TrainerCallback):
    """Requests the held-out loss after every `every` steps, and after the last."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_evaluate = state.global_step % self._every == 0 or state.global_step == state.max_steps
