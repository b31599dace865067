"""Which rows are held out, and when is their loss measured?"""

import hashlib
import json
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.data import AnyRow
from sft.rows import SftDataError

R = TypeVar("R", bound=AnyRow)


def split_rows(
    rows: Sequence[R], share: float, seed: int, section: str = "sft", what: str = "conversations"
) -> tuple[list[R], list[R]]:
    """The rows to train, and the rows held out: `share` of the distinct conversations, at least one unless it is 0.

    Rows that have a key in common stay together, so that no conversation is trained and held out, however its rows were
    varied. The order of the rows does not matter, and adding rows moves few. Raises `SftDataError` if none would be
    left to train; `section` and `what` are its words.
    """
    if share == 0:
        return list(rows), []

    def rank(key: Hashable) -> bytes:
        return hashlib.sha256(json.dumps([seed, key]).encode()).digest()

    groups = _groups(rows)
    distinct: dict[int, set[Hashable]] = {}
    for row, group in zip(rows, groups, strict=True):
        distinct.setdefault(group, set()).add(row.heldout_keys[0])
    num_distinct = sum(map(len, distinct.values()))
    room = max(1, round(share * num_distinct))
    heldout: set[int] = set()
    ranked = sorted(distinct, key=lambda group: min(map(rank, distinct[group])))
    for group in ranked:
        if len(distinct[group]) <= room:  # a larger one, of many conversations with a row in common, is trained
            heldout.add(group)
            room -= len(distinct[group])
    heldout = heldout or {min(ranked, key=lambda group: len(distinct[group]))}
    if len(heldout) == len(distinct):
        raise SftDataError(
            f"{section}.heldout_share ({share:g}) of {num_distinct} distinct {what} leaves none to train; lower it"
        )
    return (
        [row for row, group in zip(rows, groups, strict=True) if group not in heldout],
        sorted((row for row, group in zip(rows, groups, strict=True) if group in heldout), key=len),
    )


def _groups(rows: Sequence[AnyRow]) -> list[int]:
    """A number for each row, the same for rows that have a key in common, or are linked so by other rows."""
    above = list(range(len(rows)))

    def top(place: int) -> int:
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    first: dict[Hashable, int] = {}
    for place, row in enumerate(rows):
        for key in row.heldout_keys:
            above[top(place)] = top(first.setdefault(key, place))
    return list(map(top, range(len(rows))))


class Measurements(TrainerCallback):
    """Requests the held-out loss after every `every` steps, and after the last."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_evaluate = state.global_step % self._every == 0 or state.global_step == state.max_steps
