"""How does the supervised stage load a policy and train it in its number format? As the learner does.

Weights are folded once per step; with an adapter the base is folded once, and frozen.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from rl.config.experiment import ExperimentConfig
from rl.learner.adapter import add_adapter, load_adapter
from rl.learner.policy import load_policy
from rl.learner.recompute import recompute_layers
from rl.learner.sharding import load_sharded
from rl.precision.folded import FoldedWeights
from rl.ranks import Ranks

ADAPTER = "adapter"
"""Folder of the adapter in a checkpoint of the stage."""


def load_trained(
    config: ExperimentConfig, policy: Path, checkpoint: Path | None, ranks: Ranks, device: torch.device
) -> tuple[PreTrainedModel, FoldedWeights]:
    """The policy that the stage trains, as it begins or as the checkpoint left it; of several ranks each holds a slice.

    With an adapter each rank holds the whole. Raises `IncompleteCheckpointError` and
    `rl.learner.adapter.AdapterError`.
    """
    assert config.sft is not None
    adapter = config.sft.adapter
    if adapter is None and ranks.num > 1:
        # Whole weights are float32, as in one process, and autocast rounds them in the pass.
        once = config.learner.exchange == "step"
        model = load_sharded(checkpoint or policy, _itself, ranks, device, torch.float32, stays_whole=once)
    else:
        model = load_policy(policy if adapter is not None else checkpoint or policy)
        model.to(device)  # type: ignore[arg-type]
    if config.learner.activation_checkpointing:
        recompute_layers(model)
    folded = FoldedWeights(model, config.precision, ranks)
    if adapter is not None:
        add_adapter(model, adapter, config.seed)
        folded.freeze()
        if checkpoint is not None:
            load_adapter(model, checkpoint / ADAPTER)
    return model, folded


def _itself(model: PreTrainedModel) -> PreTrainedModel:
    return model


class FoldedSteps(TrainerCallback):
    """Forward and backward passes of a step see the folded weights, the optimiser the float32 master weights."""

    def __init__(self, folded: FoldedWeights) -> None:
        self._folded = folded

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._folded.put_in()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._folded.take_out()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._folded.refresh()
