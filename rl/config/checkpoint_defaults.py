"""Which defaults are others for a pretrained checkpoint than for a tiny policy, and where do they come from?

The defaults of `rl.config.experiment` suit policies of about a million weights, which a run builds. They would ruin a
pretrained checkpoint: a learning rate a hundred times too high makes it forget what it knows. A key that the YAML or an
override sets keeps its value.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rl.config.checkpoint_files import CheckpointFileError, max_context, num_parameters, read_config
from rl.config.hub import is_hub_id
from rl.config.yaml_text import Tree

PRETRAINED_WEIGHTS = 20_000_000
"""A checkpoint with at least so many weights counts as pretrained; the smallest that people train has 70 million."""


class Default(NamedTuple):
    value: Any
    source: str


CHECKPOINT_DEFAULTS: Mapping[str, Default] = {
    "policy.max_tokens": Default(2048, "or the checkpoint's context if that is shorter; verl's and NeMo RL's examples"),
    "rollout.max_reply_tokens": Default(512, "or half of policy.max_tokens if that is less; TRL's GRPOConfig"),
    "learner.learning_rate": Default(1e-6, "TRL's GRPOConfig, verl's examples"),
    "sft.learning_rate": Default(2e-5, "TRL's SFTConfig"),
    "dpo.learning_rate": Default(3e-6, "Nemotron 3 Nano, Appendix C"),
    "reward_model.learning_rate": Default(1e-5, "a tenth of TRL's RewardConfig, which suits adapters"),
}
"""By key."""
STAGES = ("sft", "dpo", "reward_model")
_TEN_TIMES = "ten times the rate for all weights: Schulman et al. 2025, LoRA Without Regret"
ADAPTER_RATES: Mapping[str, Default] = {
    "learner.learning_rate": Default(1e-5, _TEN_TIMES),
    "sft.learning_rate": Default(2e-4, _TEN_TIMES),
    "dpo.learning_rate": Default(3e-5, _TEN_TIMES),
}
"""By key: its default with an adapter in the same section."""


def with_checkpoint_defaults(tree: Tree) -> tuple[Tree, dict[str, Any]]:
    """The tree with the defaults of a pretrained checkpoint where it sets none, and what was filled in, by key.

    The tree of a policy that is built, of a tiny one, or of a checkpoint that cannot be read is returned unchanged.
    """
    context = _context(tree)
    if context is None:
        return tree, {}
    chosen: dict[str, Any] = {}
    for key, default in CHECKPOINT_DEFAULTS.items():
        section, name = key.split(".")
        given = tree.get(section, None if section in STAGES else {})  # there are no stages by default
        if not isinstance(given, Mapping) or name in given:
            continue
        chosen[key] = default.value
        if key in ADAPTER_RATES and given.get("adapter") is not None:
            chosen[key] = ADAPTER_RATES[key].value
        if key == "policy.max_tokens":
            chosen[key] = min(default.value, context)
        if key == "rollout.max_reply_tokens":
            longest = chosen.get("policy.max_tokens", tree["policy"].get("max_tokens"))
            chosen[key] = min(default.value, longest // 2) if isinstance(longest, int) else default.value
        tree = {**tree, section: {**given, name: chosen[key]}}
    return tree, chosen


def _context(tree: Tree) -> int | None:
    """The context length, in tokens, of a tree's pretrained checkpoint; None without one.

    A model of which no weights are here counts as one, so that an experiment reads the same before its download.
    """
    policy = tree.get("policy")
    path = policy.get("path") if isinstance(policy, Mapping) else None
    if isinstance(path, str) and is_hub_id(Path(path)):
        return CHECKPOINT_DEFAULTS["policy.max_tokens"].value
    if not isinstance(path, str | Path) or not (Path(path) / "config.json").is_file():
        return None
    try:
        context = max_context(read_config(Path(path)))
        if 0 < num_parameters(Path(path)) < PRETRAINED_WEIGHTS:
            return None
    except CheckpointFileError:  # told by pre-flight
        return None
    return context if context is not None and context > 1 else CHECKPOINT_DEFAULTS["policy.max_tokens"].value
