"""How does vLLM enforce a thinking budget? A logits processor masks all tokens except the forced one.

The forced token is then sampled like any other, with logprob 0; nothing else in vLLM changes. vLLM's own
`thinking_token_budget` cannot wait for the end of a line.
"""

from dataclasses import asdict, dataclass

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from rl.chat.budget import ThinkingLimit

ARGUMENT = "polygym_thinking"
"""Name of the limit among a request's `extra_args`."""


def as_argument(limit: ThinkingLimit) -> dict[str, object]:
    """The limit as plain values, for `SamplingParams.extra_args`."""
    return {ARGUMENT: {**asdict(limit), "line_end_ids": sorted(limit.line_end_ids)}}


@dataclass(slots=True)
class _Reply:
    """A running reply whose reasoning may have to be ended by force."""

    limit: ThinkingLimit
    ids: list[int]
    """Grows with every sampled token: vLLM's own list."""
    start: int | None
    """Position of the first forced token; None before that."""
    num_seen: int = 0

    def next_forced(self) -> int | None:
        """The token that is forced next, or None."""
        num = len(self.ids)
        if self.start is None and self.limit.ends_reasoning(self.ids, num):
            self.start = num
        if self.start is None or num - self.start >= len(self.limit.closing_ids):
            return None
        return self.limit.closing_ids[num - self.start]

    def is_settled(self) -> bool:
        """Whether nothing can be forced any more: the reasoning is closed."""
        closed = self.limit.end_id in self.ids[self.num_seen :]
        self.num_seen = len(self.ids)
        return closed


class ThinkingBudget(LogitsProcessor):
    """One instance per engine; rows of the batch are added, removed and moved."""

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool) -> None:
        self._replies: dict[int, _Reply] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._replies.pop(row, None)
        for row, params, _, reply_ids in batch_update.added:
            self._replies.pop(row, None)
            if reply := _new_reply(params, reply_ids):
                self._replies[row] = reply
        for source, target, direction in batch_update.moved:
            moved, replaced = self._replies.pop(source, None), self._replies.pop(target, None)
            if moved:
                self._replies[target] = moved
            if replaced and direction is MoveDirectionality.SWAP:
                self._replies[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        settled = [row for row, reply in self._replies.items() if reply.is_settled()]
        for row in settled:
            del self._replies[row]
        for row, reply in self._replies.items():
            token = reply.next_forced()
            if token is not None:
                logits[row] = -torch.inf
                logits[row, token] = 0.0
        return logits


def _new_reply(params: SamplingParams, reply_ids: list[int]) -> _Reply | None:
    fields = (params.extra_args or {}).get(ARGUMENT)
    if fields is None:
        return None
    limit = ThinkingLimit(
        **{**fields, "closing_ids": tuple(fields["closing_ids"]), "line_end_ids": frozenset(fields["line_end_ids"])}
    )
    return _Reply(limit, reply_ids, limit.forced_start(reply_ids))  # a request that was preempted comes with tokens
