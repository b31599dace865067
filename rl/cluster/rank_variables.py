"""How does a process that is started as one of several ranks know which it is, and where they meet?

By the environment variables of torchrun (https://docs.pytorch.org/docs/stable/elastic/run.html), so torchrun can start
the ranks too.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
GRACE_S = 15.0
"""What ranks have to end by themselves after one has failed; they may wait for it for ever."""


@dataclass(frozen=True, slots=True)
class RankVariables:
    """What the environment tells a rank."""

    rank: int
    num: int
    address: str
    """`host:port` on the machine of rank 0."""
    local_rank: int
    """The rank's number among those that see the same GPUs; also that of its GPU."""

    def as_environment(self) -> dict[str, str]:
        host, _, port = self.address.rpartition(":")
        values = (self.rank, self.num, self.local_rank, host.strip("[]"), port)
        return dict(zip(NAMES, map(str, values), strict=True))


def rank_variables() -> RankVariables | None:
    """Those of this process; None if it was not started as a rank."""
    if any(name not in os.environ for name in NAMES):
        return None
    rank, num, local_rank, host, port = (os.environ[name] for name in NAMES)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return RankVariables(int(rank), int(num), address, int(local_rank))


def exit_code_of_all(codes: Iterable[int]) -> int:
    """The exit code of ranks that ended with these codes: that of the cause.

    A rank that fails because another one did ends with 1, and one that was killed with a negative number.
    """
    return max((code for code in codes if code), default=0)
