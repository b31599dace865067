"""Stages of trl's trainers warm up as the learner does: no rate is 0, and a short stage reaches its peak."""

from pathlib import Path

import pytest

from rl.config.preferences import DpoConfig, RewardModelConfig
from rl.config.supervised import SftConfig
from tests.families import write_policy
from tests.test_not_finite import run_stage
from tests.test_sft_stage import steps_of


@pytest.mark.parametrize(
    ("num_steps", "supervised", "pairs"), [(1, 1, 1), (10, 1, 1), (13, 2, 2), (60, 6, 5), (200, 20, 5), (1000, 20, 5)]
)
def test_a_default_warmup_is_a_tenth_of_a_short_stage(num_steps: int, supervised: int, pairs: int) -> None:
    assert SftConfig().warmup_of(num_steps) == supervised
    for section in (DpoConfig(data=Path("x.jsonl")), RewardModelConfig(data=Path("x.jsonl"))):
        assert section.warmup_of(num_steps) == pairs
    assert SftConfig(warmup_steps=0).warmup_of(num_steps) == 0
    assert SftConfig(warmup_steps=30).warmup_of(num_steps) == 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model"])
def test_rates_rise_from_the_first_update_to_the_peak(tmp_path: Path, name: str) -> None:
    policy = write_policy("llama", tmp_path / "policy")
    keys = {"num_steps": 4, "learning_rate": 1e-3}
    folder = run_stage(name, tmp_path / "run", policy, warmup_steps=2, **keys)
    assert [line["learning_rate"] for line in steps_of(folder)] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    folder = run_stage(name, tmp_path / "short", policy, warmup_steps=None, **{**keys, "num_steps": 1})
    assert [line["learning_rate"] for line in steps_of(folder)] == [1e-3]
