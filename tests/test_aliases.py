"""Names of keys from other projects: what is suggested exists, in the section that was meant."""

import pytest

from rl.config.aliases import ALIASES
from rl.config.explain import explain
from rl.config.keys import all_keys, find_key, nearest
from rl.config.read import ConfigError


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learner.lr", ["learner.learning_rate"]),
        ("sft.lr", ["sft.learning_rate"]),
        ("lr", ["learner.learning_rate", "sft.learning_rate"]),
        ("train.batch_size", ["train.num_prompts"]),
        ("train.num_generations", ["train.group_size"]),
        ("rollout.max_new_tokens", ["rollout.max_reply_tokens"]),
        ("max_completion_length", ["rollout.max_reply_tokens"]),
        ("loss.beta", ["loss.reference_kl"]),
        ("train.epochs", ["train.num_steps"]),
        ("model_name_or_path", ["policy.path"]),
        ("policy.model", ["policy.path"]),
        ("learner.gradient-checkpointing", ["learner.activation_checkpointing"]),
        ("learner.lora_r", ["learner.adapter.rank"]),
        ("sft.packing", ["learner.tokens_per_micro_batch"]),
        ("train.save_steps", ["train.checkpoint_every"]),
        ("train.eval_steps", ["evaluation.every"]),
        ("loss.group_size", ["train.group_size"]),  # no alias: the same name in another section
        ("learner.learning_rat", ["learner.learning_rate"]),
    ],
)
def test_a_key_of_another_project_is_answered_with_its_counterpart(key: str, meant: list[str]) -> None:
    assert nearest(key) == meant


def test_every_counterpart_exists_and_no_alias_hides_a_key() -> None:
    targets = {target for meant in ALIASES.values() for target in meant}
    assert [target for target in targets if find_key(target.split(".")) is None] == []
    assert targets <= set(all_keys())
    hidden = [
        key for alias, meant in ALIASES.items() for target in meant if (key := _beside(target, alias)) in all_keys()
    ]
    assert hidden == ["sft.batch_size"]  # it is right in its own section, and another key is meant elsewhere


def test_the_message_names_the_counterpart() -> None:
    with pytest.raises(ConfigError, match=r"did you mean learner\.learning_rate\?"):
        explain("learner.lr")


def _beside(target: str, alias: str) -> str:
    parent = target.rpartition(".")[0]
    return f"{parent}.{alias}" if parent else alias
