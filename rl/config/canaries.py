"""Which canaries watch a run, over how many steps, and what does each do above which value?

A canary that cannot mask has no key `mask`, and says why: `unmaskable`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rl.config.section import NonNegative, Positive, Seconds, Section, Share

Level = Literal["ok", "warn", "pause", "stop"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "pause", "stop")
"""From the weakest to the strongest."""
Agreement = Annotated[float, Field(gt=1)]
Norm = Annotated[float, Field(gt=0)]


class Canary(Section):
    """What a canary does, by the value above which it does it."""

    unmaskable: ClassVar[str] = ""
    """Why there is nothing that this canary could mask."""
    window: Positive = 1
    """Newest steps over which the value is taken. A canary with fewer is silent."""
    warn: float | None = None
    """Warn when the value rises above this. null: never."""
    pause: float | None = None
    """Pause the run after the step in which the value rises above this. null: never."""
    stop: float | None = None
    """Stop the run if the value is above this. null: never."""

    def level(self, value: float) -> Level:
        """The strongest action whose threshold the value exceeds."""
        limits: dict[Level, float | None] = {"warn": self.warn, "pause": self.pause, "stop": self.stop}
        exceeded: list[Level] = [name for name, limit in limits.items() if limit is not None and value > limit]
        return exceeded[-1] if exceeded else "ok"

    @model_validator(mode="before")
    @classmethod
    def _masks_what_can_be_masked(cls, tree: object) -> object:
        if isinstance(tree, dict) and "mask" in tree and cls.unmaskable:
            raise ValueError(
                f"this canary cannot mask: {cls.unmaskable}; remove the key mask, or use warn, pause or stop"
            )
        return tree


class RowsCanary(Canary):
    """A canary whose value is a share of rollouts."""

    window: Positive = 4
    """Newest steps whose rollouts are counted together. A canary with fewer steps is silent."""
    warn: Share | None = None
    """Warn when the share rises above this. null: never."""
    mask: Share | None = None
    """Mask each group whose own share is above this, whatever the window holds: it is not trained. null: none."""
    pause: Share | None = None
    """Pause the run after the step in which the share rises above this. null: never."""
    stop: Share | None = None
    """Stop the run, before the update, if the share is above this. null: never."""


class MaskedRowsCanary(RowsCanary):
    """Share of rollouts that do not count, because environment or infrastructure failed."""

    stop: Share | None = 0.5
    """Stop the run, before the update, if the share is above this. null: never."""


class TruncatedRowsCanary(RowsCanary):
    """Share of rollouts that were cut off by length or turns: they are trained without their end."""

    warn: Share | None = 0.5
    """Warn when the share rises above this. null: never."""


class BudgetViolationsCanary(RowsCanary):
    """Share of rollouts in which the engine violated the thinking budget."""

    window: Positive = 1
    """Newest steps whose rollouts are counted together. A canary with fewer steps is silent."""
    warn: Share | None = 0.0
    """Warn when the share rises above this. null: never."""


class RewardFallCanary(Canary):
    """How far the mean reward over the window fell from its best so far: 0 is the best, 1 the lowest reward that any
    rollout of the run earned."""

    unmaskable: ClassVar[str] = "a reward that fell is not the fault of single groups"
    window: Positive = 20
    """Newest steps whose rollouts give the mean. A canary with fewer steps is silent."""
    warn: Share | None = 0.5
    """Warn when the value rises above this. null: never."""
    pause: Share | None = None
    """Pause the run after the step in which the value rises above this. null: never."""
    stop: Share | None = None
    """Stop the run, before the update, if the value is above this. null: never."""


class MismatchCanary(Canary):
    """Mean exp|delta logp| between learner and engine over fresh tokens, mean over the window; 1 is agreement."""

    unmaskable: ClassVar[str] = (
        "the update is made when the mismatch is known; loss.sequence_mismatch_max leaves sequences out of the loss"
    )
    warn: Agreement | None = 1.05
    """Warn when the value rises above this. null: never."""
    pause: Agreement | None = None
    """Pause the run after the step in which the value rises above this. null: never."""
    stop: Agreement | None = 2.0
    """Stop the run, before the new weights are published, if the value is above this. null: never."""


class GradNormCanary(Canary):
    """L2 norm of the gradient before clipping, mean over the window."""

    unmaskable: ClassVar[str] = (
        "the update is made when the norm is known; learner.max_grad_norm clips each update's gradient"
    )
    warn: Norm | None = None
    """Warn when the value rises above this. null: never."""
    pause: Norm | None = None
    """Pause the run after the step in which the value rises above this. null: never."""
    stop: Norm | None = None
    """Stop the run, before the new weights are published, if the value is above this. null: never."""


class NotFiniteCanary(Section):
    """Updates that are refused because a logprob or a gradient is NaN or infinite: nothing is trained."""

    mask: NonNegative = 0
    """Such updates in a row whose groups are masked, so that the run goes on with the next groups; one more stops it.
    They are no steps: of them only a note is written."""


class CanaryConfig(Section):
    """Canaries: what is watched over the newest steps, and above which value the run warns, masks groups, pauses or
    stops."""

    masked_rows: MaskedRowsCanary = MaskedRowsCanary()
    truncated_rows: TruncatedRowsCanary = TruncatedRowsCanary()
    budget_violations: BudgetViolationsCanary = BudgetViolationsCanary()
    reward_fall: RewardFallCanary = RewardFallCanary()
    mismatch: MismatchCanary = MismatchCanary()
    grad_norm: GradNormCanary = GradNormCanary()
    not_finite: NotFiniteCanary = NotFiniteCanary()
    pause_timeout_s: Seconds = 86400.0
    """How long a pause may last; then the run stops with exit code 3, and stays paused until somebody lets it go on."""
