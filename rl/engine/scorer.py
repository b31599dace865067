"""How probable does a frozen policy think given tokens? vLLM in this process reads whole rows and samples nothing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl.config.experiment import ExperimentConfig
from rl.engine.arguments import SCORED_TOKENS
from rl.engine.protocol import EngineError
from rl.engine.vllm_core import start_vllm

ARGUMENTS = {
    "enable_prefix_caching": False,  # of tokens that are found in a cache vLLM gives no logprobs
    # The logits of a chunk are in memory at once, those of a long row would not fit a card. Nothing is sampled, so
    # cutting rows rewinds no generator.
    "enable_chunked_prefill": True,
    "max_num_batched_tokens": SCORED_TOKENS,
}
"""Of vLLM's `EngineArgs`, in place of an engine's that samples."""


class Scorer:
    """Scores rows of token ids under the checkpoint at `path`, in the arithmetic of the experiment's precision.

    Made for a process of its own, as `rl.engine.vllm_core.VllmEngine`.
    """

    def __init__(self, path: Path, config: ExperimentConfig) -> None:
        """Raises `EngineError` when vLLM cannot serve the checkpoint."""
        # vLLM must sample a token, so rows that fill the policy's context need room for one more, which is thrown away.
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
        policy = config.policy.model_copy(update={"path": path, "max_tokens": config.policy.max_tokens + 1})
        try:
            self._llm = start_vllm(path, config.model_copy(update={"policy": policy}), **ARGUMENTS)
        except Exception as error:
            raise EngineError(f"vLLM cannot serve {path}: {type(error).__name__}: {error}") from error
        self._num_requests = 0

    def score(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [T] for each row: log p(token | tokens before it) in nats, at temperature 1; 0 for the first token.

        Raises `EngineError` when vLLM refuses a row, or fails.
        """
        try:
            places = {self._add(row): place for place, row in enumerate(rows)}
            found: dict[int, np.ndarray] = {}
            while self._llm.has_unfinished_requests():
                for output in self._llm.step():
                    if output.finished:
                        place = places[output.request_id]
                        found[place] = _logprobs(rows[place], getattr(output, "prompt_logprobs", None) or ())
        except Exception as error:
            raise EngineError(f"the teacher's engine failed: {type(error).__name__}: {error}") from error
        return [found[place] for place in range(len(rows))]

    def _add(self, row: Sequence[int]) -> str:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        name = str(self._num_requests)
        self._num_requests += 1
        kind = RequestOutputKind.FINAL_ONLY
        asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=kind)
        self._llm.add_request(name, tokens_input(list(row)), asked)
        return name

    def shutdown(self) -> None:
        self._llm.engine_core.shutdown()


def _logprobs(row: Sequence[int], entries: Sequence[Mapping[int, Any] | None]) -> np.ndarray:
    """vLLM has one entry a token, the first of which is None."""
    if len(entries) != len(row):
        raise EngineError(f"a row of {len(row)} tokens got logprobs of {len(entries)}")
    values = [entry[token].logprob if entry else 0.0 for token, entry in zip(row, entries, strict=True)]
    return np.asarray(values, np.float32)
