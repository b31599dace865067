"""What have the stages that trl's trainers run in common: the folder, the device, the trainer's arguments, saving?"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from transformers import PreTrainedModel, TrainingArguments

from rl.config.experiment import ExperimentConfig
from rl.learner.state import save_weights
from rl.ranks import ALONE, Ranks
from rl.run_log import run_log
from rl.runs.files import storing
from rl.runs.versions import start_line
from rl.weights.merged import adapted_weights, merged_state
from sft.checkpoints import discard

A = TypeVar("A", bound=TrainingArguments)


class Steps(Protocol):
    """Of a stage's section, what its steps are; their number may be no key of it."""

    @property
    def learning_rate(self) -> float: ...
    def warmup_of(self, num_steps: int) -> int: ...


@contextlib.contextmanager
def stage_folder(config: ExperimentConfig, name: str, process: str, ranks: Ranks = ALONE) -> Iterator[Path]:
    """A folder beside `<run_dir>/<name>`, which it becomes when the block has ended without an error.

    Inside the block the run's log is written, where `process` is this process's name.
    """
    with storing(config.run_dir):
        config.run_dir.mkdir(parents=True, exist_ok=True)
    with run_log(config.run_dir, process, start_line()):
        torch.set_num_threads(max(1, int(config.learner.cpus)))
        partial = config.run_dir / f"{name}.partial"
        yield partial
        if ranks.is_first:
            discard(partial)
            replace_folder(partial, config.run_dir / name)


def stage_device(config: ExperimentConfig, ranks: Ranks = ALONE) -> torch.device:
    is_cpu = not torch.cuda.is_available() or (ranks.num > 1 and not config.learner.gpus)
    return torch.device("cpu" if is_cpu else "cuda")


def stage_arguments(
    kind: type[A],
    config: ExperimentConfig,
    steps: Steps,
    folder: Path,
    num_steps: int,
    num_micro_batches: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    **own: Any,
) -> A:
    """The arguments of one of trl's trainers; `own` are those that only this trainer takes."""
    arguments = kind(
        output_dir=str(folder),
        max_steps=num_steps,
        gradient_accumulation_steps=num_micro_batches // ranks.num,
        learning_rate=steps.learning_rate,
        warmup_steps=steps.warmup_of(num_steps),  # of the schedule of `sft.trainer.StageTrainer`
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=config.precision.arithmetic == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        gradient_checkpointing=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it shows 0 in place of NaN
        disable_tqdm=True,
        save_strategy="no",  # `Checkpoints` decides when
        log_level_replica="error",  # warnings are those of all ranks
        log_on_each_node=False,
        report_to="none",
        dataloader_pin_memory=False,
        **own,
    )
    # Without a launcher transformers counts all visible GPUs and wraps the model in DataParallel: every step would take
    # `n_gpu` times `batch_size` rows. trl refuses that, and the learner uses one device too.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def save_policy(model: PreTrainedModel, folder: Path, ranks: Ranks = ALONE) -> None:
    """Write the policy as a Hugging Face folder, with its adapter merged."""
    if not any(adapted_weights(model)):
        save_weights(model, folder, ranks)
    elif ranks.is_first:
        model.save_pretrained(folder, state_dict=merged_state(model))
    if ranks.is_first and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Replace an older folder by a complete one."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
