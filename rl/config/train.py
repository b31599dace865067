"""How long does the training loop run, how large are its steps, and when does it save?"""

from typing import Annotated

from pydantic import Field, model_validator

from rl.config.section import NonNegative, Positive, Seconds, Section


class TrainConfig(Section):
    """The training loop: its length, batch, staleness, checkpoints and deadlines."""

    num_steps: Positive
    """Optimiser steps."""
    num_prompts: Positive = 8
    """P: prompts per step, each with one group of rollouts."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """G: rollouts per group."""
    max_sampling_rounds: Positive = 1
    """Rounds of groups that a step may play until `num_prompts` of them have a signal (dynamic sampling of DAPO).
    Groups without one, after shaping, then leave the step: neither its loss nor the loss's denominator has them. A
    synchronous step starts new groups for each round. An asynchronous one takes them from those in flight, so it plays
    at most `num_prompts * (1 + max_staleness)`. 1 trains on the first `num_prompts` groups, whatever they are."""
    max_staleness: NonNegative = 0
    """Maximum updates between the start of a group and its training; 0 is strictly synchronous."""
    checkpoint_every: Positive = 20
    """Steps between checkpoints. One is always written at the end and when the run is stopped."""
    keep_checkpoints: Positive = 2
    """Number of newest checkpoints to keep."""
    save_policy_every: Positive | None = None
    """With several ranks: steps between checkpoints that also hold the policy as a Hugging Face folder, a multiple of
    `checkpoint_every`; the run's last step always does. null: all do. Others hold the ranks' slices only, from which
    runs go on and `rl export` makes a folder."""
    num_learner_restarts: NonNegative = 2
    """How often a learner that dies, or hangs until its deadline, is started again, from the newest checkpoint; engines
    go on."""
    save_rollouts_every: Positive = 1
    """Save the rollouts of every k-th step (a few KiB per rollout). Rollouts of evaluations are always saved."""
    keep_rollouts: Positive | None = None
    """Number of newest files of training rollouts to keep, one a saved step; null keeps all."""
    record: bool = True
    """Record in RUN/record what the clock decides in an asynchronous run, for `rl train --replay` (about 75 bytes a
    reply, for as long as the run lasts)."""
    collect_timeout_s: Seconds = 900.0
    """Deadline for collecting the groups of one step. Each of its rounds (`max_sampling_rounds`) has its own."""
    update_timeout_s: Seconds = 900.0
    """Deadline for one update, and for writing a checkpoint. A learner that misses it counts as dead."""
    publish_timeout_s: Seconds = 120.0
    """Deadline for publishing new weights and loading them into all engines. A learner or a worker that misses it
    counts as dead."""
    start_timeout_s: Seconds = 300.0
    """Deadline for starting the learner and the engines."""

    @property
    def ranks_timeout_s(self) -> float:
        """How long ranks wait for each other: at most as long as whoever waits for all of them."""
        return max(self.start_timeout_s, self.update_timeout_s, self.publish_timeout_s)

    def checkpoint_due(self, step: int) -> bool:
        return step % self.checkpoint_every == 0

    def saves_policy(self, step: int) -> bool:
        """Whether a checkpoint of this step holds the policy's folder."""
        return self.save_policy_every is None or step % self.save_policy_every == 0 or step == self.num_steps

    @model_validator(mode="after")
    def _policies_are_saved_in_checkpoints(self) -> "TrainConfig":
        if self.save_policy_every is not None and self.save_policy_every % self.checkpoint_every:
            raise ValueError(
                f"save_policy_every ({self.save_policy_every}) must be a multiple of checkpoint_every"
                f" ({self.checkpoint_every})"
            )
        return self

    def saves_rollouts(self, step: int) -> bool:
        return step % self.save_rollouts_every == 0
