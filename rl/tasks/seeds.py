"""How do random seeds and budgets derive from the experiment's seed?"""

import hashlib
import random
from collections.abc import Mapping

from rl.data_types import Budget


def derive_seed(*parts: object) -> int:
    """A 31-bit seed from anything that prints, the same on every machine."""
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def draw_budget(weights: Mapping[Budget, float], seed: int) -> Budget:
    """Draw one of the budgets by their weights; a function of the seed."""
    (budget,) = random.Random(seed).choices(list(weights), list(weights.values()))
    return budget
