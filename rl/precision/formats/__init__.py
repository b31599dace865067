"""Which number formats can a configuration name? One file each, registered in `FORMATS`."""

from typing import Annotated

from rl.config.section import OneOf
from rl.precision.formats.bf16 import Bf16
from rl.precision.formats.float32 import Float32
from rl.precision.formats.nvfp4 import Nvfp4
from rl.precision.number_format import NumberFormat

FORMATS: dict[str, type[NumberFormat]] = {"float32": Float32, "bf16": Bf16, "nvfp4": Nvfp4}
AnyFormat = Annotated[NumberFormat, OneOf(FORMATS, "format", "float32")]
"""Type of a key that holds the section of one of these formats."""
