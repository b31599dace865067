"""How is the supervised stage trained, and on which data?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rl.config.learner import AdapterConfig, default_warmup
from rl.config.mixture import PathOrSources, SourceConfig
from rl.config.section import NonNegative, Positive, Section, Share

GOLD_NO_THINKING_SHARE = 0.1
"""`sft.no_thinking_share` of gold conversations, unless it is set."""
WARMUP_STEPS = 20
"""`sft.warmup_steps` of a long stage, unless it is set."""


class SftConfig(Section):
    """The supervised stage: next-token prediction on your conversations, or on gold ones, which the environments' own
    perfect replies make; only replies enter the loss."""

    num_steps: Positive | None = 300
    """Optimiser steps. null if `num_epochs` or the `epochs` of all sources say how long the stage is."""
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    """Length of the stage in place of `num_steps`: how often it goes through its conversations, rounded up to whole
    steps. Of a mixture, those of the sources with a `weight`."""
    num_conversations: Positive = 20_000
    """Gold conversations drawn from the environments' training splits, in proportion to `environments.*.weight`."""
    data: Annotated[Path | tuple[SourceConfig, ...] | None, PathOrSources()] = None
    """Conversations to train on instead of gold conversations: a file (JSONL, a JSON list, either with gzip, or
    Parquet), a folder of JSONL or Parquet files, a folder that `save_to_disk` of `datasets` wrote, or a data set of the
    Hugging Face hub (`user/name`). Or a list of sources, which are mixed."""
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
    loss: Literal["token", "conversation"] = "token"
    """What the loss of a step is the mean of: all its trained tokens, or its conversations, of each the mean of its own
    trained tokens. By token, long replies count more, and short replies to long prompts little."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of the cosine schedule."""
    warmup_steps: NonNegative | None = None
    """Steps over which the learning rate rises linearly to its peak; the first has a rate above 0. null is 20, or a
    tenth of the stage's steps if that is less."""
    no_thinking_share: Share | None = None
    """Share of the conversations with reasoning that are trained with thinking off, their reasoning removed. null is
    0.1 of gold conversations, and none of others."""
    truncated_share: Share = 0.0
    """Share of the conversations whose reasoning is cut at a random budget. The prompt states the budget, and the
    answer is kept."""
    truncated_end: Literal["masked", "trained"] = "masked"
    """Whether the end of reasoning that was cut, up to `</think>`, is in the loss. `masked` as in reinforcement
    learning, where the engine forces these tokens."""
    split_turns: bool = False
    """Whether a conversation with reasoning becomes one row for each message of a user, in which earlier replies are
    only read, without their reasoning. For policies that will be served with a template that takes earlier reasoning
    away; rollouts keep it."""
    repetition_max: Share | None = None
    """Leaves out conversations with reasoning that repeats itself: of its runs of 8 words, more than this share have
    occurred before. null keeps all."""
    giving_up_share: Share = 0.0
    """Share of gold conversations in which the assistant gives up at once. They imitate imperfect demonstrations, which
    reinforcement learning then has to correct."""

    def warmup_of(self, num_steps: int) -> int:
        """Steps of warmup of a stage of so many steps."""
        return default_warmup(WARMUP_STEPS, num_steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The sources of the stage, also where `data` names none or one."""
        if isinstance(self.data, tuple):
            return self.data
        if self.data is None:
            return (SourceConfig(gold=True, weight=1.0),)
        return (SourceConfig(path=self.data, split=self.data_split, subset=self.data_subset, weight=1.0),)

    @property
    def has_gold(self) -> bool:
        """Whether environments make some of the conversations."""
        return any(source.gold for source in self.sources)

    @property
    def keys_of_thinking(self) -> list[tuple[str, ...]]:
        """The keys that ask for reasoning, which a chat format without a think block does not have."""
        asking = [("sft", "truncated_share")] if self.truncated_share > 0 else []
        places = [str(number) for number, source in enumerate(self.sources) if source.effort is not None]
        return asking + [("sft", "data", place, "effort") for place in places]

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, tree: Any) -> Any:
        """Without `num_steps`, its default does not stand beside another length."""
        if not isinstance(tree, Mapping) or "num_steps" in tree:
            return tree
        is_told = tree.get("num_epochs") is not None or _end_by_themselves(tree.get("data"))
        return {**tree, "num_steps": None} if is_told else tree

    @model_validator(mode="after")
    def _length_is_clear(self) -> "SftConfig":
        told = [name for name in ("num_steps", "num_epochs") if getattr(self, name) is not None]
        if isinstance(self.data, tuple) and _end_by_themselves(self.data):
            if told:
                raise ValueError(
                    f"the epochs of all sources say how long the stage is, and so does {' and '.join(told)}:"
                    f" set {' and '.join(told)} to null, or give a source a weight"
                )
        elif len(told) != 1:
            both = "num_steps and num_epochs are both set" if told else "neither num_steps nor num_epochs is set"
            raise ValueError(f"{both}: give one of them" + (", and set the other to null" if told else ""))
        return self

    @model_validator(mode="after")
    def _sources_are_clear(self) -> "SftConfig":
        if not isinstance(self.data, tuple):
            return self
        if not self.data:
            raise ValueError("data is an empty list: name a source, or remove the key to train on gold conversations")
        if self.data_split != "train" or self.data_subset is not None:
            raise ValueError("data_split and data_subset belong to a single path: give the sources split and subset")
        if sum(source.gold for source in self.data) > 1:
            raise ValueError("two sources are gold, which would be the same conversations: keep one")
        return self


def _end_by_themselves(data: object) -> bool:
    """Whether every source says by `epochs` alone how much of it is trained; also of a list as YAML has it."""
    if not isinstance(data, list | tuple) or not data:
        return False
    each = [one if isinstance(one, Mapping) else dict(one) for one in data if isinstance(one, Mapping | SourceConfig)]
    told = [one.get("epochs") is not None and one.get("weight") is None for one in each]
    return len(told) == len(data) and all(told)


def hub_name(data: Path) -> str | None:
    """The name of the data set on the Hugging Face hub that `sft.data` means; None if it means a file or folder."""
    is_file = data.exists() or data.name.endswith((".jsonl", ".json", ".gz", ".parquet"))
    return None if is_file or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(data)) else str(data)
