"""What is a number format: what weights travel as, and what forward passes compute in?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from rl.config.section import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Parts = Mapping[str, "Tensor"]
"""What a quantised weight consists of, by what a checkpoint appends to its name.

The part named "" holds the codes, [..., rows, columns of it], and comes first. The others have the same rows, or one
number a matrix, [...].
"""


class PrecisionError(ValueError):
    """A tensor that cannot be written in the number format, or a model without anything to write in it."""


class NumberFormat(Section):
    """How the policy's weights are held by the engine. Master weights are float32 with every format.

    To add one: a subclass in a file of its own, with its keys (`format: Literal["name"] = "name"` among them), and a
    line of `rl.precision.formats.FORMATS`. Import torch inside of methods only: a configuration is read without it. A
    format that quantises names the `suffixes` of its parts and implements all methods; the others say only what forward
    passes compute in.
    """

    arithmetic: ClassVar[Literal["float32", "bfloat16"]] = "bfloat16"
    """torch's name of the type that forward passes compute in, and of the weights that are not quantised."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """What a checkpoint appends to a quantised weight's name, one a part. The first is ""."""
    codes: ClassVar[str] = ""
    """What quantised weights are written in, for people."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return str(type(self).model_fields["format"].default)

    @property
    def is_quantised(self) -> bool:
        return bool(self.suffixes)

    @property
    def bits(self) -> float:
        """Bits a quantised weight takes, its share of the scales of blocks included."""
        raise NotImplementedError

    def keeps(self, name: str) -> bool:
        """Whether the weight of this name is not quantised."""
        return not self.is_quantised

    def check_shape(self, weight: "Tensor") -> None:
        """Raise `PrecisionError` for a weight [..., rows, columns] that does not fit the format."""
        raise NotImplementedError

    def quantise(self, weight: "Tensor", shared_amax: "Tensor") -> Parts:
        """Write `weight` [..., rows, columns]. `shared_amax` [...] is the largest magnitude that each matrix is scaled
        by: its own, or that of all matrices that engines fuse with it."""
        raise NotImplementedError

    def dequantise(self, parts: Parts, dtype: "torch.dtype") -> "Tensor":
        """The numbers [..., rows, columns] that the parts stand for."""
        raise NotImplementedError

    def num_changed(self, before: Parts, after: Parts) -> int:
        """In how many weights the codes of two versions differ."""
        raise NotImplementedError
