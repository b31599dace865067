"""NVFP4: most matrices as 4-bit codes with block and tensor scales. `rl.precision.nvfp4` has the arithmetic."""

from fnmatch import fnmatch
from typing import TYPE_CHECKING, ClassVar, Literal

from rl.precision.number_format import NumberFormat, Parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_SCALES, TENSOR_SCALE = "_scale", "_scale_2"
"""Suffixes that ModelOpt checkpoints append to a weight's name."""


class Nvfp4(NumberFormat):
    """Most matrices are quantised to 4-bit codes, with an 8-bit scale per block of 16 weights; the rest is bfloat16."""

    format: Literal["nvfp4"] = "nvfp4"
    """Name of the format."""
    keep: tuple[str, ...] = (
        "*lm_head*",
        "*embed*",
        "*[qkvo]_proj.*",
        "*in_proj.*",
        "*out_proj.*",
        "*latent_proj*",
    )
    """Name patterns of weights that stay bfloat16: by default embeddings, head, attention, Mamba projections and latent
    projections. Vectors, convolutions and routers are never quantised."""
    block: Literal["1x16", "16x16"] = "1x16"
    """Shape of a block, whose weights share a scale: 16 weights of a row, or a tile of 16 rows and 16 columns."""
    tensor_scale: Literal["float32", "power_of_two"] = "power_of_two"
    """Scale of a matrix: amax / 2688, or that rounded up to a power of two. Powers of two make every dequantised value
    exact in bfloat16."""
    four_over_six: Literal["mse", "mae"] | None = None
    """Quantise each block with its largest magnitude mapped to 4 and to 6, and keep the variant with the smaller error
    of this kind; null maps it to 6."""
    four_over_six_scale_max: Literal[256, 448] = 256
    """Block scale of a matrix's largest magnitude with `four_over_six`: its tensor scale is amax / (6 * this)."""

    suffixes: ClassVar[tuple[str, ...]] = ("", BLOCK_SCALES, TENSOR_SCALE)
    codes: ClassVar[str] = "4-bit codes"

    @property
    def bits(self) -> float:
        return 4 + 8 / 16

    def keeps(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.keep)

    def check_shape(self, weight: "Tensor") -> None:
        from rl.precision.nvfp4 import check_shape

        check_shape(weight, self)

    def quantise(self, weight: "Tensor", shared_amax: "Tensor") -> Parts:
        return self.fold(weight, shared_amax)[0]

    def fold(self, weight: "Tensor", shared_amax: "Tensor") -> "tuple[Parts, Tensor]":
        from rl.precision.nvfp4 import fold

        quantised, values = fold(weight, self, shared_amax=shared_amax)
        parts = {"": quantised.packed, BLOCK_SCALES: quantised.block_scales, TENSOR_SCALE: quantised.tensor_scale}
        return parts, values

    def dequantise(self, parts: Parts, dtype: "torch.dtype") -> "Tensor":
        from rl.precision.nvfp4 import Quantised, dequantise

        return dequantise(Quantised(parts[""], parts[BLOCK_SCALES], parts[TENSOR_SCALE]), dtype)

    def num_changed(self, before: Parts, after: Parts) -> int:
        differs = before[""] ^ after[""]  # two codes per byte
        return int(((differs & 0xF) != 0).sum() + ((differs >> 4) != 0).sum())
