"""How is the supervised stage trained?"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rl.config.section import NonNegative, Positive, Section, Share


class SftConfig(Section):
    """The supervised stage: next-token prediction on gold conversations; only assistant tokens enter the loss."""

    num_steps: Positive = 300
    """Optimiser steps."""
    num_conversations: Positive = 20_000
    """Gold conversations drawn from the environments' training splits, in proportion to `environments.*.weight`."""
    data: Path | None = None
    """JSONL file or `datasets` folder of conversations to train on instead of gold conversations."""
    batch_size: Positive = 32
    """Conversations per optimiser step."""
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
