"""How does the supervised stage train? Next-token prediction with trl's `SFTTrainer`, on assistant tokens only.

Rows come tokenised from `rl.chat.chat`, so that training sees the ids that rollouts will see. The rows of a micro-batch
are a tree of their prefixes, without padding (`sft.loss`), and fill it by best fit (`sft.micro_batches`); where a model
cannot take that, they are rows of similar length.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig as TrlConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rl.config.experiment import ExperimentConfig
from rl.learner.adapter import describe_adapter
from rl.policy_checks import rate_warning
from rl.ranks import ALONE, Ranks
from rl.runs.sinks.opened import OpenSinks
from rl.stop import handled_signals
from sft.checkpoints import Checkpoints, remember_trees, remembered_trees
from sft.data import UNTRAINED, Row
from sft.heldout import Measurements
from sft.micro_batches import training_order
from sft.precision import FoldedSteps, load_trained
from sft.prepared import Prepared, prepare_stage
from sft.progress import StepMetrics
from sft.rows import SftDataError
from sft.saying import say
from sft.stage import save_policy, stage_arguments, stage_device, stage_folder
from sft.trainer import Trainer


def run(config: ExperimentConfig, ranks: Ranks = ALONE) -> Path:
    """Train as `config.sft` says and return the checkpoint's folder, `<run_dir>/sft`.

    The folder appears only when it is complete. A stopped stage continues where it stopped, with any number of ranks.
    With `policy.build`, the random policy is first written to `<run_dir>/policy`. If one rank raises, all raise.
    Raises `sft.rows.SftDataError`, `rl.learner.policy.IncompleteCheckpointError`, `rl.chat.format.ChatError`,
    `rl.algorithms.corrections.NonFiniteError`, and `rl.stop.StopRequested` when a signal stopped training.
    """
    name = "supervised" if ranks.num == 1 else f"supervised rank {ranks.rank}"
    with stage_folder(config, "sft", name, ranks) as partial:
        with ranks.together():
            prepared = prepare_stage(config, partial) if ranks.is_first else None
        _train(config, ranks.from_first(prepared), partial, ranks)
    return config.run_dir / "sft"


def _train(config: ExperimentConfig, prepared: Prepared, folder: Path, ranks: Ranks) -> None:
    sft, checkpoint = config.sft, prepared.checkpoint
    assert sft is not None
    rows, heldout, num_steps = prepared.rows, list(prepared.heldout), sum(prepared.counts) // sft.batch_size
    device = stage_device(config, ranks)
    takes_trees = remembered_trees(folder) if checkpoint else None
    model, folded, loss = load_trained(config, prepared.policy, checkpoint, ranks, device, sft.adapter, takes_trees)
    if checkpoint is None and ranks.is_first:
        remember_trees(folder, bool(loss and loss.takes_trees))
    most_tokens = config.learner.tokens_per_micro_batch if loss and loss.takes_trees else None
    if sft.loss == "conversation" and loss is None:
        raise SftDataError(
            f"sft.loss: conversation needs the loss that the stage computes itself, and {prepared.policy} needs trl's"
            " (the log says why); choose sft.loss: token"
        )
    steps = training_order(rows, num_steps, sft.batch_size, config.seed, ranks.num, most_tokens, prepared.counts)
    num_at_once = sft.batch_size // len(steps[0])
    if most_tokens is not None and heldout:
        num_at_once = min(sft.batch_size, max(1, most_tokens // max(map(len, heldout))))
    arguments = trl_config(config, folder, num_steps, len(steps[0]), device, ranks, num_at_once)
    if ranks.num > 1:  # accelerate would fill the last batches with rows that count twice
        heldout += [UNTRAINED] * (-len(heldout) % (arguments.per_device_eval_batch_size * ranks.num))
    checkpoints = Checkpoints(num_steps, ranks)
    callbacks = [FoldedSteps(folded), checkpoints, *([Measurements(sft.heldout_every)] if heldout else [])]
    with contextlib.ExitStack() as open:
        if ranks.is_first:
            for line in _begun(config, prepared, folded.describe() + describe_adapter(model)):
                say(line)
            callbacks.insert(0, open.enter_context(contextlib.closing(_metrics(config, folder))))
        trainer = Trainer(
            folded=folded,
            loss=loss,
            heldout=heldout,
            ranks=ranks,
            exchanges_once=config.learner.exchange == "step",
            conversations_per_step=sft.batch_size if sft.loss == "conversation" else None,
            model=model,
            args=arguments,
            train_dataset=_dataset(rows),
            micro_batches=[cut for step in steps for cut in step],
            eval_dataset=_dataset(heldout) if heldout else None,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=prepared.pad_id),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        with handled_signals():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if checkpoints.stop is not None:
        raise checkpoints.stop
    save_policy(model, folder, ranks)
    if ranks.is_first:
        assert trainer.processing_class is not None
        trainer.processing_class.save_pretrained(folder)


def _begun(config: ExperimentConfig, prepared: Prepared, description: str) -> Iterator[str]:
    assert config.sft is not None
    yield description
    if config.sft.adapter is None and (
        warning := rate_warning(prepared.policy, "sft.learning_rate", config.sft.learning_rate)
    ):
        yield warning
    if prepared.checkpoint is not None:
        yield f"continuing the stopped stage from {prepared.checkpoint.name}"


def _metrics(config: ExperimentConfig, folder: Path) -> StepMetrics:
    sinks = [sink for sink in config.tracking if not sink.is_record]  # the record is that of reinforcement learning
    return StepMetrics(folder / "metrics.jsonl", lambda: OpenSinks(sinks, config.run_dir, []))


def _dataset(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def trl_config(
    config: ExperimentConfig,
    folder: Path,
    num_steps: int,
    num_micro_batches: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    num_heldout_at_once: int = 1,
) -> TrlConfig:
    """For a data set whose items are micro-batches (`sft.trainer.Trainer`)."""
    assert config.sft is not None
    return stage_arguments(
        TrlConfig,
        config,
        config.sft,
        folder,
        num_steps,
        num_micro_batches,
        device,
        ranks,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=num_heldout_at_once,
    )
