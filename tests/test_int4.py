"""4-bit integers for judges: values by hand and as transformers reads them, what is kept, what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from rl.config.checkpoint_files import max_context
from rl.export import ExportError
from rl.int4 import write_int4
from rl.plan.engine import engine_memory
from rl.plan.policy import checkpoint_shapes
from tests.families import write_policy
from tests.makers import make_config

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose head is tied to its embeddings, with a row that is known."""
    folder = write_policy("qwen3", tmp_path_factory.mktemp("qwen3") / "policy")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        row = model.get_parameter(f"{LAYER}.weight")[0].zero_()
        row[:5] = torch.tensor([-7.5, 3.0, 0.9, 1.5, 7.0])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def int4(policy: Path) -> Path:
    return write_int4(policy, policy.parent / "int4")


def test_codes_are_rounded_to_nearest_by_the_scale_of_their_group(int4: Path) -> None:
    """The largest magnitude is 7.5 times the scale: codes go from -8 to 7, symmetric around 0."""
    tensors = load_file(int4 / "model.safetensors")
    scale, shape = tensors[f"{LAYER}.weight_scale"], torch.Size(tensors[f"{LAYER}.weight_shape"].tolist())
    codes = unpack_from_int32(tensors[f"{LAYER}.weight_packed"], 4, shape)
    assert scale[0, 0] == 1.0
    assert codes[0, :6].tolist() == [-8, 3, 1, 2, 7, 0]
    assert f"{LAYER}.weight" not in tensors


def test_transformers_reads_every_weight_within_half_a_step(policy: Path, int4: Path) -> None:
    """Layers have a scale for a group, the head one for a row; what is no linear layer is kept to the bit."""
    before = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16)
    after = AutoModelForCausalLM.from_pretrained(int4, dtype=torch.bfloat16)
    after(torch.tensor([[1, 2, 3]]))  # which unpacks them
    stored = load_file(int4 / "model.safetensors")
    linear = {name for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) == 7 * before.config.num_hidden_layers + 1
    for name, tensor in before.state_dict().items():
        found = after.get_parameter(name)
        layer = name.removesuffix(".weight")
        if layer not in linear:
            assert torch.equal(found, tensor), name
            continue
        scale = stored[f"{layer}.weight_scale"]
        assert scale.shape == (len(tensor), 1 if layer == "lm_head" else tensor.shape[1] // 64)
        steps = (found.float() - tensor.float()).abs().unflatten(1, (scale.shape[1], -1)) / scale.float().unsqueeze(-1)
        assert float(steps.max()) <= 0.5 + 2 * 7.5 / 256, name  # bfloat16 rounds scale and value
    assert after.lm_head.weight is not after.get_input_embeddings().weight


def test_it_has_all_that_serving_needs(policy: Path, int4: Path) -> None:
    described = json.loads((int4 / "config.json").read_text())
    assert described["quantization_config"]["quant_method"] == "compressed-tensors"
    assert not described["tie_word_embeddings"]
    assert (int4 / "tokenizer.json").read_bytes() == (policy / "tokenizer.json").read_bytes()
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (int4, policy)]
    assert sizes[0] < sizes[1]


def test_a_plan_counts_its_weights(policy: Path, int4: Path) -> None:
    before, after = checkpoint_shapes(policy), checkpoint_shapes(int4)
    assert after.num_weights == before.num_weights + before.num_embedding_weights  # the head is no longer tied
    assert after.num_cached == before.num_cached
    # Integers on cards; on CPUs, which may have no kernel for them, what they stand for.
    card, host = (engine_memory(after, make_config(), card_bytes) for card_bytes in (1e10, None))
    num_int4, others = after.num_weights - after.num_embedding_weights, after.num_embedding_weights
    norms = sum(math.prod(shape) for shape in after.tensors.values() if len(shape) == 1)
    assert host.parts[0].num_bytes == 4 * after.num_weights
    assert card.parts[0].num_bytes == pytest.approx(0.5625 * (num_int4 - norms) + 4 * (others + norms))


def test_what_does_not_fit_is_refused(policy: Path, int4: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is quantised already"):
        write_int4(int4, tmp_path / "out")
    with pytest.raises(ExportError, match="exists already"):
        write_int4(policy, int4)
    hybrid = write_policy("nemotron", tmp_path / "hybrid")
    with pytest.raises(ExportError, match=r"\(nemotron_h\) holds .*: only policies whose layers are attention"):
        write_int4(hybrid, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(policy)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(tmp_path / "odd")
    with pytest.raises(ExportError, match="lm_head has 641 rows, no multiple of 32"):
        write_int4(tmp_path / "odd", tmp_path / "out")
    tied = AutoModelForCausalLM.from_pretrained(policy)
    tied.config.tie_word_embeddings = False
    tied.save_pretrained(
        tmp_path / "headless", state_dict={n: t for n, t in tied.state_dict().items() if n != "lm_head.weight"}
    )
    with pytest.raises(ExportError, match=r"lacks 1 of its model's weights, first lm_head.weight"):
        write_int4(tmp_path / "headless", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_new_folder_may_be_the_empty_one_that_one_is_in(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_int4(policy, Path("."))
    assert (tmp_path / "config.json").is_file()


def test_a_context_is_found_where_models_of_more_than_text_name_it() -> None:
    assert max_context({"max_position_embeddings": 10}) == 10
    assert max_context({"text_config": {"max_position_embeddings": 20}}) == 20
    assert max_context({"model_type": "mamba2"}) is None
