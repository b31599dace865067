"""How is a policy trained by Direct Preference Optimisation? With trl's `DPOTrainer`, on rows of tokens.

The loss of a pair is `-log sigmoid(beta * ((p_c - r_c) - (p_r - r_r)))`: p and r are the logprobs of the chosen and of
the rejected replies under the policy, and under the policy that training starts from (Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290, equation 7). Added to it is `sft_coefficient` times the mean negative logprob of all
tokens of the step's chosen replies. trl computes both; logprobs are computed as the learner computes them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig as TrlConfig
from trl.trainer.dpo_trainer import DPOTrainer

from rl.chat.chat import load_chat
from rl.config.experiment import ExperimentConfig
from rl.learner.adapter import describe_adapter, load_adapter
from rl.learner.policy import load_policy
from rl.precision.folded import FoldedWeights
from rl.ranks import ALONE
from rl.weights.merged import adapted_weights
from sft.checkpoints import remember_trees, remembered_trees
from sft.data import IGNORED_LABEL
from sft.loss import RowLoss
from sft.pairs import SIDES
from sft.precision import ADAPTER, load_trained
from sft.preferences import PreparedPairs, pair_arguments, pair_dataset, prepare_pairs, train_pairs
from sft.saying import say
from sft.stage import save_policy, stage_device, stage_folder
from sft.trainer import StageTrainer

MEASURES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
}
"""Their names, by trl's."""


def run(config: ExperimentConfig) -> Path:
    """Train as `config.dpo` says and return the policy's folder, `<run_dir>/dpo`.

    The folder appears only when it is complete; a stopped stage continues where it stopped. Raises
    `sft.rows.SftDataError`, `rl.learner.policy.IncompleteCheckpointError`, `rl.chat.format.ChatError`,
    `rl.algorithms.corrections.NonFiniteError`, and `rl.stop.StopRequested` when a signal stopped training.
    """
    assert config.dpo is not None
    with stage_folder(config, "dpo", "dpo") as folder:
        prepared = prepare_pairs(config, config.dpo, "dpo", folder)
        trainer = new_trainer(prepared)
        train_pairs(prepared, trainer, MEASURES)
        save_policy(trainer.model, folder)
    return config.run_dir / "dpo"


def new_trainer(prepared: PreparedPairs) -> "DpoTrainer":
    """The trainer, with the reference's logprobs of all pairs.

    It begins with the policy also if there is a checkpoint, whose weights come when training starts: the reference is
    the same.
    """
    config, dpo = prepared.config, prepared.config.dpo
    assert dpo is not None
    device = stage_device(config)
    takes_trees = remembered_trees(prepared.folder) if prepared.checkpoint else None
    model, folded, loss = load_trained(config, prepared.policy, None, ALONE, device, dpo.adapter, takes_trees)
    remember_trees(prepared.folder, bool(loss and loss.takes_trees))
    say(folded.describe() + describe_adapter(model))
    say("computing the logprobs of all pairs under the policy that training starts from")
    terms = {"sigmoid": 1.0, "sft": dpo.sft_coefficient}
    used = {name: weight for name, weight in terms.items() if weight}
    arguments, order = pair_arguments(
        prepared,
        TrlConfig,
        device,
        beta=dpo.beta,
        loss_type=list(used),
        loss_weights=list(used.values()),
        precompute_ref_log_probs=True,
    )
    return DpoTrainer(
        folded=folded,
        loss=loss,
        order=order,
        model=model,
        args=arguments,
        train_dataset=pair_dataset(prepared.rows),
        eval_dataset=pair_dataset(prepared.heldout) if prepared.heldout else None,
        data_collator=partial(collate, pad_id=load_chat(prepared.policy, config.policy.chat).pad_id),
    )


def collate(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Rows of `pair_dataset` as trl's DPO loss reads them: first all chosen, then all rejected conversations.

    trl's own collator would train everything after the prompt, also what tools and users say.
    """

    def padded(column: str, value: int) -> Tensor:
        rows = [torch.tensor(example[f"{side}_{column}"]) for side in SIDES for example in examples]
        return pad_sequence(rows, batch_first=True, padding_value=value)

    labels_BT = padded("labels", IGNORED_LABEL)
    lengths_B = torch.tensor([len(example[f"{side}_ids"]) for side in SIDES for example in examples])
    inputs = {
        "input_ids": padded("ids", pad_id),
        "attention_mask": (torch.arange(labels_BT.shape[1]) < lengths_B[:, None]).long(),
        "completion_mask": (labels_BT != IGNORED_LABEL).long(),
    }
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if name in examples[0]:
            inputs[name] = torch.tensor([example[name] for example in examples])
    return inputs


def _chosen_tokens(dataset: Dataset) -> np.ndarray:
    """Number of trained tokens of each row's chosen conversation."""
    return np.array([sum(label != IGNORED_LABEL for label in labels) for labels in dataset["chosen_labels"]])


class DpoTrainer(StageTrainer, DPOTrainer):
    """trl's trainer for rows that are tokens already, with logprobs as the learner computes them."""

    section = "dpo"

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        folded: FoldedWeights,
        loss: RowLoss | None,
        order: Sequence[int],
        args: TrlConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        **arguments: Any,
    ) -> None:
        """`loss` computes logprobs; None leaves that to trl. `order` are the rows of all steps."""
        self.folded, self._ranks, self._passes = folded, ALONE, model
        self._loss = loss
        self._weights = args.loss_weights or [1.0]
        self._tokens_per_pair = _chosen_tokens(train_dataset)[list(order)].reshape(args.max_steps, -1).mean(axis=1)
        self._heldout_tokens_per_pair = _chosen_tokens(eval_dataset).mean() if eval_dataset else 0.0
        with folded.in_place():  # the logprobs of the reference are computed here, once a row
            super().__init__(
                model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **arguments
            )
        assert isinstance(self.train_dataset, Dataset)
        self.train_dataset = self.train_dataset.select(order)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return super().compute_ref_log_probs(self._scored or model, inputs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        self.loss_weights = [self._weights[0], *(weight * self._share(inputs) for weight in self._weights[1:])]
        return super().compute_loss(self._scored or model, inputs, *more, **named)

    def _share(self, inputs: dict[str, Any]) -> float:
        """Chosen tokens of a micro-batch, relative to the mean one's: trl takes the mean over the tokens of each."""
        mask_BT, _ = inputs["completion_mask"].chunk(2)
        step = self.state.global_step
        per_pair = self._tokens_per_pair[step] if self.model.training else self._heldout_tokens_per_pair
        return mask_BT.sum().item() / (per_pair * len(mask_BT))

    @property
    def _scored(self) -> Any:
        return None if self._loss is None else self._outputs

    def _outputs(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        """What trl's patched forward pass returns; measures of the logits, which are not reported, are zeros."""
        assert self._loss is not None
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        logprobs_BT, entropy_BT = (values[:, 1:] for values in self._loss.scores(batch))
        unknown_BT = torch.zeros_like(entropy_BT)
        return SimpleNamespace(
            log_probs=logprobs_BT, entropy=entropy_BT, mean_logits=unknown_BT, is_top1=unknown_BT.bool()
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if any(adapted_weights(self.model)):
            load_adapter(self.model, folder / ADAPTER)
        else:
            self.model.load_state_dict(load_policy(folder).state_dict())
        self.folded.refresh()
