"""How is a policy, or a reward model, trained on preference pairs: a chosen and a rejected reply to the same prompt?"""

from typing import Annotated, Literal

from pydantic import Field

from rl.config.learner import AdapterConfig, default_warmup
from rl.config.mixture import SourceConfig
from rl.config.section import DataPath, NonNegative, Positive, Section

PairStage = Literal["dpo", "reward_model"]
"""Names of the stages that train on pairs: of their sections, and of their folders in the run folder."""

WARMUP_STEPS = 5
"""`warmup_steps` of a long stage, unless it is set."""


class PairsConfig(Section):
    """What the stages that train on preference pairs have in common."""

    data: DataPath
    """The pairs: a file (JSONL, a JSON list, either with gzip, or Parquet), a folder of JSONL or Parquet files, a
    folder that `save_to_disk` of `datasets` wrote, or a data set of the Hugging Face hub (`user/name`)."""
    data_split: str = "train"
    """Split of a data set or folder."""
    data_subset: str | None = None
    """Subset of a data set of the hub that has several."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts whose pairs are never trained. Loss, accuracy and margin are measured on them, because those
    of the trained pairs also rise when the pairs are only learnt by heart."""
    heldout_every: Positive = 10
    """Steps between measurements of the held-out pairs. They are also measured before the first step and after the
    last."""
    num_steps: Positive = 50
    """Optimiser steps."""
    batch_size: Positive = 128
    """Pairs per optimiser step."""
    warmup_steps: NonNegative | None = None
    """Steps over which the learning rate rises linearly to its peak; the first has a rate above 0. null is 5, or a
    tenth of the stage's steps if that is less."""

    def warmup_of(self, num_steps: int) -> int:
        """Steps of warmup of a stage of so many steps."""
        return default_warmup(WARMUP_STEPS, num_steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The one source, as the supervised stage has several."""
        return (SourceConfig(path=self.data, split=self.data_split, subset=self.data_subset, weight=1.0),)


class DpoConfig(PairsConfig):
    """Direct Preference Optimisation (https://arxiv.org/abs/2305.18290), `python -m sft dpo`: the policy raises the
    likelihood of chosen above rejected replies, relative to the policy that it starts from."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of the cosine schedule."""
    beta: Annotated[float, Field(gt=0)] = 0.05
    """Strength of the KL penalty that keeps the policy near the one that it starts from: larger means nearer."""
    sft_coefficient: Annotated[float, Field(ge=0)] = 0.2
    """Coefficient of the supervised loss of the chosen replies (nats a token), which keeps their likelihood from
    falling together with that of the rejected ones. 0 leaves it out."""
    adapter: AdapterConfig | None = None
    """A low-rank adapter (LoRA) to train instead of all weights; `adapter: {}` uses its defaults. The result is a whole
    policy, with the adapter merged."""


class RewardModelConfig(PairsConfig):
    """A Bradley-Terry reward model, `python -m sft reward-model`: the policy with a scalar head in place of its
    language-model head, trained to score chosen above rejected replies."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of the cosine schedule."""
