"""How does trl's trainer train a policy that it did not load, and that several ranks may hold together?

Each rank takes its share of a step's micro-batches. The gradient is that of one process: losses are divided by the
trained tokens, or the conversations, of the whole step, and gradients are added up over the ranks
(`rl.learner.sharding`, `rl.learner.optimizer`). transformers leaves a model alone that says that it is distributed
already.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers import Trainer as TransformersTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from rl.algorithms.corrections import NonFiniteError
from rl.config.preferences import PairStage
from rl.learner.adapter import save_matrices
from rl.learner.optimizer import clip_gradients, rate_factor
from rl.learner.policy import load_policy
from rl.learner.sharding import after_an_error, assert_in_slices, exchange_with
from rl.learner.state import load_weights_and_moments, save_moments, save_weights
from rl.precision.folded import FoldedWeights
from rl.ranks import Ranks
from rl.weights.merged import adapted_weights
from sft.data import IGNORED_LABEL, Row
from sft.loss import RowLoss
from sft.precision import ADAPTER


class StageTrainer(TransformersTrainer):
    """What all stages change of trl's trainers: folded weights in measurements, checkpoints in our form, no model card,
    the learner's schedule of rates, no update that is not finite.

    A base class that stands before one of trl's trainers.
    """

    model: PreTrainedModel
    folded: FoldedWeights
    section: Literal["sft"] | PairStage
    """The stage's, in the configuration."""
    _ranks: Ranks
    _passes: object
    _step_loss: Tensor | float = 0.0
    """Sum over the micro-batches of the step that were computed; of this rank alone."""

    def evaluate(self, *arguments: Any, **more: Any) -> dict[str, float]:
        try:
            with self.folded.in_place():
                return super().evaluate(*arguments, **more)
        finally:
            after_an_error(self._passes)  # no backward pass has let go of whole weights

    def training_step(self, *arguments: Any, **more: Any) -> Tensor:
        loss = super().training_step(*arguments, **more)
        self._step_loss = self._step_loss + loss
        return loss

    def _get_grad_norm(self, *arguments: Any, **more: Any) -> float:
        """The gradient's norm, which is asked for before each update. Raises `NonFiniteError`."""
        found: Any = super()._get_grad_norm(*arguments, **more)  # a tensor or a number
        norm = float(found)
        loss = self._ranks.sum(torch.as_tensor(self._step_loss).clone()).item()  # all ranks must decide alike
        self._step_loss = 0.0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(
                f"step {self.state.global_step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}. The step is"
                f" not trained, and no checkpoint replaced. Lower {self.section}.learning_rate"
                f" ({self.args.learning_rate:g}) and start again; if it is the first step, look for weights that are"
                " not finite in policy.path. precision float32 rules out overflow"
            )
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Warmup and cosine as the learner has them: transformers' first update would have a rate of 0."""
        warmup = {"warmup_steps": int(self.args.warmup_steps), "num_steps": num_training_steps}
        stepped: Any = optimizer or self.optimizer
        schedule = LambdaLR(stepped, partial(rate_factor, **warmup, schedule="cosine"))
        self.lr_scheduler = schedule
        return schedule

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy, or only its adapter: the base does not change."""
        assert output_dir is not None
        if any(adapted_weights(self.model)):
            if self._ranks.is_first:
                save_matrices(self.model, Path(output_dir) / ADAPTER)
            return
        save_weights(self.model, Path(output_dir), self._ranks)
        if self._ranks.is_first and self.processing_class is not None:  # trl looks for it beside the weights
            self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_moments(self.model, self._adamw, Path(output_dir), self._ranks, with_weights=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The moments; rates are a function of the step, and of how many groups of parameters there are."""
        if checkpoint is None:
            return
        load_weights_and_moments(self.model, self._adamw, Path(checkpoint), load_policy, with_weights=False)
        schedule, step = self.lr_scheduler, self.state.global_step
        assert isinstance(schedule, LambdaLR)
        rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        now = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        schedule.load_state_dict(schedule.state_dict() | now)
        for group, rate in zip(self._adamw.param_groups, rates, strict=True):
            group["lr"] = rate

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        wrapped: Any = self.optimizer  # by accelerate
        return wrapped.optimizer

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Nothing: transformers would look for the names in memory, but experts are stored under others."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the folder belongs to a run, which says what was done."""


class _MicroBatches(torch.utils.data.Dataset[list[dict[str, Any]]]):
    """Rows, of which each item holds those of a micro-batch: micro-batches may have differently many."""

    def __init__(self, rows: Dataset, micro_batches: Sequence[Sequence[int]]) -> None:
        self._rows, self._micro_batches = rows, micro_batches

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, place: int) -> list[dict[str, Any]]:
        return self._rows.select(self._micro_batches[place]).to_list()


class Trainer(StageTrainer, SFTTrainer):
    """trl's trainer for a model that is already the checkpoint's, and for micro-batches that are already chosen.

    Its `evaluate` measures the mean loss of the trained tokens of all held-out rows (nats a token), with the folded
    weights. Its checkpoints can be taken over by any number of ranks.
    """

    section = "sft"

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        folded: FoldedWeights,
        loss: RowLoss | None,
        heldout: Sequence[Row],
        ranks: Ranks,
        exchanges_once: bool,
        train_dataset: Dataset,
        micro_batches: Sequence[Sequence[int]],
        data_collator: DataCollatorForLanguageModeling,
        conversations_per_step: int | None = None,
        **arguments: Any,
    ) -> None:
        """`loss` computes that of a micro-batch; None leaves it to trl. `heldout` are the rows of `eval_dataset`; with
        several ranks, they fill whole batches of all ranks. `micro_batches` are the places in `train_dataset` of the
        rows of each, in training order; trl's batch is one of them. `conversations_per_step` makes the loss that is
        trained the mean of so many conversations, which needs `loss`; None is the mean of all trained tokens.
        """
        assert_in_slices(model)  # trl makes the optimiser
        model._is_distributed_loading_by_transformers = True
        super().__init__(model=model, train_dataset=train_dataset, data_collator=data_collator, **arguments)
        self.train_dataset = _MicroBatches(train_dataset, micro_batches)
        self.data_collator = partial(_collated, collator=data_collator)
        self.folded, self._loss = folded, loss
        self._passes: object = self.model if loss is None else loss.score
        self._ranks, self._exchanges_once = ranks, exchanges_once
        self._conversations_per_step = conversations_per_step
        if loss is not None:  # else transformers would take the mean of the micro-batches' means for some models
            self.model_accepts_loss_kwargs = True
        num_tokens = sum(label != IGNORED_LABEL for row in heldout for label in row.labels)
        self._tokens_per_row = num_tokens / max(1, len(heldout))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As in one process: trl multiplies by the number of ranks, for gradients that are averaged over them."""
        if self._loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch) / self._ranks.num
        assert not return_outputs
        if self.model.training:
            num_tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum())
            self._total_train_tokens += int(num_tokens.sum())  # type: ignore[union-attr]
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        if self.model.training and self._conversations_per_step is not None:
            return self._loss(inputs, by_conversation=True) / self._conversations_per_step
        return self._loss(inputs) / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def training_step(self, *arguments: Any, **more: Any) -> Tensor:
        """Add a micro-batch's gradients; the loss that is returned will be averaged over the ranks."""
        exchange_with(self._passes, is_last=not self._exchanges_once or self.accelerator.sync_gradients)
        return super().training_step(*arguments, **more) * self._ranks.num

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: `clip_gradients` adds up the gradients of parameters that each rank holds whole."""

    def _clip_grad_norm(self, model: nn.Module) -> float:
        return clip_gradients(self.model, self.args.max_grad_norm, self._ranks)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """A batch's loss, divided so that transformers' mean over the rows becomes one over all of their tokens."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[assignment]
        with torch.no_grad(), self.compute_loss_context_manager():
            num_items = self._tokens_per_row * len(inputs["labels"])
            return self.compute_loss(model, inputs, num_items_in_batch=num_items), None, None  # type: ignore[return-value]


def _collated(examples: Sequence[Any], collator: DataCollatorForLanguageModeling) -> dict[str, Tensor]:
    """One micro-batch, or rows that are measured."""
    (rows,) = examples if isinstance(examples[0], list) else (examples,)
    return collator(rows)
