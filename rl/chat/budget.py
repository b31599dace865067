"""When does a thinking budget end the policy's reasoning, and with which tokens?

One rule on token ids serves every use: the engine forces tokens, turns mark forced tokens, each rollout is checked, and
the supervised stage cuts gold reasoning. Reasoning that has used up its budget ends after the next token that ends a
line, or after `grace_tokens` more tokens, with a closing text and `</think>`. NVIDIA's logits processor for Nemotron 3
(github.com/NVIDIA-NeMo/Nemotron, tools/budget) follows the same rule, but does not report what it forced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rl.tokens import Tokens


@dataclass(frozen=True, slots=True)
class ThinkingLimit:
    """The limit on the reasoning of one reply, which begins with the reply and ends with `end_id`."""

    num_tokens: int
    """Tokens of reasoning after which it ends at the next line end; at least 1."""
    grace_tokens: int
    """Maximum further tokens if no line ends."""
    closing_ids: tuple[int, ...]
    """Tokens that are then forced; the last one is `end_id`."""
    end_id: int
    """`</think>`"""
    line_end_ids: frozenset[int]
    """Tokens whose text ends with a line break."""

    def ends_reasoning(self, reply_ids: Sequence[int], place: int) -> bool:
        """Whether reasoning that is still open after `place` tokens is ended there by force."""
        if place < self.num_tokens:
            return False
        return place >= self.num_tokens + self.grace_tokens or reply_ids[place - 1] in self.line_end_ids

    def forced_start(self, reply_ids: Sequence[int]) -> int | None:
        """Position of the first forced token, possibly one past the end; None if nothing is forced yet."""
        for place, token in enumerate(reply_ids):
            if self.ends_reasoning(reply_ids, place):
                return place
            if token == self.end_id:
                return None
        return len(reply_ids) if self.ends_reasoning(reply_ids, len(reply_ids)) else None

    def forced_mask(self, reply_ids: Sequence[int]) -> tuple[bool, ...]:
        """A mask over the tokens of a reply; True for forced tokens."""
        start = self.forced_start(reply_ids)
        if start is None:
            return (False,) * len(reply_ids)
        return tuple(start <= place < start + len(self.closing_ids) for place in range(len(reply_ids)))

    def cut(self, reply_ids: Sequence[int]) -> tuple[int, ...]:
        """The reply with its reasoning cut by this limit; everything after the reasoning is kept."""
        start = self.forced_start(reply_ids)
        if start is None or self.end_id not in reply_ids:
            return tuple(reply_ids)
        answer = list(reply_ids).index(self.end_id) + 1
        return (*reply_ids[:start], *self.closing_ids, *reply_ids[answer:])


def violation(reply: Tokens, limit: ThinkingLimit | None) -> str:
    """How the engine violated the budget in this reply; empty if it did not."""
    if limit is None:
        return "" if reply.sampled.all() else "tokens were forced without a budget"
    forced = tuple(reply.ids[~reply.sampled].tolist())
    if tuple((~reply.sampled).tolist()) != limit.forced_mask(reply.ids.tolist()):
        return "tokens are marked as forced that the budget does not force, or the other way round"
    if forced != limit.closing_ids[: len(forced)]:
        most = limit.num_tokens + limit.grace_tokens
        return f"reasoning went on after {most} tokens, budget and grace together"
    return ""
