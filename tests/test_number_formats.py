"""A number format is one class and one entry of a dict; and one rule says which weights stay float32."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from rl.config.experiment import ExperimentConfig
from rl.config.read import ConfigError, load_config
from rl.precision.float32_weights import float32_weights
from rl.precision.folded import FoldedWeights
from rl.precision.formats import FORMATS
from rl.precision.formats.bf16 import Bf16
from rl.precision.formats.float32 import Float32
from rl.precision.formats.nvfp4 import Nvfp4
from rl.precision.number_format import NumberFormat, Parts, PrecisionError
from rl.weights.names import checkpoint_tensors, restored_tensors
from rl.weights.shared_memory import read_weights, write_weights
from tests.makers import make_config
from tests.test_engine import random_policy

EXPERIMENT = "run_dir: r\nseed: 0\npolicy: {path: p}\nenvironments: {math/Arithmetic-v0: {}}\ntrain: {num_steps: 1}\n"


class Int8(NumberFormat):
    """Whole numbers from -127 to 127 with one scale a matrix."""

    format: Literal["int8"] = "int8"
    num_rows_max: int = 10_000
    suffixes: ClassVar[tuple[str, ...]] = ("", "_int8_scale")
    codes: ClassVar[str] = "8-bit codes"

    @property
    def bits(self) -> float:
        return 8.0

    def keeps(self, name: str) -> bool:
        return "lm_head" in name

    def check_shape(self, weight: Tensor) -> None:
        if weight.shape[-2] > self.num_rows_max:
            raise PrecisionError("too many rows")

    def quantise(self, weight: Tensor, shared_amax: Tensor) -> Parts:
        scale = shared_amax / 127
        return {"": torch.round(weight.detach() / scale[..., None, None]).to(torch.int8), "_int8_scale": scale}

    def dequantise(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return (parts[""].float() * parts["_int8_scale"][..., None, None]).to(dtype)

    def num_changed(self, before: Parts, after: Parts) -> int:
        return int((before[""] != after[""]).sum())


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    monkeypatch.setitem(FORMATS, "int8", Int8)
    return make_config(precision={"format": "int8", "num_rows_max": 5000})


def test_a_new_format_is_read_from_the_configuration(config: ExperimentConfig) -> None:
    assert config.precision == Int8(num_rows_max=5000)
    assert config.precision.is_quantised
    assert ExperimentConfig.model_validate(config.model_dump(mode="json")).precision == config.precision


def test_a_new_format_is_folded_published_and_restored(config: ExperimentConfig, tmp_path: Path) -> None:
    model = random_policy(tmp_path, seed=0)
    folded = FoldedWeights(model, config.precision)
    source = write_weights(checkpoint_tensors(model, "bfloat16", folded.quantised), 1, tmp_path / "published")
    sent = dict(read_weights(source).tensors)
    arrived = dict(restored_tensors(sent.items(), config.precision, torch.bfloat16))
    with folded.in_place():
        expected = dict(checkpoint_tensors(model, "bfloat16"))
    assert arrived.keys() == expected.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in expected.items())

    codes = {name: tensor for name, tensor in sent.items() if tensor.dtype == torch.int8}
    assert len([name for name in codes if ".experts." in name]) == 2 * 8 * 2
    assert all(sent[name + "_int8_scale"].shape == () for name in codes)
    scales = {sent[f"backbone.layers.1.mixer.experts.{i}.up_proj.weight_int8_scale"].item() for i in range(8)}
    assert len(scales) == 8  # one a matrix


def test_a_new_format_describes_itself_and_counts_changed_codes(config: ExperimentConfig) -> None:
    """512 of 1,024 weights at 8 bits and 512 at 16: 12 bits."""
    linear = torch.nn.Linear(32, 16, bias=False)
    folded = FoldedWeights(torch.nn.Sequential(linear, torch.nn.Embedding(16, 32)), config.precision)
    assert folded.describe().startswith("precision int8: 50% of 0.0 M weights in 8-bit codes (*.weight)")
    assert "12.00 bits a weight" in folded.describe()
    with torch.no_grad():
        linear.weight[3, 4:6] = -0.5 * linear.weight[3, 4:6].sign() * linear.weight.abs().max()
    assert folded.refresh() == 2 / 512


def test_what_does_not_fit_a_new_format_is_refused_by_name(config: ExperimentConfig) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 6000, bias=False))
    with pytest.raises(PrecisionError, match=r"0\.weight: too many rows"):
        FoldedWeights(model, config.precision)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("bf16", Bf16()),
        ("nvfp4", Nvfp4()),
        ("{format: nvfp4, block: 16x16, keep: ['*lm_head*']}", Nvfp4(block="16x16", keep=("*lm_head*",))),
        ("{}", Float32()),
    ],
)
def test_formats_are_written_as_a_name_or_a_section(tmp_path: Path, written: str, expected: NumberFormat) -> None:
    (tmp_path / "e.yaml").write_text(f"{EXPERIMENT}precision: {written}\n")
    assert load_config(tmp_path / "e.yaml").precision == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{format: bf16, block: 16x16}", ["precision.block", "the selected kind of precision", "select nvfp4"]),
        ("{block: 16x16}", ["precision.block", "select nvfp4"]),
        ("{format: nvfp4, blok: 16x16}", ["precision.blok", "no such key", "precision.block"]),
        ("fp3", ["precision", "fp3", "float32 or bf16 or nvfp4"]),
        ("{format: nvfp4, block: 4x4}", ["precision.block", "1x16, 16x16"]),
    ],
)
def test_a_key_that_the_format_does_not_have_is_refused_in_words(
    tmp_path: Path, written: str, words: list[str]
) -> None:
    (tmp_path / "e.yaml").write_text(f"{EXPERIMENT}precision: {written}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "e.yaml")
    for word in words:
        assert word in str(caught.value)


def test_routers_and_mambas_a_stay_float32_in_learner_and_engine(tmp_path: Path) -> None:
    model = random_policy(tmp_path, seed=0)
    routers = ("layers.1.mixer.gate.weight", "layers.3.mixer.gate.weight")
    assert float32_weights(model.base_model) == {"layers.0.mixer.A_log", *routers}
    assert float32_weights(model) == {f"model.{name}" for name in float32_weights(model.base_model)}
    published = dict(checkpoint_tensors(model, "bfloat16"))
    kept = {name for name, tensor in published.items() if tensor.dtype == torch.float32}
    assert {name for name in kept if published[name].dim() > 1} == {f"backbone.{name}" for name in routers}
    assert "backbone.layers.0.mixer.A_log" in kept
    assert all(name in kept for name, tensor in published.items() if tensor.dim() == 1)


def test_the_forward_pass_computes_with_these_weights_in_float32(tmp_path: Path) -> None:
    from rl.learner.batching import make_batches
    from rl.learner.forward import policy_logprobs
    from tests.test_learner import make_sample

    model = random_policy(tmp_path, seed=0)
    seen: dict[str, torch.dtype] = {}

    def note(prefix: str, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters(prefix, recurse=False):
            seen[name] = parameter.dtype

    for name, module in model.base_model.named_modules():
        module.register_forward_pre_hook(lambda module, _inputs, prefix=name: note(prefix, module))
    (batch,) = make_batches([make_sample([1, 2, 3, 4])], 64, 0)
    policy_logprobs(model, batch, torch.bfloat16, 1.0, 16)
    assert {name for name, dtype in seen.items() if dtype == torch.float32} == float32_weights(model.base_model)
    assert len(seen) > 20
