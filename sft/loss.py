"""How is the loss of a micro-batch's rows computed? As the learner computes logprobs (`rl.learner.forward`).

Only trained tokens go through the head, no padding is computed, and what rows begin with is computed once:
instructions, descriptions of tools. trl computes every position of every row, and does it for models that need that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from rl.data_types import Batch
from rl.learner.batching import to_device, with_tree
from rl.learner.forward import UnsupportedHeadError
from rl.learner.passes import Score
from sft.data import IGNORED_LABEL


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The sum of the losses of a micro-batch's trained tokens, in nats; the micro-batch as trl's collator makes it.

    With `by_conversation`, the sum of the means of the rows: the second stage of Nemotron 3 Super (arXiv 2604.12374,
    section 3.1) takes the mean loss of each conversation, and then the mean of the conversations.
    """

    score: Score
    device: torch.device
    takes_trees: bool
    """Whether no padding is computed, and what rows begin with once."""

    def __call__(self, inputs: Mapping[str, Tensor], *, by_conversation: bool = False) -> Tensor:
        logprobs_BT, _ = self.scores(inputs)
        if by_conversation:
            num_B = _batch(inputs).loss_mask_BT.sum(dim=1).clamp(min=1).to(logprobs_BT.device)
            return -(logprobs_BT.sum(dim=1) / num_B).sum()
        return -logprobs_BT.sum()

    def scores(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logprob and entropy of each token, in nats; 0 where it is not trained."""
        batch = _batch(inputs)
        return self.score(to_device(with_tree(batch) if self.takes_trees else batch, self.device))


def check_routers(policy: Path) -> None:
    """Raise `UnsupportedHeadError` if trl adds a loss of the routers, as it does for models that know one."""
    config = AutoConfig.from_pretrained(policy).get_text_config()
    coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if hasattr(config, "output_router_logits") and coefficient != 0.0:
        raise UnsupportedHeadError(f"{policy} has a loss of its routers (router_aux_loss_coef {coefficient})")


def _batch(inputs: Mapping[str, Tensor]) -> Batch:
    """On the CPU, where trees are made."""
    ids_BT, mask_BT, labels_BT = (inputs[name].cpu() for name in ("input_ids", "attention_mask", "labels"))
    trained_BT = labels_BT != IGNORED_LABEL
    trained_BT[:, 0] = False  # nothing predicts a first token
    return Batch(
        token_ids_BT=ids_BT,
        attention_mask_BT=mask_BT.bool(),
        loss_mask_BT=trained_BT,
        columns={},
        advantages_BT=torch.zeros(ids_BT.shape),
        env_ids=("",) * len(ids_BT),
        num_loss_tokens=int(trained_BT.sum()),
        num_loss_rows=len(ids_BT),
    )
