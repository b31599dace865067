"""Which RL algorithms can a configuration name? One file each, registered in `ALGORITHMS`."""

from typing import Annotated

from rl.algorithms.algorithm import Algorithm
from rl.algorithms.grpo import Grpo
from rl.config.section import OneOf

ALGORITHMS: dict[str, type[Algorithm]] = {"grpo": Grpo}
AnyAlgorithm = Annotated[Algorithm, OneOf(ALGORITHMS, "algorithm", "grpo")]
"""Type of a key that holds the section of one of these algorithms."""
