"""How are rollouts sampled and played?"""

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from envs.sandbox.limits import Level
from rl.config.section import NonNegative, Positive, Seconds, Section


class RolloutConfig(Section):
    """How the workers sample replies and run environments."""

    num_workers: Positive = 1
    """Ray actors that play rollouts; each has its own engine."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1.0
    """Ray CPUs that each worker reserves; fractions are allowed."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """Ray GPUs that each worker reserves. A worker with a fraction shares a card with other actors; a worker with
    several uses tensor parallelism."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a card's memory that an engine uses for weights and caches; null uses 0.9 of the share of the card that
    its worker reserves."""
    sleep: bool = False
    """Free the engine's memory on its card while nothing is played, so that a learner on the same card can use it for
    its update (vLLM's sleep mode; weights wait in the CPU's memory). Only for synchronous runs on GPUs."""
    max_in_flight: Positive = 64
    """Rollouts that one worker plays at the same time. Further rollouts wait for a seat: their environments are not
    open yet and their deadlines do not run. Those whose last turn is being scored have left their seats and come on
    top."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of the engine's cache for attention keys, values and Mamba states; null uses 0.5 GiB on CPUs, and on GPUs
    what the weights leave of `gpu_memory_share`."""
    cache_on_update: Literal["keep", "recompute"] = "keep"
    """What becomes of the attention keys, values and Mamba states of replies in flight when an engine loads new
    weights. `keep` goes on with them: later tokens are sampled by the new weights from states of the old ones, so their
    logprobs are those of neither version, and differ from the learner's by more than rounding. `recompute` computes
    them again: later tokens have the logprobs of the new version, at the price of a prefill of every reply in flight.
    Either way, a token's version is that of the weights that sampled it. In synchronous runs nothing is in flight."""
    max_reply_tokens: Positive = 96
    """Maximum length of one reply, reasoning included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature. Logprobs are those of the distribution after temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling. Below 1 the learner cannot reproduce the engine's logprobs exactly."""
    reset_timeout_s: Seconds = 10.0
    """Deadline for creating and resetting an environment; reading its data (`load_data`) is no part of it."""
    step_timeout_s: Seconds = 20.0
    """Deadline for one environment step, scoring included."""
    reply_timeout_s: Seconds = 300.0
    """Deadline for sampling one reply, counted from its admission to the engine."""
    heartbeat_timeout_s: Seconds = 120.0
    """A worker whose process does not answer for so long is replaced, as one that died. It answers while it plays."""
    max_message_characters: Positive = 1_000_000
    """Maximum length of a message from an environment. A longer result of a tool is cut; any other longer message is an
    environment error."""
    num_retries: NonNegative = 1
    """Retries, each with a new environment, after an outcome that the policy did not cause. After the last one the
    rollout is masked."""
    sandbox_level: Level = "restricted"
    """Weakest sandbox level that may run the policy's code. The strongest level that works here is used; if it is below
    this one, the run does not start (`python -m envs sandbox doctor`)."""
    num_env_threads: Positive = 16
    """Threads per worker that run synchronous environment code, off the event loop."""
    num_env_processes: Positive | None = None
    """Processes of environments (`environments.ID.process`) that may compute at the same time, per worker; null is the
    number of cores. There are more processes than that: each episode has its own, and most wait for replies."""
    env_memory_mib: Positive | None = 4096
    """Memory that the process of an episode may allocate in addition to what it shares with the others. More is an
    environment error. null sets no bound."""
    lockstep_steps: NonNegative = 4
    """Engine steps between the end of a reply and the admission of the rollout's next request, however fast the
    environment is. This makes synchronous runs reproducible bit by bit. Where environments wait between turns, the
    engine waits with them: 32 lets it go on meanwhile. It does not wait while a last turn is scored, so a rollout that
    is played again because scoring failed enters at no fixed step. 0 admits requests immediately, as asynchronous runs
    always do."""

    @property
    def num_computing(self) -> int:
        """`num_env_processes` on this machine."""
        return self.num_env_processes or len(os.sched_getaffinity(0))

    @model_validator(mode="after")
    def _sleep_needs_a_gpu(self) -> "RolloutConfig":
        if self.sleep and not self.gpus_per_worker:
            raise ValueError("sleep frees memory of a GPU, but gpus_per_worker is 0: remove it, or set gpus_per_worker")
        return self

    @model_validator(mode="after")
    def _several_gpus_are_whole(self) -> "RolloutConfig":
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker ({self.gpus_per_worker:g}) is above 1 but not a whole number: an engine either shares"
                " one card or uses several whole cards; round it"
            )
        return self
