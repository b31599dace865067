"""How does the supervised stage load a policy and train it in its number format? As the learner does.

Weights are folded once per step; with an adapter the base is folded once, and frozen.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from rl.config.experiment import ExperimentConfig
from rl.config.learner import AdapterConfig
from rl.learner.adapter import add_adapter, load_adapter, merge_experts_in_passes
from rl.learner.forward import UnsupportedHeadError, check_head, policy_logprobs
from rl.learner.passes import Score
from rl.learner.policy import load_policy
from rl.learner.recompute import recompute_layers
from rl.learner.sharding import load_sharded, load_sharded_policy
from rl.learner.trees import let_take_trees, take_trees
from rl.precision.folded import FoldedWeights
from rl.ranks import Ranks
from sft.loss import RowLoss, check_routers

ADAPTER = "adapter"
"""Folder of the adapter in a checkpoint of the stage."""
logger = logging.getLogger(__name__)


def load_trained(
    config: ExperimentConfig,
    policy: Path,
    checkpoint: Path | None,
    ranks: Ranks,
    device: torch.device,
    adapter: AdapterConfig | None = None,
    takes_trees: bool | None = None,
) -> tuple[PreTrainedModel, FoldedWeights, RowLoss | None]:
    """The policy that the stage trains, as it begins or as the checkpoint left it; of several ranks each holds a slice.

    Also how its loss is computed; None leaves that to trl. Whether it takes trees is tried, if `takes_trees` does not
    say it. With an adapter, which is added, each rank holds the whole. Raises `IncompleteCheckpointError` and
    `rl.learner.adapter.AdapterError`.
    """
    if adapter is None and ranks.num > 1:
        model, score = _sharded(config, checkpoint or policy, ranks, device)
    else:
        model, score = _whole(config, policy if adapter is not None else checkpoint or policy, device)
    if config.learner.activation_checkpointing:
        recompute_layers(model)
    loss = None
    if score is not None:
        if takes_trees is None:
            takes_trees = config.learner.share_prefixes and _let_take_trees(config, model, score)
        elif takes_trees:
            take_trees(model)
        loss = RowLoss(score, device, takes_trees)
    folded = FoldedWeights(model, config.precision, ranks)
    if adapter is not None:
        add_adapter(model, adapter, config.seed)
        if loss is not None:
            merge_experts_in_passes(model)
        folded.freeze()
        if checkpoint is not None:
            load_adapter(model, checkpoint / ADAPTER)
    return model, folded, loss


def _sharded(
    config: ExperimentConfig, path: Path, ranks: Ranks, device: torch.device
) -> tuple[PreTrainedModel, Score | None]:
    once = config.learner.exchange == "step"
    try:
        check_routers(path)
        score = load_sharded_policy(path, ranks, device, _dtype(config), 1.0, _chunk(config), stays_whole=once)
    except UnsupportedHeadError as error:
        logger.info("the loss is trl's, which is slower: %s", error)
        # Whole weights are float32, as in one process, and autocast rounds them in the pass.
        return load_sharded(path, _itself, ranks, device, torch.float32, stays_whole=once), None
    return score.model, score


def _whole(config: ExperimentConfig, path: Path, device: torch.device) -> tuple[PreTrainedModel, Score | None]:
    model = load_policy(path)
    model.to(device)  # type: ignore[arg-type]
    try:
        check_routers(path)
        check_head(model)
    except UnsupportedHeadError as error:
        logger.info("the loss is trl's, which is slower: %s", error)
        return model, None
    return model, partial(policy_logprobs, model, dtype=_dtype(config), temperature=1.0, chunk_tokens=_chunk(config))


def _let_take_trees(config: ExperimentConfig, model: PreTrainedModel, score: Score) -> bool:
    model.train()  # tried as it is trained: trees have no dropout
    return let_take_trees(model, score, _dtype(config), model.device)


def _dtype(config: ExperimentConfig) -> torch.dtype:
    return getattr(torch, config.precision.arithmetic)


def _chunk(config: ExperimentConfig) -> int:
    return config.learner.logprob_chunk_tokens


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
