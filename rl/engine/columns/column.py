"""What must a token column implement, so that the engine can return it?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput


class Column(Protocol):
    """A column read from vLLM's output of one engine step. Algorithms name what they need (`Algorithm.needs`)."""

    engine_arguments: Mapping[str, Any]
    """Arguments of vLLM's `EngineArgs` that the column needs, by name."""

    def read(self, output: "CompletionOutput") -> Sequence[Any]:
        """One entry for each new token of the step, all of one shape."""
        ...
