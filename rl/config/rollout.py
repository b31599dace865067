"""How are rollouts sampled and played?"""

from typing import Annotated

from pydantic import Field, model_validator

from envs.sandbox.limits import Level
from rl.config.section import NonNegative, Positive, Seconds, Section


class RolloutConfig(Section):
    """How rollouts are sampled and played."""

    num_workers: Positive = 1
    """Ray actors that play rollouts, each with an engine of its own."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1.0
    """Ray CPUs each worker reserves; fractions allowed."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """Ray GPUs each worker reserves. A fraction shares a card with other actors; several are used by tensor
    parallelism."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a card's memory that an engine takes for weights and caches; none takes 0.9 of what its worker reserves
    of the card."""
    max_in_flight: Positive = 64
    """Rollouts that one engine samples at the same time; more wait inside the engine."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of the engine's cache for attention and Mamba states, in GiB; none takes 0.5 on CPUs, and on GPUs what
    `gpu_memory_share` leaves."""
    max_reply_tokens: Positive = 96
    """Longest reply of one turn, in tokens, reasoning included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; logprobs are those of the distribution after it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; below 1 the learner cannot reproduce the engine's logprobs exactly."""
    reset_timeout_s: Seconds = 10.0
    """Deadline of an environment's reset."""
    step_timeout_s: Seconds = 20.0
    """Deadline of one environment step, scoring included."""
    reply_timeout_s: Seconds = 300.0
    """Deadline of one sampled reply."""
    max_message_characters: Positive = 1_000_000
    """Longest message that an environment may say; a longer one is an error of the environment."""
    num_retries: NonNegative = 1
    """Fresh attempts after an outcome that is not the policy's doing, before the rollout is masked."""
    sandbox_level: Level = "restricted"
    """Weakest sandbox that may run what a policy wrote; the strongest that works is used, and below this nothing runs
    (`python -m envs sandbox doctor`)."""
    num_env_threads: Positive = 16
    """Threads of a worker that environment code runs in, off the event loop."""
    lockstep_steps: NonNegative = 4
    """Engine steps after which a rollout's next request is admitted, whatever the environment's speed; this makes
    synchronous runs reproducible bit by bit. 0 admits at once. Asynchronous runs always admit at once."""

    @model_validator(mode="after")
    def _several_gpus_are_whole(self) -> "RolloutConfig":
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker ({self.gpus_per_worker:g}) is above 1 and no whole number: an engine shares one"
                " card or holds several; round it"
            )
        return self
