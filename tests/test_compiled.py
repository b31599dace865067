"""Compiled layers make the updates of layers that are not, with shared prefixes and with layers computed again."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rl.learner.compiled import compile_layers
from rl.learner.learner import Learner
from tests.test_learner import config_with, hybrid_path, load, on_policy, uneven_samples, weights
from tests.test_trees import SMALL

assert hybrid_path


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler takes the layers apart and derives their gradient, but makes no kernels: those take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.fixture(scope="module")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dense")
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense_path", "hybrid_path"])
@pytest.mark.parametrize("keys", [{}, {"share_prefixes": False}, {"activation_checkpointing": True}])
def test_updates_are_those_of_layers_that_are_not_compiled(kind: str, keys: dict, request: pytest.FixtureRequest):
    path: Path = request.getfixturevalue(kind)
    samples = on_policy(load(path), uneven_samples())
    plain, compiled = (Learner(path, config_with(compile=on, **keys)) for on in (False, True))
    assert plain._takes_trees == compiled._takes_trees == keys.get("share_prefixes", True)
    for _ in range(2):
        expected, update = plain.update(samples), compiled.update(samples)
        assert update.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-6)
        assert update.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert update.num_tokens == expected.num_tokens
    assert weights(plain).keys() == weights(compiled).keys()


def test_layers_with_experts_or_convolutions_stay_as_they_are(dense_path: Path, hybrid_path: Path):
    assert compile_layers(load(dense_path)) == SMALL["num_hidden_layers"]
    hybrid = load(hybrid_path)
    assert compile_layers(hybrid) == hybrid.config.layers_block_type.count("full_attention") > 0


def test_several_ranks_do_not_compile():
    with pytest.raises(ValueError, match=r"compile is for one rank, but num_ranks is 2: remove one of them"):
        config_with(compile=True, num_ranks=2)
