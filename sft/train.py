"""How does the supervised stage train? Next-token prediction with trl's `SFTTrainer`, on assistant tokens only.

Rows come tokenised from `rl.chat.chat`, so that training sees the ids that rollouts will see. The rows of a micro-batch
are a tree of their prefixes, without padding (`sft.loss`); where a model cannot take that, rows of similar length.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedModel, PrinterCallback
from trl.trainer.sft_config import SFTConfig as TrlConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rl.config.experiment import ExperimentConfig
from rl.learner.adapter import describe_adapter
from rl.learner.state import save_weights
from rl.policy_checks import rate_warning
from rl.ranks import ALONE, Ranks
from rl.run_log import run_log
from rl.runs.files import storing
from rl.runs.sinks.opened import OpenSinks
from rl.runs.versions import start_line
from rl.stop import handled_signals
from rl.weights.merged import adapted_weights, merged_state
from sft.checkpoints import Checkpoints, discard, remember_trees, remembered_trees
from sft.data import UNTRAINED, Row, training_order
from sft.heldout import Measurements
from sft.precision import FoldedSteps, load_trained
from sft.prepared import Prepared, prepare_stage, replace_folder
from sft.progress import StepMetrics
from sft.rows import SftDataError
from sft.trainer import Trainer

logger = logging.getLogger(__name__)


def run(config: ExperimentConfig, ranks: Ranks = ALONE) -> Path:
    """Train as `config.sft` says and return the checkpoint's folder, `<run_dir>/sft`.

    The folder appears only when it is complete. A stopped stage continues where it stopped, with any number of ranks.
    With `policy.build`, the random policy is first written to `<run_dir>/policy`. If one rank raises, all raise.
    Raises `sft.rows.SftDataError`, `rl.learner.policy.IncompleteCheckpointError`, `rl.chat.format.ChatError`, and
    `rl.stop.StopRequested` when a signal stopped training.
    """
    with storing(config.run_dir):
        config.run_dir.mkdir(parents=True, exist_ok=True)
    name = "supervised" if ranks.num == 1 else f"supervised rank {ranks.rank}"
    with run_log(config.run_dir, name, start_line()):
        torch.set_num_threads(max(1, int(config.learner.cpus)))
        partial = config.run_dir / "sft.partial"
        with ranks.together():
            prepared = prepare_stage(config, partial, _say) if ranks.is_first else None
        _train(config, ranks.from_first(prepared), partial, ranks)
        if ranks.is_first:
            discard(partial)
            replace_folder(partial, config.run_dir / "sft")
        return config.run_dir / "sft"


def _train(config: ExperimentConfig, prepared: Prepared, folder: Path, ranks: Ranks) -> None:
    sft, checkpoint = config.sft, prepared.checkpoint
    assert sft is not None
    rows, heldout, num_steps = prepared.rows, list(prepared.heldout), sum(prepared.counts) // sft.batch_size
    device = _device(config, ranks)
    takes_trees = remembered_trees(folder) if checkpoint else None
    model, folded, loss = load_trained(config, prepared.policy, checkpoint, ranks, device, takes_trees)
    if checkpoint is None and ranks.is_first:
        remember_trees(folder, bool(loss and loss.takes_trees))
    most_tokens = config.learner.tokens_per_micro_batch if loss and loss.takes_trees else None
    if sft.loss == "conversation" and loss is None:
        raise SftDataError(
            f"sft.loss: conversation needs the loss that the stage computes itself, and {prepared.policy} needs trl's"
            " (the log says why); choose sft.loss: token"
        )
    order, num_micro_batches = training_order(
        rows, num_steps, sft.batch_size, config.seed, ranks.num, most_tokens, prepared.counts
    )
    arguments = trl_config(config, folder, num_steps, num_micro_batches, device, ranks)
    if ranks.num > 1:  # accelerate would fill the last batches with rows that count twice
        heldout += [UNTRAINED] * (-len(heldout) % (arguments.per_device_eval_batch_size * ranks.num))
    checkpoints = Checkpoints(num_steps, ranks)
    callbacks = [FoldedSteps(folded), checkpoints, *([Measurements(sft.heldout_every)] if heldout else [])]
    with contextlib.ExitStack() as open:
        if ranks.is_first:
            for line in _begun(config, prepared, folded.describe() + describe_adapter(model)):
                _say(line)
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
            train_dataset=_dataset(rows).select(order),
            eval_dataset=_dataset(heldout) if heldout else None,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=prepared.pad_id),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        with handled_signals():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if checkpoints.stop is not None:
        raise checkpoints.stop
    _save(model, folder, ranks)
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


def _save(model: PreTrainedModel, folder: Path, ranks: Ranks) -> None:
    """Write the policy as a Hugging Face folder, with its adapter merged."""
    if not any(adapted_weights(model)):
        save_weights(model, folder, ranks)
    elif ranks.is_first:
        model.save_pretrained(folder, state_dict=merged_state(model))
    if ranks.is_first and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _dataset(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _device(config: ExperimentConfig, ranks: Ranks) -> torch.device:
    is_cpu = not torch.cuda.is_available() or (ranks.num > 1 and not config.learner.gpus)
    return torch.device("cpu" if is_cpu else "cuda")


def trl_config(
    config: ExperimentConfig,
    folder: Path,
    num_steps: int,
    num_micro_batches: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> TrlConfig:
    assert config.sft is not None
    arguments = TrlConfig(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=config.sft.batch_size // num_micro_batches,
        per_device_eval_batch_size=config.sft.batch_size // num_micro_batches,
        gradient_accumulation_steps=num_micro_batches // ranks.num,
        learning_rate=config.sft.learning_rate,
        warmup_steps=config.sft.warmup_steps,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=config.precision.arithmetic == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",  # `Checkpoints` decides when
        log_level_replica="error",  # warnings are those of all ranks
        log_on_each_node=False,
        report_to="none",
        dataloader_pin_memory=False,
    )
    # Without a launcher transformers counts all visible GPUs and wraps the model in DataParallel: every step would take
    # `n_gpu` times `batch_size` rows. trl refuses that, and the learner uses one device too.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _say(text: str) -> None:
    Console().print(text)
    logger.info("%s", text)
