"""How does a request become a reply, while the engine's thread adds token after token to it?"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rl.data_types import Finish
from rl.engine.clock import Place
from rl.engine.core import StepOutput
from rl.engine.protocol import EngineError, SampledReply, SamplingParams
from rl.tokens import Tokens

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "abort"}


class ReplyTimeoutError(EngineError):
    """The engine did not finish a reply in time."""


@dataclass(eq=False, slots=True)
class Request:
    """A prompt that a lane submitted, and what has been sampled for it."""

    request_id: str
    place: Place
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    admitted_at: float | None = None
    """Seconds of the monotonic clock; None until it enters the engine."""
    future: "Future[SampledReply]" = field(default_factory=Future)
    reply_ids: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    async def reply(self) -> SampledReply:
        """Wait for the reply. Its deadline counts from the request's admission, not from its submission.

        Raises `EngineError`, and `ReplyTimeoutError` at the deadline.
        """
        reply = asyncio.wrap_future(self.future)
        left_s = timeout_s = self.params.timeout_s
        while not (await asyncio.wait([reply], timeout=left_s))[0]:
            if self.admitted_at is None:
                continue
            left_s = self.admitted_at + timeout_s - time.monotonic()
            if left_s <= 0:
                raise ReplyTimeoutError(f"a reply took longer than {timeout_s:g} s (rollout.reply_timeout_s)")
        return reply.result()

    def take(self, output: StepOutput, version: int) -> SampledReply | EngineError | None:
        """Add what a step of this policy version sampled; returns the result once there is one."""
        self.reply_ids += output.token_ids
        for name, values in output.columns.items():
            self.columns[name] += values
        self.columns["version"] += [version] * len(output.token_ids)
        if not all(map(math.isfinite, output.columns["logprob"])):
            return EngineError("a sampled token has a logprob that is not finite: the weights are broken")
        if output.finish is None:
            return None
        if output.finish not in FINISHES:
            return EngineError(f"the engine ended a reply with {output.finish!r}")
        limit = self.params.thinking
        forced = limit.forced_mask(self.reply_ids) if limit else (False,) * len(self.reply_ids)
        sampled = [not is_forced for is_forced in forced]
        prompt, reply = self._context(output.context)
        tokens = Tokens.make(self.reply_ids, sampled, {**self.columns, **reply})
        return SampledReply(tokens, FINISHES[output.finish], prompt)

    def _context(self, context: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The columns of the prompt and of the reply; 0 for tokens that they lack."""
        num_prompt, num = len(self.prompt_ids), len(self.prompt_ids) + len(self.reply_ids)
        padded = {name: np.zeros((num, *rows.shape[1:]), rows.dtype) for name, rows in context.items()}
        for name, rows in context.items():
            padded[name][: len(rows)] = rows
        return (
            {name: rows[:num_prompt] for name, rows in padded.items()},
            {name: rows[num_prompt:] for name, rows in padded.items()},
        )

    def settle(self, result: SampledReply | EngineError) -> None:
        """Set the result of the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, EngineError):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


def fail(futures: "Iterable[Future[SampledReply] | Future[str] | Future[None]]", text: str) -> None:
    """Fail all these futures with an `EngineError`, except those that have ended."""
    for future in futures:
        if not future.done() and future.set_running_or_notify_cancel():
            future.set_exception(EngineError(text))
