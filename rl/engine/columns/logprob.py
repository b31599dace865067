"""The column `logprob`: how likely was the sampled token, in nats, under the sampled distribution after temperature?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput


class Logprob:
    engine_arguments: Mapping[str, Any] = {"logprobs_mode": "processed_logprobs"}

    def read(self, output: "CompletionOutput") -> Sequence[float]:
        entries = zip(output.token_ids, output.logprobs or (), strict=True)
        return [entry[token].logprob for token, entry in entries if entry]
