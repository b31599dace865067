"""Which RL algorithms can a configuration name? One file each, registered in `ALGORITHMS`."""

from typing import Annotated

from rl.algorithms.algorithm import Algorithm
from rl.algorithms.cispo import Cispo
from rl.algorithms.dapo import Dapo
from rl.algorithms.dr_grpo import DrGrpo
from rl.algorithms.grpo import Grpo
from rl.algorithms.gspo import Gspo
from rl.algorithms.max_rl import MaxRl
from rl.algorithms.mopd import Mopd
from rl.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from rl.algorithms.rloo import Rloo
from rl.config.section import OneOf

ALGORITHMS: dict[str, type[Algorithm]] = {
    "grpo": Grpo,
    "dapo": Dapo,
    "dr_grpo": DrGrpo,
    "gspo": Gspo,
    "cispo": Cispo,
    "rloo": Rloo,
    "reinforce++": ReinforcePlusPlus,
    "max_rl": MaxRl,
    "mopd": Mopd,
}
AnyAlgorithm = Annotated[Algorithm, OneOf(ALGORITHMS, "algorithm", "grpo")]
"""Type of a key that holds the section of one of these algorithms."""
