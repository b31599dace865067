"""Bfloat16: engine and learner compute with the master weights rounded to bfloat16."""

from typing import Literal

from rl.precision.number_format import NumberFormat


class Bf16(NumberFormat):
    """Engine and learner compute with the master weights rounded to bfloat16."""

    format: Literal["bf16"] = "bf16"
    """Name of the format."""
