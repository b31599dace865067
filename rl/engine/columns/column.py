"""What is a column of tokens to the engine?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput


class Column(Protocol):
    """Read from vLLM's output of one engine step. Algorithms name the columns that they need (`Algorithm.needs`)."""

    engine_arguments: Mapping[str, Any]
    """What vLLM's `EngineArgs` must be given for it, by name."""

    def read(self, output: "CompletionOutput") -> Sequence[Any]:
        """One entry for each new token of the step, all of one shape."""
        ...
