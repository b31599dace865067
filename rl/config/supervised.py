"""How is the supervised stage trained, and on which data?"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rl.config.learner import AdapterConfig
from rl.config.section import NonNegative, Positive, Section, Share


class SftConfig(Section):
    """The supervised stage: next-token prediction on your conversations, or on gold ones, which the environments' own
    perfect replies make; only replies enter the loss."""

    num_steps: Positive = 300
    """Optimiser steps."""
    num_conversations: Positive = 20_000
    """Gold conversations drawn from the environments' training splits, in proportion to `environments.*.weight`."""
    data: Path | None = None
    """Conversations to train on instead of gold conversations: a file (JSONL, a JSON list, either with gzip, or
    Parquet), a folder of JSONL or Parquet files, a folder that `save_to_disk` of `datasets` wrote, or a data set of the
    Hugging Face hub (`user/name`)."""
    data_split: str = "train"
    """Split of a data set or folder."""
    data_subset: str | None = None
    """Subset of a data set of the hub that has several."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the conversations that is never trained. Its loss is measured instead, so as to see when the policy only
    learns its rows by heart. 0, because a stage trains all that it is given unless it is told not to."""
    heldout_every: Positive = 50
    """Steps between measurements of the held-out loss. It is always measured after the last step."""
    adapter: AdapterConfig | None = None
    """A low-rank adapter (LoRA) to train instead of all weights; `adapter: {}` uses its defaults. The result is a whole
    policy, with the adapter merged. Reinforcement learning starts from it, and trains all of its weights unless
    `learner.adapter` is set too."""
    batch_size: Positive = 32
    """Conversations per optimiser step; a multiple of `learner.num_ranks`, whose ranks train the stage too."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of the cosine schedule."""
    warmup_steps: NonNegative = 20
    """Steps over which the learning rate rises linearly from 0."""
    no_thinking_share: Share = 0.1
    """Share of gold conversations that are trained with thinking off, their reasoning removed."""
    truncated_share: Share = 0.0
    """Share of gold conversations whose reasoning is cut at a random budget. The prompt states the budget, and the
    answer is kept."""
    giving_up_share: Share = 0.0
    """Share of gold conversations in which the assistant gives up at once. They imitate imperfect demonstrations, which
    reinforcement learning then has to correct."""


def hub_name(data: Path) -> str | None:
    """The name of the data set on the Hugging Face hub that `sft.data` means; None if it means a file or folder."""
    is_file = data.exists() or data.name.endswith((".jsonl", ".json", ".gz", ".parquet"))
    return None if is_file or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(data)) else str(data)
