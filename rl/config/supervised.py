"""How is the supervised stage trained?"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rl.config.section import NonNegative, Positive, Section, Share


class SftConfig(Section):
    """The supervised stage: next-token training on gold conversations, assistant tokens only."""

    num_steps: Positive = 300
    """Optimiser steps."""
    num_conversations: Positive = 20_000
    """Gold conversations drawn from the environments' training split, by their weights."""
    data: Path | None = None
    """A JSONL file or a `datasets` folder of conversations to train on instead of gold ones."""
    batch_size: Positive = 32
    """Conversations an optimiser step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Peak of the cosine schedule."""
    warmup_steps: NonNegative = 20
    """Steps over which the learning rate rises linearly from 0."""
    no_thinking_share: Share = 0.1
    """Share of gold conversations whose reasoning is removed and whose prompt turns thinking off."""
    truncated_share: Share = 0.0
    """Share of gold conversations whose reasoning is cut at a random budget, which the prompt tells, answer kept."""
    giving_up_share: Share = 0.0
    """Share of gold conversations in which the assistant gives up at once, as imperfect demonstrations do; a habit for
    reinforcement learning to undo."""
