"""What do adapters of foreign environments have in common? Failures, and the scale of rewards."""


class ForeignError(RuntimeError):
    """The other side failed, or returned what its interface does not allow. The policy never causes this."""


def in_unit_range(total: float, lowest: float, highest: float) -> float:
    """`total` scaled from [lowest, highest] to [0, 1]. Raises `ForeignError` if it is outside."""
    if not lowest - 1e-6 <= total <= highest + 1e-6:
        raise ForeignError(f"a sum of rewards of {total} is outside of {lowest} to {highest}: set lowest and highest")
    return min(1.0, max(0.0, (total - lowest) / (highest - lowest)))
