"""Which rows are held out, and when is their loss measured?"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.data import AnyRow
from sft.rows import SftDataError

R = TypeVar("R", bound=AnyRow)


def split_rows(
    rows: Sequence[R], share: float, seed: int, section: str = "sft", what: str = "conversations"
) -> tuple[list[R], list[R]]:
    """The rows to train, and the rows held out: `share` of the distinct keys, at least one unless it is 0.

    Rows of equal keys stay together, so that none is trained and held out. The order of the rows does not matter, and
    adding rows moves few. Raises `SftDataError` if none would be left to train; `section` and `what` are its words.
    """
    if share == 0:
        return list(rows), []

    def rank(ids: tuple[int, ...]) -> bytes:
        return hashlib.sha256(json.dumps([seed, ids]).encode()).digest()

    distinct = sorted({row.heldout_key for row in rows}, key=rank)
    heldout = frozenset(distinct[: max(1, round(share * len(distinct)))])
    if len(heldout) == len(distinct):
        raise SftDataError(
            f"{section}.heldout_share ({share:g}) of {len(distinct)} distinct {what} leaves none to train; lower it"
        )
    return (
        [row for row in rows if row.heldout_key not in heldout],
        sorted((row for row in rows if row.heldout_key in heldout), key=len),
    )


class Measurements(TrainerCallback):
    """Requests the held-out loss after every `every` steps, and after the last."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_evaluate = state.global_step % self._every == 0 or state.global_step == state.max_steps
