"""A loss or gradient that is not finite ends each stage of trl's trainers before an update and a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.algorithms.corrections import NonFiniteError
from tests.families import write_policy
from tests.makers import make_config
from tests.test_dpo import write_pairs
from tests.test_sft_stage import stage, steps_of

pytestmark = pytest.mark.slow  # imports TRL


def broken_policy(folder: Path) -> Path:
    policy = write_policy("llama", folder)
    weights = load_file(policy / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, policy / "model.safetensors", metadata={"format": "pt"})
    return policy


def run_stage(name: str, run_dir: Path, policy: Path, **keys: Any) -> Path:
    import sft.dpo
    import sft.reward_model
    import sft.train

    path = {"path": str(policy), "max_tokens": 1000}
    if name == "sft":
        return sft.train.run(stage(run_dir, path, **keys))
    run = {"dpo": sft.dpo.run, "reward_model": sft.reward_model.run}[name]
    pairs: dict[str, Any] = {"data": write_pairs(run_dir.parent), "heldout_share": 0, "batch_size": 6, "num_steps": 4}
    return run(make_config(run_dir, policy=path, **{name: pairs | {"warmup_steps": 0} | keys}))


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model"])
def test_weights_that_are_not_finite_are_told_in_the_first_step(tmp_path: Path, name: str) -> None:
    policy = broken_policy(tmp_path / "policy")
    with pytest.raises(NonFiniteError, match=rf"step 1: the loss is nan .* Lower {name}\.learning_rate"):
        run_stage(name, tmp_path / "run", policy)
    assert not (tmp_path / "run" / name).exists()


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_later_step_that_is_not_finite_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    from sft import checkpoints
    from sft.trainer import StageTrainer

    computed = StageTrainer.training_step

    def training_step(self: StageTrainer, *arguments: Any, **more: Any) -> Any:
        loss = computed(self, *arguments, **more)
        if self.state.global_step == 2 and what == "loss":
            self._step_loss = self._step_loss + torch.inf
        elif self.state.global_step == 2:
            next(p.grad for p in self.model.parameters() if p.grad is not None).view(-1)[0] = torch.inf
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", training_step)
    monkeypatch.setattr(checkpoints, "INTERVAL_S", 0.0)
    with pytest.raises(NonFiniteError, match="step 3: the loss is"):
        run_stage(name, tmp_path / "run", write_policy("llama", tmp_path / "policy"))
    partial = tmp_path / "run" / f"{name}.partial"
    (kept,) = partial.glob("checkpoint-*")
    assert kept.name == "checkpoint-2"
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())
    assert [line["step"] for line in steps_of(partial)] == [1, 2]
