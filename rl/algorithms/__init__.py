"""The algorithms by the names that a configuration gives them: one file each."""

from typing import Annotated

from rl.algorithms.algorithm import Algorithm
from rl.algorithms.grpo import Grpo
from rl.config.section import OneOf

ALGORITHMS: dict[str, type[Algorithm]] = {"grpo": Grpo}
AnyAlgorithm = Annotated[Algorithm, OneOf(ALGORITHMS, "algorithm", "grpo")]
"""A key that holds the section of one of them."""
