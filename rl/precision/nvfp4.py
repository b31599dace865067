"""How are weights quantised to NVFP4, dequantised, packed and unpacked, with one order of operations everywhere?

A value is `code * block_scale * tensor_scale`: codes are 4-bit floats (E2M1), each block of 16 numbers along the
contraction axis (the last one) shares an 8-bit scale (E4M3), each tensor a float32 scale. The order of operations is
TransformerEngine's (`custom_recipes/reference_nvfp4.py`; NVFP4 pretraining, https://arxiv.org/abs/2509.25149): public
quantisers differ in the last bit of intermediate results, and then in 0.2 % of the codes, so learner, checkpoint and
engine must not each have their own. Four-over-six: https://arxiv.org/abs/2512.02010.
"""

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from rl.precision.amax import amax
from rl.precision.formats.nvfp4 import Nvfp4
from rl.precision.number_format import PrecisionError

BLOCK = 16
"""Numbers that share a block scale."""
CODE_MAX = 6.0
"""Largest magnitude of a code."""
SCALE_MAX = 448.0
"""Largest block scale."""
FLOAT32_MAX = torch.finfo(torch.float32).max
FLOAT32_EXPONENT = 0x7F800000
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class Quantised:
    """A tensor [..., N, K] in NVFP4."""

    packed: Tensor
    """uint8 [..., N, K/2]: two codes per byte, the even column in the low four bits."""
    block_scales: Tensor
    """float8_e4m3fn [..., N, K/16]."""
    tensor_scale: Tensor
    """float32 [...]: one per matrix."""


def quantise(x: Tensor, recipe: Nvfp4, *, shared_amax: Tensor | None = None) -> Quantised:
    """Quantise `x` [..., N, K] to NVFP4; every leading index is a matrix with a tensor scale of its own.

    `shared_amax` [...] replaces the matrices' own largest magnitude, for matrices that engines fuse into one. Codes and
    block scales are rounded to the nearest, ties to even. An all-zero matrix has tensor scale 1, an all-zero block
    block scale 0.

    Raises `PrecisionError` if K, or with 16x16 blocks N, is not divisible by 16, and for NaN and infinities.
    """
    return fold(x, recipe, shared_amax=shared_amax)[0]


def fold(x: Tensor, recipe: Nvfp4, *, shared_amax: Tensor | None = None) -> tuple[Quantised, Tensor]:
    """`quantise`, and what `dequantise` makes of its result in float32, to the bit, without looking codes up again."""
    check_shape(x, recipe)
    matrix_amax = (amax(x) if shared_amax is None else shared_amax.float())[..., None, None]
    encode, decode = tensor_scales(matrix_amax, recipe)
    folded = _compiled() if x.is_cuda and recipe.four_over_six is None and can_compile() else _folded
    packed, block_scales, values = folded(x.detach(), matrix_amax, encode, decode, recipe)
    return Quantised(packed, block_scales, decode[..., 0, 0].contiguous()), values


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`_folded` as few kernels, without fused multiplications and additions: then its results are the same bits. Those
    of four-over-six are not. Each shape of weights is compiled: kernels for all shapes are three times slower.
    """
    return torch.compile(_folded, dynamic=False, options={"emulate_precision_casts": True})


@functools.cache
def can_compile() -> bool:
    """Whether torch's compiler for GPUs can work here: it needs Triton, and a C compiler."""
    compilers = ("gcc", "clang", os.environ.get("CC", "cc"))
    return has_triton() and any(map(shutil.which, compilers))


def _folded(
    x: Tensor, matrix_amax: Tensor, encode: Tensor, decode: Tensor, recipe: Nvfp4
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, block scales, and the numbers that they stand for; `encode` and `decode` are `tensor_scales`."""
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    largest = _block_amax(blocks, recipe)
    if recipe.four_over_six:
        scales, values = _four_over_six(blocks, largest, matrix_amax, recipe)
    else:
        scales = _block_scales(largest * (encode * (1 / CODE_MAX)))
        values = _round_codes(blocks, scales, decode)
    packed = _packed(values)
    return packed, scales.to(torch.float8_e4m3fn), values.mul_((scales * decode)[..., None]).flatten(-2)


def dequantise(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers [..., N, K] that the codes and scales stand for."""
    values = decode_codes(unpack(quantised.packed)).unflatten(-1, (-1, BLOCK))
    scales = quantised.block_scales.float() * quantised.tensor_scale[..., None, None]
    return (values * scales[..., None]).flatten(-2).to(dtype)


def check_shape(x: Tensor, recipe: Nvfp4) -> None:
    """Raise `PrecisionError` if the blocks do not tile the matrices."""
    if x.dim() < 2 or x.shape[-1] % BLOCK or (recipe.block == "16x16" and x.shape[-2] % BLOCK):
        needed = "rows and columns" if recipe.block == "16x16" else "columns"
        raise PrecisionError(
            f"a tensor of shape {tuple(x.shape)} has no {recipe.block} blocks: NVFP4 needs matrices whose {needed} are"
            f" divisible by {BLOCK}; keep this layer out by a pattern of precision.keep"
        )


def tensor_scales(largest: Tensor, recipe: Nvfp4) -> tuple[Tensor, Tensor]:
    """Factors [...] of matrices with these largest magnitudes: before and after the block scales."""
    largest = largest.float()
    top = torch.full_like(largest, _top(recipe))  # a tensor: torch takes the reciprocal for a Python number
    if recipe.tensor_scale == "power_of_two":
        mantissa, exponent = torch.frexp(largest / top)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)  # ceil(log2), exactly
        decode = torch.where(largest == 0, 1.0, torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 126)))
        return 1 / decode, decode
    encode = torch.where(largest == 0, 1.0, (top / largest).clamp(max=FLOAT32_MAX))
    return encode, 1 / encode


def _top(recipe: Nvfp4) -> float:
    """The magnitude that a matrix's largest magnitude is mapped to."""
    return (recipe.four_over_six_scale_max if recipe.four_over_six else SCALE_MAX) * CODE_MAX


def _block_amax(blocks: Tensor, recipe: Nvfp4) -> Tensor:
    """[..., N, K/16], the same in all 16 rows of a tile."""
    largest = blocks.abs().amax(dim=-1)
    if recipe.block == "16x16":
        tiles = largest.unflatten(-2, (-1, BLOCK)).amax(dim=-2)
        largest = tiles.repeat_interleave(BLOCK, dim=-2)
    return largest


def _block_scales(wanted: Tensor) -> Tensor:
    """Rounded to E4M3 and back to float32."""
    return wanted.clamp(max=SCALE_MAX).to(torch.float8_e4m3fn).float()


def _round_codes(blocks: Tensor, scales: Tensor, decode: Tensor) -> Tensor:
    """Signed magnitudes [..., N, K/16, 16] of E2M1."""
    factors = (1 / (scales * decode)).clamp(max=FLOAT32_MAX)
    scaled = (blocks * factors[..., None]).clamp_(-CODE_MAX, CODE_MAX)
    # Codes are 0.5 apart below 2, 1 below 4, and 2 above: half the power of two below a magnitude of 1 or more. Numbers
    # just above 2**22 times that power are as far apart, so adding one and taking it off rounds, ties to even.
    large = scaled.abs()
    large.view(torch.int32).bitwise_and_(FLOAT32_EXPONENT)
    large.clamp_(min=1.0).mul_(1.5 * 2**22)
    rounded = (scaled + large).sub_(large)
    return torch.copysign(rounded, scaled, out=rounded)  # -0 stays -0


def _four_over_six(blocks: Tensor, largest: Tensor, matrix_amax: Tensor, recipe: Nvfp4) -> tuple[Tensor, Tensor]:
    """Scales and values, keeping the larger of the two block scales if its error is smaller.

    In some blocks the two errors are so close that the last bit decides. All operations are therefore in
    TransformerEngine's order, also those that differ from the order without four-over-six.
    """
    encode, decode = tensor_scales(matrix_amax, recipe)
    wanted = largest / torch.full_like(largest, CODE_MAX) * encode
    candidates = []
    for scales in (_block_scales(wanted), _block_scales(wanted * 1.5)):
        values = _round_codes(blocks, scales, decode)
        numbers = values * scales[..., None]
        if recipe.tensor_scale == "power_of_two":
            numbers = numbers * decode[..., None]
        else:
            numbers = numbers * matrix_amax[..., None] / torch.full_like(numbers, _top(recipe))
        candidates.append((scales, values, _error(numbers - blocks, recipe)))
    (scales, values, error), (larger, larger_values, larger_error) = candidates
    better = larger_error < error
    return torch.where(better, larger, scales), torch.where(better[..., None], larger_values, values)


def _error(differences: Tensor, recipe: Nvfp4) -> Tensor:
    """Of each block [..., N, K/16]; with 16x16 blocks, of its whole tile.

    A block's numbers are summed one by one, a tile's rows in halves: the order of TransformerEngine's kernel.
    """
    errors = differences.square() if recipe.four_over_six == "mse" else differences.abs()
    error = functools.reduce(torch.add, errors.unbind(dim=-1))
    if recipe.block == "16x16":
        rows = error.unflatten(-2, (-1, BLOCK))
        while (half := rows.shape[-2] // 2) > 0:
            rows = rows[..., :half, :] + rows[..., half:, :]
        error = rows.squeeze(-2).repeat_interleave(BLOCK, dim=-2)
    return error


def _packed(values: Tensor) -> Tensor:
    """uint8 [..., K/2] of values [..., K/16, 16]: codes 0 to 15 are the place among `MAGNITUDES`, plus 8 for a minus.

    In float32, 2**-126 times a value has the place in the lowest bits of its exponent and the highest of its fraction.
    """
    codes = (values * 2.0**-126).view(torch.int32)
    sign = (codes >> 28).bitwise_and_(8)
    codes = codes.bitwise_right_shift_(22).bitwise_and_(7).bitwise_or_(sign)
    pairs = codes.flatten(-2).view(torch.int64)  # the even column is in the low half
    return (pairs | (pairs >> 28)).to(torch.uint8)


def decode_codes(codes: Tensor) -> Tensor:
    """float32 values of uint8 codes."""
    table = torch.tensor([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)], device=codes.device)
    return table[codes.long()]


def pack(codes: Tensor) -> Tensor:
    """uint8 [..., K] to [..., K/2]: two codes per byte, the even column in the low four bits."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """uint8 [..., K/2] to [..., K]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
