"""How is a reward model trained on preference pairs? With trl's `RewardTrainer`, on the same rows of tokens as DPO.

The policy gets a head that gives one number, the score, at a conversation's last token. The loss of a pair is
`-log sigmoid(score of chosen - score of rejected)` (Bradley and Terry 1952; Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155, equation 1). The folder is a model for sequence classification of transformers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    set_seed,
)
from trl.trainer.reward_config import RewardConfig as TrlConfig
from trl.trainer.reward_trainer import RewardTrainer as TrlRewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.learner.policy import IncompleteCheckpointError
from rl.learner.recompute import recompute_layers
from rl.precision.folded import FoldedWeights
from rl.ranks import ALONE
from sft.preferences import PreparedPairs, pair_arguments, pair_dataset, prepare_pairs, train_pairs
from sft.stage import stage_device, stage_folder
from sft.trainer import StageTrainer

MEASURES = {"accuracy": "accuracy", "margin": "margin", "mean_reward": "mean_reward"}
"""Their names, by trl's."""


def run(config: ExperimentConfig) -> Path:
    """Train as `config.reward_model` says and return the model's folder, `<run_dir>/reward_model`.

    The folder appears only when it is complete; a stopped stage continues where it stopped. Raises `ConfigError` for a
    policy that has no head for scores in transformers, and what `sft.dpo.run` raises.
    """
    assert config.reward_model is not None
    _check_head(config)
    with stage_folder(config, "reward_model", "reward model") as folder:
        prepared = prepare_pairs(config, config.reward_model, "reward_model", folder)
        trainer = new_trainer(prepared)
        train_pairs(prepared, trainer, MEASURES)
        trainer.model.save_pretrained(folder)
    return config.run_dir / "reward_model"


def _check_head(config: ExperimentConfig) -> None:
    path = config.policy.path
    kind = AutoConfig.from_pretrained(str(path), local_files_only=True)
    if type(kind) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        wrong = f"transformers has no model for sequence classification of the kind {kind.model_type} ({path})"
        fix = "choose a policy of another kind, such as Llama or Qwen3, or train the policy itself: python -m sft dpo"
        raise ConfigError([Problem(config.place("policy", "path"), "policy.path", wrong, fix)])


def new_trainer(prepared: PreparedPairs) -> "RewardTrainer":
    config = prepared.config
    model = load_reward_model(prepared.policy, config.seed)
    if config.learner.activation_checkpointing:
        recompute_layers(model)
    arguments, order = pair_arguments(prepared, TrlConfig, stage_device(config), pad_to_multiple_of=None)
    return RewardTrainer(
        folded=FoldedWeights(model, config.precision),
        order=order,
        model=model,
        args=arguments,
        train_dataset=pair_dataset(prepared.rows),
        eval_dataset=pair_dataset(prepared.heldout) if prepared.heldout else None,
    )


def load_reward_model(path: Path, seed: int) -> PreTrainedModel:
    """A reward model, or a policy with a new head, with float32 weights.

    Raises `IncompleteCheckpointError` when others than the head's weights are missing.
    """
    set_seed(seed)
    with suppress_seqcls_warning():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(path), num_labels=1, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    if missing := sorted(name for name in report["missing_keys"] if name.startswith(f"{model.base_model_prefix}.")):
        raise IncompleteCheckpointError(
            f"{path}: {len(missing)} weights are missing, first {missing[0]!r}; give a complete checkpoint"
        )
    return model


class RewardTrainer(StageTrainer, TrlRewardTrainer):
    """trl's trainer for rows that are tokens already.

    It pads with the tokenizer's padding token, which it writes into the model's configuration: the score is read at the
    last other token.
    """

    section = "reward_model"

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        folded: FoldedWeights,
        order: Sequence[int],
        train_dataset: Dataset,
        **arguments: Any,
    ) -> None:
        """`order` are the rows of all steps."""
        self.folded, self._ranks, self._passes = folded, ALONE, model
        super().__init__(model=model, train_dataset=train_dataset.select(order), **arguments)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Into tensors as they were first held: elsewhere in memory products of matrices may round otherwise."""
        saved = load_reward_model(Path(resume_from_checkpoint), self.args.seed)
        self.model.load_state_dict(saved.state_dict())
