"""How does a stage train on preference pairs: which are trained in which order, what is measured, when does it end?

The trainers are those of `sft.dpo` and `sft.reward_model`. One process trains.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, TrainingArguments

from rl.chat.chat import load_chat
from rl.config.experiment import ExperimentConfig
from rl.config.preferences import DpoConfig, PairStage, RewardModelConfig
from rl.policy_checks import rate_warning
from rl.runs.sinks.opened import OpenSinks
from rl.stop import handled_signals
from sft.checkpoints import Checkpoints, prepare
from sft.data import IGNORED_LABEL
from sft.heldout import Measurements, split_rows
from sft.micro_batches import training_order
from sft.pairs import PairRow, flat, read_pairs, token_pairs
from sft.plain_thinking import plain_thinking
from sft.precision import FoldedSteps
from sft.progress import StepMetrics
from sft.saying import say
from sft.stage import stage_arguments
from sft.trainer import StageTrainer

SHOWN = ("accuracy", "margin")
"""Measures beside the progress bar."""
A = TypeVar("A", bound=TrainingArguments)


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """What a stage trains."""

    config: ExperimentConfig
    section: DpoConfig | RewardModelConfig
    name: PairStage
    folder: Path
    """Where it writes until it is complete."""
    policy: Path
    rows: list[PairRow]
    heldout: list[PairRow]
    checkpoint: Path | None
    """Of the stopped stage that is continued."""


def prepare_pairs(
    config: ExperimentConfig, section: DpoConfig | RewardModelConfig, name: PairStage, folder: Path
) -> PreparedPairs:
    """Read the pairs, and tell what is trained. Raises `SftDataError` and `rl.chat.format.ChatError`."""
    policy = config.policy.path
    assert policy is not None  # `rl.config.read.pair_stage_problems`
    chat = load_chat(policy, config.policy.chat)
    pairs = read_pairs(section, name, has_thinking=chat.has_thinking)
    sides = [one for pair in pairs for one in (pair.chosen, pair.rejected)]
    if warning := plain_thinking(sides, chat, policy):
        say(warning)
    all_rows, skipped = token_pairs(pairs, chat, config)
    rows, heldout = split_rows(all_rows, section.heldout_share, config.seed, name, "prompts")
    for line in _described(rows, heldout, skipped):
        say(line)
    has_adapter = isinstance(section, DpoConfig) and section.adapter is not None
    if not has_adapter and (warning := rate_warning(policy, f"{name}.learning_rate", section.learning_rate)):
        say(warning)
    checkpoint = prepare(folder, flat(all_rows), config, name, policy)
    if checkpoint is not None:
        say(f"continuing the stopped stage from {checkpoint.name}")
    return PreparedPairs(config, section, name, folder, policy, rows, heldout, checkpoint)


def _described(rows: Sequence[PairRow], heldout: Sequence[PairRow], skipped: Mapping[str, int]) -> list[str]:
    conversations = flat(rows)
    num_tokens = sum(map(len, conversations))
    num_trained = sum(label != IGNORED_LABEL for row in conversations for label in row.labels)
    left_out = "".join(f"; {num:,} {reason} skipped" for reason, num in skipped.items() if num)
    lines = [f"{len(rows):,} pairs, {num_tokens:,} tokens, {num_trained:,} of them in replies{left_out}"]
    return [*lines, f"{len(heldout):,} pairs are held out"] if heldout else lines


def pair_arguments(prepared: PreparedPairs, kind: type[A], device: torch.device, **own: Any) -> tuple[A, list[int]]:
    """The arguments of trl's trainer, and the order in which it takes the rows.

    Micro-batches hold equally many pairs, also those of measurements: trl's measures are means over micro-batches.
    """
    config, section = prepared.config, prepared.section
    steps = training_order(
        prepared.rows,
        section.num_steps,
        section.batch_size,
        config.seed,
        tokens_per_micro_batch=config.learner.tokens_per_micro_batch,
        is_padded=True,
    )
    num_pairs, num_heldout = len(steps[0][0]), len(prepared.heldout)
    evenly = (num for num in range(min(num_pairs, num_heldout), 0, -1) if num_heldout % num == 0)
    own |= {"eval_on_start": bool(prepared.heldout) and prepared.checkpoint is None, "max_length": None}
    own |= {"per_device_train_batch_size": num_pairs, "per_device_eval_batch_size": next(evenly, num_pairs)}
    arguments = stage_arguments(kind, config, section, prepared.folder, section.num_steps, len(steps[0]), device, **own)
    return arguments, [row for step in steps for cut in step for row in cut]


def pair_dataset(rows: Sequence[PairRow]) -> Dataset:
    """The rows as trl's trainers take them. Their `labels` are ours: which tokens the policy would have sampled."""
    disable_progress_bars()
    sides = {"chosen": [row.chosen for row in rows], "rejected": [row.rejected for row in rows]}
    ids = {f"{side}_ids": [row.input_ids for row in of_side] for side, of_side in sides.items()}
    labels = {f"{side}_labels": [row.labels for row in of_side] for side, of_side in sides.items()}
    return Dataset.from_dict(ids | labels)


def train_pairs(prepared: PreparedPairs, trainer: StageTrainer, measures: Mapping[str, str]) -> None:
    """Run the trainer to its end, and save the tokenizer. `measures` are the names of what trl logs, by trl's names.

    Raises `rl.stop.StopRequested` when a signal stopped training; the next start then continues from a checkpoint.
    """
    section, checkpoint = prepared.section, prepared.checkpoint
    checkpoints = Checkpoints(section.num_steps)
    metrics = StepMetrics(
        prepared.folder / "metrics.jsonl",
        lambda: OpenSinks([], prepared.config.run_dir, []),
        title=f"{prepared.name} step",
        measures=measures,
        shown=SHOWN,
    )
    with contextlib.closing(metrics):
        heldout = [Measurements(section.heldout_every)] if prepared.heldout else []
        for callback in (metrics, FoldedSteps(trainer.folded), checkpoints, *heldout):
            trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        with handled_signals():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if checkpoints.stop is not None:
        raise checkpoints.stop
    assert trainer.processing_class is not None
    trainer.processing_class.save_pretrained(prepared.folder)
