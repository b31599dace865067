"""What is a canary's value over its newest steps, and has it risen above a threshold?

What is measured in a step enters the window for good when the step counts. A step that fails is played again after a
restart, and measured again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from envs.json_lines import JsonObject
from rl.config.canaries import LEVELS, Canary, Level


@dataclass(frozen=True, slots=True)
class Measured:
    """What a canary measured in one step."""

    value: float
    """Mean over the step's rollouts, or the value of its update."""
    weight: int = 1
    """Number of rollouts; 1 for an update."""
    lowest: float = math.inf
    """The lowest value of one rollout, where that matters."""


class Watch:
    """The newest steps of one canary."""

    def __init__(self, config: Canary, state: JsonObject | None = None) -> None:
        """`state` is of another watch of the same canary; its window may have been of another length."""
        self.config = config
        self._steps = tuple(Measured(*one) for one in (state or {}).get("steps", ()))[-config.window :]
        self._new: Measured | None = None

    def measure(self, measured: Measured | None) -> None:
        """Add a step that does not count yet, in place of an earlier such one; None is a step without a value."""
        self._new = measured

    def count(self) -> None:
        """The step that was measured counts."""
        self._steps, self._new = self._window(), None

    @property
    def value(self) -> float | None:
        """The value over the window; None until there are as many steps."""
        return self._value(self._window())

    @property
    def level(self) -> Level:
        """The strongest action whose threshold the value exceeds."""
        return self._level(self._window())

    @property
    def has_risen(self) -> bool:
        """Whether the step that does not count yet has taken the value above another threshold."""
        return LEVELS.index(self.level) > LEVELS.index(self._level(self._steps))

    def state(self) -> JsonObject:
        """What a watch needs to go on, as JSON: of steps that count."""
        return {"steps": [[one.value, one.weight] for one in self._steps]}

    def _window(self) -> tuple[Measured, ...]:
        new = (self._new,) if self._new else ()
        return (*self._steps, *new)[-self.config.window :]

    def _level(self, steps: Sequence[Measured]) -> Level:
        value = self._value(steps)
        return "ok" if value is None else self.config.level(value)

    def _value(self, steps: Sequence[Measured]) -> float | None:
        """The mean over all rollouts, or updates, of the steps."""
        if len(steps) < self.config.window:
            return None
        return math.fsum(one.value * one.weight for one in steps) / sum(one.weight for one in steps)


class FallWatch(Watch):
    """The value is how far the mean fell: 0 is the best window so far, 1 the lowest value of a rollout so far."""

    def __init__(self, config: Canary, state: JsonObject | None = None) -> None:
        super().__init__(config, state)
        self._best: float | None = (state or {}).get("best")
        self._lowest: float | None = (state or {}).get("lowest")

    def count(self) -> None:
        super().count()
        mean = super()._value(self._steps)
        self._best = max((one for one in (self._best, mean) if one is not None), default=None)
        self._lowest = self._lowest_with(self._steps)

    def state(self) -> JsonObject:
        return {**super().state(), "best": self._best, "lowest": self._lowest}

    def _value(self, steps: Sequence[Measured]) -> float | None:
        mean, lowest = super()._value(steps), self._lowest_with(steps)
        if mean is None or lowest is None:
            return None
        best = max(mean, mean if self._best is None else self._best)
        return (best - mean) / (best - lowest) if best > lowest else 0.0

    def _lowest_with(self, steps: Sequence[Measured]) -> float | None:
        found = [one.lowest for one in steps if math.isfinite(one.lowest)]
        return min([*found, *([] if self._lowest is None else [self._lowest])], default=None)
