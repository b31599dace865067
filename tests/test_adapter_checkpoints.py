"""A checkpoint of an adapter names its base and goes on bit by bit; exports and evaluations merge it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from envs.commands.evaluate_local import base_of as base_for_environments
from rl.config.saved_policy import base_of, is_adapter, policy_in
from rl.evaluate import whole_policy
from rl.export import ExportError, export_policy
from rl.learner.actor import LearnerProcess
from rl.learner.learner import Learner, LearnerStateError
from rl.runs.checkpoint import latest_checkpoint, save_checkpoint
from rl.weights.names import checkpoint_tensors
from tests.families import write_policy
from tests.makers import write_run
from tests.test_adapter_training import config_of, logits, samples_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy("qwen3", tmp_path_factory.mktemp("policy"))


def finished_run(run_dir: Path, policy: Path, precision: str) -> tuple[Any, Learner]:
    """A run with a checkpoint after one update, and its learner."""
    config = config_of(policy, precision=precision).model_copy(update={"run_dir": run_dir})
    write_run(config, 1)
    process = LearnerProcess(config, policy)
    process.start()
    process._learner.update(samples_of(policy))
    save_checkpoint(run_dir / "checkpoints", 1, process.save, {})
    process.shutdown()
    return config, process._learner


@pytest.mark.parametrize("precision", ["float32", "bf16", "nvfp4"])
def test_a_checkpoint_holds_the_adapter_alone_and_goes_on_bit_by_bit(
    policy: Path, tmp_path: Path, precision: str
) -> None:
    config, learner = finished_run(tmp_path, policy, precision)
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and is_adapter(checkpoint.policy) and not (checkpoint.learner / "model").exists()
    assert (checkpoint.policy / "tokenizer.json").is_file()
    num_saved = sum(tensor.numel() for tensor in load_file(checkpoint.policy / "adapter_model.safetensors").values())
    assert num_saved == sum(parameter.numel() for parameter in learner.model.parameters() if parameter.requires_grad)

    resumed = Learner(policy, config)
    resumed.load_state(checkpoint.learner)
    for one in (learner, resumed):
        one.update(samples_of(policy))
    pairs = zip(learner.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_peft_loads_the_saved_adapter(policy: Path, tmp_path: Path) -> None:
    _, learner = finished_run(tmp_path, policy, "float32")
    base = AutoModelForCausalLM.from_pretrained(policy).eval()
    adapter = tmp_path / "checkpoints" / "step_000001" / "learner" / "adapter"
    assert base_for_environments(adapter) == policy
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets) and len(targets) > 5  # not in the order of a process's hashes
    assert torch.allclose(logits(PeftModel.from_pretrained(base, adapter)), logits(learner.model), atol=1e-6)


def test_a_checkpoint_with_merged_weights_beside_the_adapter_is_still_read(policy: Path, tmp_path: Path) -> None:
    config, learner = finished_run(tmp_path, policy, "float32")
    folder = tmp_path / "checkpoints" / "step_000001" / "learner"
    (folder / "adapter" / "base.json").unlink()
    shutil.copytree(policy, folder / "model")
    assert policy_in(folder) == folder / "model"
    resumed = Learner(policy, config)
    resumed.load_state(folder)
    assert torch.equal(logits(resumed.model), logits(learner.model))


def test_a_learner_refuses_another_base(policy: Path, tmp_path: Path) -> None:
    config, _ = finished_run(tmp_path / "run", policy, "bf16")
    learner = tmp_path / "run" / "checkpoints" / "step_000001" / "learner"
    other = tmp_path / "other"
    shutil.copytree(policy, other)
    Learner(other, config).load_state(learner)  # equal weights, wherever they are
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(LearnerStateError, match=r"trained beside other weights than those in .*other; its base was"):
        Learner(other, config).load_state(learner)


@pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
def test_exports_and_evaluations_serve_what_engines_merged(policy: Path, tmp_path: Path, precision: str) -> None:
    config, learner = finished_run(tmp_path / "run", policy, precision)
    served = dict(checkpoint_tensors(learner.model, "bfloat16"))  # merged
    exported = load_file(export_policy(tmp_path / "run", tmp_path / "out") / "model.safetensors")
    assert exported.keys() == served.keys()
    assert all(torch.equal(exported[name], served[name]) for name in served)

    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    with whole_policy(checkpoint.policy, config) as (folder, evaluated):
        assert evaluated.learner.adapter is None and evaluated.precision.name == "bf16"
        merged = load_file(folder / "model.safetensors")
        assert all(torch.equal(merged[name], served[name]) for name in served)
    assert not folder.exists()

    out = export_policy(tmp_path / "run", tmp_path / "adapter", only_adapter=True)
    assert is_adapter(out) and (out / "chat_template.jinja").is_file()
    assert "library_name: peft" in (out / "README.md").read_text()
    assert base_of(out).path == policy


def test_a_whole_policy_has_no_adapter_to_export(policy: Path, tmp_path: Path) -> None:
    write_run(config_of(policy).model_copy(update={"run_dir": tmp_path / "run"}), 1)
    with pytest.raises(ExportError, match="is a whole policy: the run trained no adapter, or has no checkpoint yet"):
        export_policy(tmp_path / "run", tmp_path / "out", only_adapter=True)
