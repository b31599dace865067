"""How much memory does this process hold?"""

import psutil

MIB = 2**20


def resident_mib() -> float:
    """What is in RAM, memory included that it shares with others."""
    return psutil.Process().memory_info().rss / MIB
