"""Reward models through trl: the loss is the formula's, transformers loads the result, other policies are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rl.chat.chat import load_chat
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.learner.policy import IncompleteCheckpointError
from sft.data import Row
from sft.pairs import PairRow, read_pairs, token_pairs
from tests.families import write_policy
from tests.makers import make_config
from tests.test_dpo import check_resume, write_pairs
from tests.test_sft_stage import steps_of

pytestmark = pytest.mark.slow  # imports TRL


def config_of(run_dir: Path, policy: Path, **keys: Any) -> ExperimentConfig:
    data = write_pairs(run_dir.parent)
    defaults = {"data": data, "heldout_share": 0, "batch_size": 6, "warmup_steps": 0, "learning_rate": 1e-3}
    return make_config(run_dir, policy={"path": policy, "max_tokens": 1000}, reward_model={**defaults, **keys})


def rows_of(config: ExperimentConfig) -> list[PairRow]:
    assert config.policy.path is not None and config.reward_model is not None
    chat = load_chat(config.policy.path, config.policy.chat)
    pairs = read_pairs(config.reward_model, "reward_model", has_thinking=chat.has_thinking)
    return token_pairs(pairs, chat, config)[0]


def scores_of(model: Any, rows: list[PairRow]) -> torch.Tensor:
    """Scores of the chosen and of the rejected conversations, each alone, without padding."""

    def score(row: Row) -> torch.Tensor:
        return model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, 0]

    with torch.no_grad():
        return torch.stack([torch.stack([score(row.chosen), score(row.rejected)]) for row in rows])


def test_the_loss_is_that_of_bradley_and_terry_before_and_after_a_step(tmp_path: Path) -> None:
    from sft.reward_model import load_reward_model, run

    policy = write_policy("llama", tmp_path / "policy")
    configs = [config_of(tmp_path / str(num), policy, num_steps=num) for num in (1, 2)]
    after, twice = map(run, configs)
    tokenizer: Any = AutoTokenizer.from_pretrained(twice)
    start: Any = load_reward_model(policy, configs[0].seed)
    start.config.pad_token_id = tokenizer.pad_token_id
    trained = AutoModelForSequenceClassification.from_pretrained(after)
    assert trained.config.num_labels == 1 and trained.config.pad_token_id == tokenizer.pad_token_id
    rows = rows_of(configs[0])
    for line, model in zip(steps_of(twice), (start, trained), strict=True):
        margins = (scores := scores_of(model, rows))[:, 0] - scores[:, 1]
        values = {
            "loss": -functional.logsigmoid(margins).mean().item(),
            "margin": margins.mean().item(),
            "accuracy": (margins > 0).float().mean().item(),
            "mean_reward": scores.mean().item(),
        }
        assert {name: line[name] for name in values} == pytest.approx(values, rel=1e-4, abs=1e-5)


def test_held_out_pairs_are_measured_before_and_after(tmp_path: Path) -> None:
    from sft.reward_model import run

    config = config_of(
        tmp_path / "run", write_policy("qwen3", tmp_path / "policy"), num_steps=12, batch_size=2, heldout_share=0.4
    )
    lines = [line for line in steps_of(run(config)) if "heldout_accuracy" in line]
    assert [line["step"] for line in lines] == [0, 10, 12]
    assert lines[-1]["heldout_accuracy"] == 1.0 and lines[-1]["heldout_loss"] < lines[0]["heldout_loss"]


def test_a_stage_that_was_stopped_goes_on_to_the_very_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = write_policy("llama", tmp_path / "policy")
    check_resume(tmp_path, config_of(tmp_path / "run", policy, num_steps=5, batch_size=2), monkeypatch)


def test_a_policy_without_such_a_head_is_refused_before_anything_starts(tmp_path: Path) -> None:
    from sft.reward_model import run

    config = config_of(tmp_path / "run", write_policy("nemotron", tmp_path / "policy"))
    with pytest.raises(ConfigError, match=r"no model for sequence classification of the kind nemotron_h"):
        run(config)
    assert not config.run_dir.exists()


def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path) -> None:
    from sft.reward_model import load_reward_model

    folder = write_policy("llama", tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteCheckpointError, match=r"1 weights are missing, first 'model\.layers\.1\.mlp"):
        load_reward_model(folder, 0)
