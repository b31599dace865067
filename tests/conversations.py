"""The conversations of a path that `sft.data` names."""

from pathlib import Path

from rl.config.mixture import SourceConfig
from sft.rows import Conversation
from sft.sources import Keys, read_conversations


def conversations_of(
    path: Path, *, split: str = "train", subset: str | None = None, has_thinking: bool = True
) -> list[Conversation]:
    source = SourceConfig(path=path, split=split, subset=subset, weight=1.0)
    return read_conversations(source, Keys.of("sft"), has_thinking=has_thinking)
