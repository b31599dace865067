"""What must an engine implement? It samples replies, loads new weights, and reports errors.

`rl.engine.vllm_core.VllmEngine` is the engine; tests of higher layers use a scripted engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rl.chat.budget import ThinkingLimit
from rl.data_types import Finish
from rl.tokens import Tokens
from rl.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one reply is sampled. `seed` makes it a function of the prompt, the weights and the batch it ran in."""

    max_reply_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_ids: tuple[int, ...]
    thinking: ThinkingLimit | None = None
    """How long the reply may reason; the engine enforces it."""
    timeout_s: float = 300.0
    """Deadline of the reply, counted from when the engine starts it."""
    name: str = ""
    """Of the request, in records of the run: group, member, attempt and turn."""


@dataclass(frozen=True, slots=True)
class SampledReply:
    """The engine's reply to one prompt. Tokens that the thinking budget forced are not `sampled`."""

    tokens: Tokens
    finish: Finish
    prompt_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Columns of the whole prompt (`rl.tokens.CONTEXT_COLUMNS`), if they were asked for."""


class Lane(Protocol):
    """One rollout's place in the engine, from its first turn to its last.

    An engine with `lockstep_steps` > 0 runs on logical time: a lane's next request is admitted a fixed number of engine
    steps after its last reply, however long the environment takes. The batch in which a token is sampled, and with it
    every bit of its logprob, thus does not depend on timing. A lane must therefore be closed when the rollout is over.
    """

    async def seated(self) -> None:
        """Wait until the engine has a seat for this lane. Before that, no environment of the rollout may be opened and
        no deadline may start. Raises `EngineError` if the engine failed.
        """
        ...

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> SampledReply:
        """Sample one reply. Raises `EngineError` when the engine failed, the prompt does not fit, or the reply takes
        longer than its deadline.
        """
        ...

    def close(self) -> None:
        """Close the lane: it sends no more requests. Idempotent."""
        ...


class Engine(Protocol):
    def open_lanes(self, num: int) -> Sequence[Lane]:
        """Open lanes at one logical moment; with lockstep, the engine waits for the first request of each."""
        ...

    async def load_weights(self, source: WeightSource) -> str:
        """Load the weights of `source.version` between two engine steps, also for requests in flight.

        Returns the hash of the bytes that were loaded. Raises `EngineError` when the version is not newer.
        """
        ...

    def check_alive(self) -> None:
        """Raises `EngineError` when the engine is dead."""
        ...

    def shutdown(self) -> None: ...


class EngineError(RuntimeError):
    """The engine failed or refused a request. This is an infrastructure failure, which the policy never causes."""
