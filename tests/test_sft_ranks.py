"""The supervised stage with several ranks trains what one process would, and ends as one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rl.chat.formats.nemotron import NemotronFormat
from rl.cluster.rank_variables import RankVariables
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.learner.optimizer import clip_gradients
from rl.learner.policy import load_policy
from rl.policies import build_policy
from rl.ranks import Ranks
from rl.stop import StopRequested
from tests.ranks import on_ranks
from tests.test_sft_adapter import ADAPTER
from tests.test_sft_stage import dense_policy, run_stage, stage, steps_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("policies")
    texts = ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200
    build_policy(TinyHybrid(), texts, folder / "hybrid", 0, NemotronFormat())
    return {"hybrid": folder / "hybrid", "llama": dense_policy("llama", folder / "llama")}


def config_of(run_dir: Path, policy: Path, precision: str = "float32", **sections: Any) -> ExperimentConfig:
    """A rate at which float32 rounds little of what AdamW changes."""
    sft = {"num_steps": 4, "learning_rate": 1e-2, "heldout_share": 0.3, "heldout_every": 2, **sections.pop("sft", {})}
    tree = stage(run_dir, {"path": str(policy), "max_tokens": 200}, **sft).model_dump(mode="json")
    learner = {**tree["learner"], **sections.pop("learner", {})}
    return ExperimentConfig.model_validate({**tree, "precision": precision, "learner": learner, **sections})


def run_on_ranks(num: int, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[Any]:
    def work(ranks: Ranks) -> str:
        if num > 1:
            os.environ.update(RankVariables(ranks.rank, ranks.num, "127.0.0.1:1", ranks.rank).as_environment())
        return str(run_stage(config, monkeypatch, ranks=ranks, **more))

    return on_ranks(num, work, config.learner.expert_parallel)


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """AdamW's first moments in a checkpoint of the stage, made whole."""
    if (checkpoint / "state").is_dir():
        dcp_to_torch_save(checkpoint / "state", checkpoint / "whole.pt")
        saved = torch.load(checkpoint / "whole.pt")
    else:
        saved = load_file(checkpoint / "optimizer.safetensors")
    return {name.removeprefix("optimizer."): m for name, m in saved.items() if name.endswith(".exp_avg")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def difference(one: torch.Tensor, other: torch.Tensor, size: torch.Tensor) -> float:
    return float((one - other).norm() / size.norm().clamp(min=1e-12))


@pytest.mark.parametrize(
    ("kind", "precision", "num", "learner", "loss"),
    [
        ("llama", "float32", 2, {}, "token"),
        ("llama", "bf16", 4, {}, "token"),
        ("hybrid", "float32", 2, {"expert_parallel": 2}, "conversation"),
        ("hybrid", "bf16", 2, {"activation_checkpointing": True}, "token"),
        ("hybrid", "nvfp4", 2, {"exchange": "step"}, "token"),
    ],
)
def test_ranks_compute_the_gradient_of_one_process(
    policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str, precision: str, num: int, learner: dict[str, Any], loss: str,
) -> None:  # fmt: skip
    policy = policies[kind]
    # With a rate of 0 both steps are those of the policy as it was; else rounding would differ in the second.
    monkeypatch.setattr("sft.trainer.rate_factor", lambda *_, **__: 0.0)
    sft = {"heldout_every": 1, "loss": loss}
    monkeypatch.setattr(
        "sft.micro_batches._num_needed", lambda *_: 4
    )  # rounded alike only in micro-batches of the same rows
    is_tied = (kind, precision) == ("llama", "bf16")
    if is_tied:
        # The two uses of tied embeddings meet in bfloat16 where FSDP casts, and in float32 in one process, so their
        # gradient differs, and with it the norm by which all others would be clipped.
        monkeypatch.setattr("sft.trainer.clip_gradients", lambda model, _, ranks: clip_gradients(model, 1e9, ranks))
    many = config_of(tmp_path / "many", policy, precision, sft=sft, learner={"num_ranks": num, **learner})
    assert run_on_ranks(num, many, monkeypatch, stop_at=1) == num * ["StopRequested: SIGTERM"]
    learner = {**learner, "expert_parallel": 1}
    with pytest.raises(StopRequested):
        run_stage(config_of(tmp_path / "one", policy, precision, sft=sft, learner=learner), monkeypatch, stop_at=1)
    one, other = (moments(tmp_path / name / "sft.partial" / "checkpoint-2") for name in ("one", "many"))
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        allowed = 2e-6
        if is_tied:
            allowed = 2e-3 if "embed" in name else 5e-5
        assert difference(gradient, other[name], gradient) < allowed, name


@pytest.mark.parametrize(("kind", "num", "adapter"), [("hybrid", 2, None), ("llama", 3, ADAPTER)])
def test_ranks_train_and_write_what_one_process_does(
    policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, num: int, adapter: Any
) -> None:
    policy = policies[kind]
    sft = {"batch_size": 12, "adapter": adapter, "heldout_share": 0.01 if adapter else 0.3}  # one row, or twelve
    many = config_of(tmp_path / "many", policy, sft=sft, learner={"num_ranks": num})
    folder = tmp_path / "many" / "sft"
    assert run_on_ranks(num, many, monkeypatch) == num * [str(folder)]
    one = run_stage(config_of(tmp_path / "one", policy, sft=sft), monkeypatch)
    old, new, other = (weights(each) for each in (policy, one, folder))
    assert old.keys() == new.keys() == other.keys()
    for name, tensor in new.items():
        changed = tensor - old[name]
        assert difference(tensor, other[name], changed) < 1e-3 or not changed.any(), name
    for mine, theirs in zip(steps_of(one), steps_of(folder), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"time", "seconds", "tokens_per_s"}:
            assert mine[key] == pytest.approx(theirs[key], rel=2e-5), key
    assert load_policy(folder).config.to_dict() == load_policy(one).config.to_dict() | {"_name_or_path": str(folder)}
    others = {path.name for path in one.iterdir()} - {"model.safetensors"}
    assert others <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "precision", "before", "after", "adapter"),
    [
        ("hybrid", "nvfp4", 2, 2, None),
        ("hybrid", "float32", 1, 2, None),
        ("llama", "float32", 2, 1, None),
        ("llama", "float32", 2, 1, ADAPTER),
    ],
)
def test_a_stopped_stage_goes_on_with_any_number_of_ranks(
    policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str, precision: str, before: int, after: int, adapter: Any,
) -> None:  # fmt: skip
    def run(name: str, num: int, **more: Any) -> list[Any]:
        sft = {"num_steps": 5, "adapter": adapter}
        return run_on_ranks(
            num,
            config_of(tmp_path / name, policies[kind], precision, sft=sft, learner={"num_ranks": num}),
            monkeypatch,
            **more,
        )

    assert run("stopped", before, stop_at=2) == before * ["StopRequested: SIGTERM"]
    assert run("stopped", after) == after * [str(tmp_path / "stopped" / "sft")]
    run("whole", after)
    stopped, whole = tmp_path / "stopped" / "sft", tmp_path / "whole" / "sft"
    assert [line["step"] for line in steps_of(stopped)] == [line["step"] for line in steps_of(whole)]
    for name, tensor in weights(whole).items():
        if before == after:
            assert torch.equal(tensor, weights(stopped)[name])
        else:
            assert difference(tensor, weights(stopped)[name], tensor) < 1e-4, name
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole.iterdir()}
