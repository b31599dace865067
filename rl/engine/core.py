"""What is an engine that is stepped, as `rl.engine.thread` drives it? `rl.engine.vllm_core` is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rl.engine.protocol import SamplingParams
from rl.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step added to one request."""

    request_id: str
    token_ids: Sequence[int]
    columns: Mapping[str, Sequence[Any]]
    """One entry per token, by the names of `rl.engine.columns`."""
    finish: str | None
    """None while the request goes on."""
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Columns of the prompt and of the reply so far (`rl.tokens.CONTEXT_COLUMNS`), once the request has ended. The last
    token is not among them: no step had it as input."""


class Core(Protocol):
    """An engine that is stepped; all calls come from one thread, never two at once."""

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Raise `EngineError` when the request cannot be served. The only call from other threads."""
        ...

    def add(self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def step(self) -> list[StepOutput]: ...

    def load(self, source: WeightSource) -> str:
        """Load new weights and return the hash of the loaded bytes. After `EngineError` the old weights are intact."""
        ...

    def rest(self) -> None:
        """Free memory until the next `add` or `load`. There are no requests."""
        ...

    def shutdown(self) -> None: ...
