"""Float32: engine and learner compute with the float32 master weights."""

from typing import ClassVar, Literal

from rl.precision.number_format import NumberFormat


class Float32(NumberFormat):
    """Engine and learner compute with the float32 master weights."""

    format: Literal["float32"] = "float32"
    """Name of the format."""
    arithmetic: ClassVar[Literal["float32", "bfloat16"]] = "float32"
