"""The supervised stage trains a low-rank adapter, merges it into its result, and goes on bit by bit when stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config.experiment import ExperimentConfig
from rl.learner.learner import Learner
from rl.learner.policy import load_policy
from tests.makers import make_config
from tests.test_sft import SIZES
from tests.test_sft_stage import dense_policy, run_stage, stage, steps_of

pytestmark = pytest.mark.slow
ADAPTER = {"rank": 4, "alpha": 8}


def config_of(run_dir: Path, policy: dict[str, Any], precision: str, **sft: Any) -> ExperimentConfig:
    sections = {"num_steps": 7, "learning_rate": 1e-2, "adapter": ADAPTER, **sft}
    tree = stage(run_dir, policy, **sections).model_dump(mode="json")
    return ExperimentConfig.model_validate({**tree, "precision": precision})


def policy_of(kind: str, tmp_path: Path) -> dict[str, Any]:
    if kind == "hybrid":
        return {"build": SIZES}
    return {"path": str(dense_policy("qwen3", tmp_path / "dense")), "max_tokens": 200}


@pytest.mark.parametrize(
    ("kind", "precision", "experts"),
    [("qwen3", "float32", False), ("qwen3", "bf16", False), ("hybrid", "bf16", False), ("hybrid", "bf16", True)],
)
def test_only_layers_with_an_adapter_change_and_the_result_is_a_whole_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, precision: str, experts: bool
) -> None:
    policy = policy_of(kind, tmp_path)
    adapter = {**ADAPTER, "experts": experts}
    folder = run_stage(config_of(tmp_path / "run", policy, precision, adapter=adapter), monkeypatch)
    losses = [line["loss"] for line in steps_of(folder)]
    assert losses[-1] < losses[0]
    before = load_policy(tmp_path / ("dense" if kind == "qwen3" else "run/policy")).state_dict()
    after = load_policy(folder).state_dict()
    assert after.keys() == before.keys()
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    changed = {name for name in before if not torch.equal(after[name].to(dtype), before[name].to(dtype))}
    assert changed and all("_proj" in name for name in changed), changed
    assert any(".experts." in name for name in changed) == experts
    learner = Learner(folder, make_config(policy={"path": folder}, precision=precision))  # starts from all weights
    assert all(parameter.requires_grad for parameter in learner.model.parameters() if parameter.dim() < 2)


@pytest.mark.parametrize("kind", ["qwen3", "hybrid"])
def test_a_stage_with_an_adapter_that_was_stopped_goes_on_to_the_very_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from rl.stop import StopRequested

    policy = policy_of(kind, tmp_path)
    whole = run_stage(config_of(tmp_path / "whole", policy, "bf16"), monkeypatch)
    with pytest.raises(StopRequested):
        run_stage(config_of(tmp_path / "stopped", policy, "bf16"), monkeypatch, stop_at=3)
    (checkpoint,) = (tmp_path / "stopped" / "sft.partial").glob("checkpoint-*")
    assert (checkpoint / "adapter" / "adapter_model.safetensors").is_file()
    assert not list(checkpoint.glob("model*.safetensors"))  # the base is not copied
    resumed = run_stage(config_of(tmp_path / "stopped", policy, "bf16"), monkeypatch)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [line["loss"] for line in steps_of(resumed)] == [line["loss"] for line in steps_of(whole)]


def test_an_adapter_of_the_stage_does_not_go_with_a_quantised_policy(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"sft\.adapter does not go with precision nvfp4.*remove sft\.adapter"):
        config_of(tmp_path / "run", {"build": SIZES}, "nvfp4")
