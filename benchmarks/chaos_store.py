"""What is an environment that answers late, so that steps last although the policy is tiny?"""

import os
import time

import numpy as np

from envs.text_env import Split
from envs.tool_use.store import Store

DELAY_S = float(os.environ.get("CHAOS_DELAY_S", "0"))
"""Set by benchmarks.chaos for its runs, and not where rewards are computed again."""


class SlowStore(Store):
    """The store of `tools/Store-v0`, which opens late."""

    def reset(self, rng: np.random.Generator, split: Split, level: int = 1) -> str:
        time.sleep(DELAY_S)
        return super().reset(rng, split, level)
