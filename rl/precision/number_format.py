"""What must a number format define: how are weights published, and in which type do forward passes compute?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from rl.config.section import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Parts = Mapping[str, "Tensor"]
"""The tensors of a quantised weight, by the suffix that a checkpoint appends to the weight's name.

The part with the suffix "" holds the codes, [..., rows, packed columns], and comes first. The other parts have the same
rows, or one number per matrix, [...].
"""


class PrecisionError(ValueError):
    """A tensor cannot be quantised to the number format, or a model has nothing to quantise."""


class NumberFormat(Section):
    """The format in which the engine holds the policy's weights. Master weights are float32 with every format.

    To add a format, write a subclass in its own file with its keys, one of which is `format: Literal["name"] = "name"`,
    and add it to `rl.precision.formats.FORMATS`. Import torch only inside methods, because configurations are read
    without torch. A format that quantises sets `suffixes` and implements all methods; any other format sets only
    `arithmetic`.
    """

    arithmetic: ClassVar[Literal["float32", "bfloat16"]] = "bfloat16"
    """torch's name of the dtype of forward passes and of weights that are not quantised."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes that a checkpoint appends to a quantised weight's name, one per part. The first is ""."""
    codes: ClassVar[str] = ""
    """Description of the codes for messages, such as `4-bit codes`."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return str(type(self).model_fields["format"].default)

    @property
    def is_quantised(self) -> bool:
        return bool(self.suffixes)

    @property
    def bits(self) -> float:
        """Bits per quantised weight, including its share of the block scales."""
        raise NotImplementedError

    def keeps(self, name: str) -> bool:
        """Whether the weight of this name stays unquantised."""
        return not self.is_quantised

    def check_shape(self, weight: "Tensor") -> None:
        """Raise `PrecisionError` if the shape of a weight [..., rows, columns] does not fit the format."""
        raise NotImplementedError

    def quantise(self, weight: "Tensor", shared_amax: "Tensor") -> Parts:
        """Quantise `weight` [..., rows, columns]. `shared_amax` [...] is the largest magnitude that scales each matrix:
        its own, or that of all matrices that engines fuse with it."""
        raise NotImplementedError

    def dequantise(self, parts: Parts, dtype: "torch.dtype") -> "Tensor":
        """The weight [..., rows, columns] that the parts represent."""
        raise NotImplementedError

    def fold(self, weight: "Tensor", shared_amax: "Tensor") -> "tuple[Parts, Tensor]":
        """`quantise`, and `dequantise` of its parts in float32."""
        import torch

        parts = self.quantise(weight, shared_amax)
        return parts, self.dequantise(parts, torch.float32)

    def num_changed(self, before: Parts, after: Parts) -> int:
        """Number of weights whose codes differ between two versions."""
        raise NotImplementedError
