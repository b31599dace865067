"""NVFP4 against golden vectors of TransformerEngine's reference, against other quantisers, and its own laws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from rl.precision.amax import amax
from rl.precision.formats.nvfp4 import Nvfp4
from rl.precision.number_format import PrecisionError
from rl.precision.nvfp4 import (
    MAGNITUDES,
    Quantised,
    decode_codes,
    dequantise,
    pack,
    quantise,
    tensor_scales,
    unpack,
)

DATA = Path(__file__).parent
VECTORS = load_file(DATA / "nvfp4_vectors.safetensors")
NEAR_TIES = load_file(DATA / "nvfp4_near_ties.safetensors")
"""By `NVFP4QuantizerRef` of TransformerEngine 2.20.2: matrices that another order of operations gives other codes."""


def recipe(**options: object) -> Nvfp4:
    return Nvfp4.model_validate(options)


GOLDEN = {
    "1d": recipe(tensor_scale="float32"),
    "2d": recipe(tensor_scale="float32", block="16x16"),
    "1d_4o6_256_mse": recipe(tensor_scale="float32", four_over_six="mse"),
    "1d_4o6_448_mae": recipe(tensor_scale="float32", four_over_six="mae", four_over_six_scale_max=448),
}
REFERENCE = {
    f"{tile}{ending}": recipe(tensor_scale="float32", block=block, **options)
    for tile, block in (("1d", "1x16"), ("2d", "16x16"))
    for ending, options in (
        ("", {}),
        *(
            (f"_4o6_{top}_{error}", {"four_over_six": error, "four_over_six_scale_max": top})
            for top in (256, 448)
            for error in ("mse", "mae")
        ),
    )
}
RECIPES = [
    recipe(block=block, tensor_scale=scale, four_over_six=four_over_six)
    for block in ("1x16", "16x16")
    for scale in ("float32", "power_of_two")
    for four_over_six in (None, "mse", "mae")
]
POWER_OF_TWO = [each for each in RECIPES if each.tensor_scale == "power_of_two"]


def weights(seed: int = 0, shape: tuple[int, ...] = (64, 128), std: float = 0.02) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def error(x: Tensor, like: Nvfp4) -> float:
    return ((dequantise(quantise(x, like)) - x).norm() / x.norm()).item()


def same(left: Quantised, right: Quantised) -> bool:
    return (
        torch.equal(left.packed, right.packed)
        and torch.equal(left.block_scales.view(torch.uint8), right.block_scales.view(torch.uint8))
        and torch.equal(left.tensor_scale, right.tensor_scale)
    )


@pytest.mark.parametrize("case", ["gauss_bf16", "boundary_f32", "all_zero_f32"])
@pytest.mark.parametrize("variant", GOLDEN)
def test_codes_and_scale_bytes_are_those_of_transformer_engine(case: str, variant: str) -> None:
    x = VECTORS[f"{case}.x"]
    quantised = quantise(x, GOLDEN[variant])
    assert torch.equal(amax(x).reshape(1), VECTORS[f"{case}.{variant}.amax"])
    assert torch.equal(quantised.packed, VECTORS[f"{case}.{variant}.packed"])
    assert torch.equal(quantised.block_scales.view(torch.uint8), VECTORS[f"{case}.{variant}.scale_u8"])


@pytest.mark.parametrize("variant", REFERENCE)
def test_near_ties_fall_as_in_transformer_engine(variant: str) -> None:
    quantised = quantise(NEAR_TIES[f"{variant}.x"], REFERENCE[variant])
    assert torch.equal(quantised.packed, NEAR_TIES[f"{variant}.packed"])
    assert torch.equal(quantised.block_scales.view(torch.uint8), NEAR_TIES[f"{variant}.scale_u8"])


def test_tensor_scales_are_quotients_that_are_rounded_once() -> None:
    largest = torch.linspace(0.01, 9.0, 4001).bfloat16().float()
    encode, decode = tensor_scales(largest, recipe(tensor_scale="float32"))
    expected = np.float32(2688) / largest.numpy()
    assert np.array_equal(encode.numpy(), expected)
    assert np.array_equal(decode.numpy(), np.float32(1) / expected)


@pytest.mark.parametrize(("largest", "scale"), [(2688.0, 1.0), (2689.0, 2.0), (2688 / 1024, 2**-10), (0.0, 1.0)])
def test_a_power_of_two_scale_is_the_next_one_above_the_quotient(largest: float, scale: float) -> None:
    encode, decode = tensor_scales(torch.tensor(largest), recipe())
    assert (encode.item(), decode.item()) == (1 / scale, scale)


def test_a_block_by_hand() -> None:
    """amax 12, tensor scale 2^-7 (12 / 2688 rounded up), block scale 12 / 6 / 2^-7 = 256: a code stands for 2 each."""
    x = torch.tensor([[12.0, -12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.4, 0.5, 0.6, -1.4, 1.5, 7.0, 10.0, 0.0]])
    quantised = quantise(x, recipe())
    assert quantised.tensor_scale == 2**-7
    assert quantised.block_scales.float().tolist() == [[256.0]]
    # Ties go to the even code: 3/2 = 1.5, 0.5/2 = .25 -> 0, 1.5/2 = .75 -> 1, 7/2 = 3.5 -> 4, 10/2 = 5 -> 4.
    expected = [[12.0, -12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 1.0, -1.0, 2.0, 8.0, 8.0, 0.0]]
    assert dequantise(quantised).tolist() == expected
    assert unpack(quantised.packed)[0].tolist() == [7, 15, 6, 5, 4, 3, 2, 1, 0, 0, 1, 9, 2, 6, 6, 0]


def test_the_even_column_lies_in_the_low_four_bits() -> None:
    codes = torch.arange(16, dtype=torch.uint8)[None]
    assert pack(codes)[0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert torch.equal(unpack(pack(codes)), codes)
    assert decode_codes(codes)[0].tolist() == [*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)]


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({}, 0.0951),
        ({"tensor_scale": "float32"}, 0.0951),
        ({"four_over_six": "mse"}, 0.0870),
        ({"block": "16x16"}, 0.111),
    ],
)
def test_the_error_on_gaussian_weights(options: dict[str, str], published: float) -> None:
    assert error(weights(shape=(1024, 1024)), recipe(**options)) == pytest.approx(published, rel=0.01)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(POWER_OF_TWO), st.floats(1e-6, 1e4), st.booleans())
def test_quantising_again_changes_nothing(seed: int, like: Nvfp4, std: float, heavy_tails: bool) -> None:
    """With power-of-two tensor scales. What was quantised may have another amax, so only its numbers must stay."""
    x = weights(seed, (32, 64), std)
    if heavy_tails:
        x = x * torch.exp(2 * weights(seed + 1, (32, 64), 1.0))
    once = dequantise(quantise(x, like))
    again = quantise(once, like, shared_amax=amax(x))
    assert torch.equal(dequantise(again), once)


@pytest.mark.parametrize("like", RECIPES, ids=str)
def test_scaling_by_a_power_of_two_scales_and_signs_are_symmetric(like: Nvfp4) -> None:
    x = weights()
    codes = quantise(x, like)
    scaled = quantise(x * 2.0**-9, like)
    assert torch.equal(scaled.packed, codes.packed)
    assert torch.equal(scaled.tensor_scale, codes.tensor_scale * 2.0**-9)
    assert torch.equal(dequantise(quantise(-x, like)), -dequantise(codes))


@pytest.mark.parametrize("like", POWER_OF_TWO, ids=str)
def test_with_power_of_two_scales_every_value_is_exact_in_bfloat16(like: Nvfp4) -> None:
    values = dequantise(quantise(weights(shape=(256, 256)), like))
    assert torch.equal(values.bfloat16().float(), values)


def test_tiles_share_a_scale_and_so_agree_with_the_transpose() -> None:
    like, x = recipe(block="16x16"), weights()
    assert torch.equal(dequantise(quantise(x, like)).T, dequantise(quantise(x.T.contiguous(), like)))
    scales = quantise(x, like).block_scales.float().unflatten(0, (-1, 16))
    assert torch.equal(scales, scales[:, :1].expand_as(scales))


def test_stacked_matrices_are_quantised_one_by_one() -> None:
    stack = torch.stack([weights(seed, std=10.0**-seed) for seed in range(3)])
    together = quantise(stack, recipe())
    for index, matrix in enumerate(stack):
        alone = quantise(matrix, recipe())
        assert same(alone, Quantised(*(getattr(together, name)[index] for name in Quantised.__slots__)))


@pytest.mark.parametrize("shape", [(4, 24), (4, 8), (16,), (4, 1)])
def test_matrices_that_have_no_blocks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PrecisionError, match=r"divisible by 16; keep this layer out by a pattern of precision\.keep"):
        quantise(torch.zeros(shape), recipe())


def test_tiles_need_rows_divisible_by_16_too() -> None:
    quantise(torch.zeros(8, 32), recipe())
    with pytest.raises(PrecisionError, match="rows and columns"):
        quantise(torch.zeros(8, 32), recipe(block="16x16"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_nvfp4_does_not_have_are_refused(bad: float) -> None:
    x = weights()
    x[3, 5] = bad
    with pytest.raises(PrecisionError, match="NaN or infinite"):
        quantise(x, recipe())


@pytest.mark.parametrize("like", RECIPES, ids=str)
def test_zeros_and_extremes_stay_finite(like: Nvfp4) -> None:
    zeros = torch.zeros(16, 32)
    assert torch.equal(dequantise(quantise(zeros, like)), zeros)
    for x in (weights(std=1e-38), weights(std=1e36)):
        assert torch.isfinite(dequantise(quantise(x, like))).all()
    x = weights(shape=(16, 64))
    x[:, 16:32] = 0
    x[:, 32:48] *= 1e-12  # below the smallest block scale
    assert torch.equal(dequantise(quantise(x, like))[:, 16:48], torch.zeros(16, 32))


@pytest.mark.slow
def test_compressed_tensors_gives_other_codes_on_ties_only() -> None:
    """It divides by scales where this multiplies by their reciprocals; numbers that lie on a tie may fall otherwise."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize as theirs

    x = weights(shape=(256, 512)).bfloat16().float()
    ours = quantise(x, GOLDEN["1d"])
    arguments = QuantizationArgs(
        num_bits=4,
        type=QuantizationType.FLOAT,
        strategy=QuantizationStrategy.TENSOR_GROUP,
        group_size=16,
        symmetric=True,
    )
    encode = 1 / ours.tensor_scale
    block_scales = ours.block_scales.float()
    value = theirs(x, block_scales, torch.zeros_like(block_scales), arguments, global_scale=encode)
    mine = dequantise(ours)
    differs = (value - mine).abs() > 1e-6 * x.abs().max()
    assert differs.float().mean() < 0.005
    step = (block_scales * ours.tensor_scale).repeat_interleave(16, dim=1)
    middle = (value + mine) / 2
    assert ((middle - x).abs() < 1e-4 * step)[differs].all()  # where they differ, x lies half-way


def test_torchao_gives_other_codes_on_ties_only() -> None:
    """Recorded from torchao 0.18.0 (`nvfp4_quantize`, with its tensor scale), which brings CUDA libraries along.

    It divides by the tensor scale before it rounds a block's, so block scales may fall to the other neighbour.
    """
    theirs = load_file(DATA / "nvfp4_torchao.safetensors")
    ours = quantise(theirs["x"], GOLDEN["1d"])
    torch.testing.assert_close(ours.tensor_scale.reshape(1), theirs["tensor_scale"], rtol=1e-6, atol=0)
    scales = theirs["scale_u8"].view(torch.float8_e4m3fn)
    differs = scales.view(torch.uint8) != ours.block_scales.view(torch.uint8)
    assert differs.float().mean() < 0.02
    same_scale = ~differs.repeat_interleave(16, dim=1)
    other_codes = (unpack(theirs["packed"]) != unpack(ours.packed)) & same_scale
    assert other_codes.float().mean() < 0.005
    value = dequantise(Quantised(theirs["packed"], scales, ours.tensor_scale))
    middle, step = (value + dequantise(ours)) / 2, (ours.block_scales.float() * ours.tensor_scale)
    is_tie = (middle - theirs["x"].float()).abs() < 1e-4 * step.repeat_interleave(16, dim=1)
    assert is_tie[other_codes].all()
