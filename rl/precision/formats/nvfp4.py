"""NVFP4: most matrices in 4-bit codes with block and tensor scales. The arithmetic is in `rl.precision.nvfp4`."""

from fnmatch import fnmatch
from typing import TYPE_CHECKING, ClassVar, Literal

from rl.precision.number_format import NumberFormat, Parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_SCALES, TENSOR_SCALE = "_scale", "_scale_2"
"""What ModelOpt's checkpoints append to a weight's name."""


class Nvfp4(NumberFormat):
    """Bfloat16 with most matrices' weights in 4 bits: codes of 16 numbers share a scale of 8 bits."""

    format: Literal["nvfp4"] = "nvfp4"
    """What the engine serves and the learner computes with."""
    keep: tuple[str, ...] = (
        "*lm_head*",
        "*embed*",
        "*[qkvo]_proj.*",
        "*in_proj.*",
        "*out_proj.*",
        "*latent_proj*",
    )
    """Patterns of the weights that stay bfloat16: by default embeddings, head, attention, Mamba's projections and the
    latent ones. Vectors, convolutions and routers stay so in any case."""
    block: Literal["1x16", "16x16"] = "1x16"
    """What shares a block scale: 16 numbers of a row, or a tile of 16 rows and 16 columns."""
    tensor_scale: Literal["float32", "power_of_two"] = "power_of_two"
    """The scale of a matrix: amax / 2688, or that rounded up to a power of two, which makes every value exact in
    bfloat16."""
    four_over_six: Literal["mse", "mae"] | None = None
    """Try to map a block's largest magnitude to 4 as well as to 6, and keep what has the smaller error of this kind."""
    four_over_six_scale_max: Literal[256, 448] = 256
    """Largest block scale that four-over-six starts from."""

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
        from rl.precision.nvfp4 import quantise

        quantised = quantise(weight, self, shared_amax=shared_amax)
        return {"": quantised.packed, BLOCK_SCALES: quantised.block_scales, TENSOR_SCALE: quantised.tensor_scale}

    def dequantise(self, parts: Parts, dtype: "torch.dtype") -> "Tensor":
        from rl.precision.nvfp4 import Quantised, dequantise

        return dequantise(Quantised(parts[""], parts[BLOCK_SCALES], parts[TENSOR_SCALE]), dtype)

    def num_changed(self, before: Parts, after: Parts) -> int:
        differs = before[""] ^ after[""]  # two codes a byte
        return int(((differs & 0xF) != 0).sum() + ((differs >> 4) != 0).sum())
