"""An environment of three turns that waits before each answer, mostly shortly and now and then long, for
`benchmarks.waiting`.
"""

import asyncio
from dataclasses import replace
from typing import Any

from envs.messages import Reply
from envs.registry import make
from envs.text_env import TextEnv

NUM_TURNS = 3
MEDIAN_S, SPREAD = 0.01, 1.98
"""Waits are lognormal: exp(1.98 * 2.326) is 100, so the 99th percentile is 100 times the median, 1 s."""


class Waits(TextEnv):
    """Three short sums, one after the other; the reward is the share of right answers. Options: `scale` of waits, and
    `num_words` that stand before the first sum and mean nothing.
    """

    OPTIONS = {"scale": 1.0, "num_words": 0}
    max_turns = NUM_TURNS

    async def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # type: ignore[override]
        super().reset(seed=seed)
        self.split, chosen = self.read_options(options)
        draws = self.np_random.lognormal(sigma=SPREAD, size=NUM_TURNS)
        self.waits_s = [float(MEDIAN_S * chosen["scale"] * draw) for draw in draws]
        self.rewards: list[float] = []
        first, *others = self._ask()
        words = " ".join(["word"] * chosen["num_words"])
        padded = replace(first, content=f"{words} {first.content}") if words else first
        return (padded, *others), {"waits_s": self.waits_s}

    async def step(self, action: Reply) -> Any:  # type: ignore[override]
        await asyncio.sleep(self.waits_s[len(self.rewards)])
        self.rewards.append(self.sum.step(action)[1] / NUM_TURNS)
        is_over = len(self.rewards) == NUM_TURNS
        return () if is_over else self._ask(), self.rewards[-1], is_over, False, {}

    def gold_reply(self) -> Reply:
        return self.sum.gold_reply()

    def _ask(self) -> Any:
        self.sum = make("math/Arithmetic-v0")
        messages, _ = self.sum.reset(seed=int(self.np_random.integers(2**31)), options={"split": self.split})
        return messages
