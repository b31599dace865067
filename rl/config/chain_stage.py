"""What is a stage of a chain: which command does it run, what does it leave behind, what does it use of others?"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rl.config.yaml_text import read_value


class Result(NamedTuple):
    """What a command leaves in the folder of its stage."""

    name: str
    is_policy: bool


COMMANDS: Mapping[str, Result] = {
    "rl train": Result("exported", is_policy=True),
    "sft train": Result("sft", is_policy=True),
    "sft dpo": Result("dpo", is_policy=True),
    "sft reward-model": Result("reward_model", is_policy=False),
    "sft from-rollouts": Result("rows.jsonl", is_policy=False),
}
"""The commands that can be a stage."""
TRAIN, SFT, ROWS = "rl train", "sft train", "sft from-rollouts"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, with what it takes from others."""

    name: str
    command: str
    folder: Path
    yaml: Path | None
    """None of rows from rollouts."""
    source: "Stage | None"
    """The stage that it starts from; None starts from the policy of the YAML."""
    values: Sequence[tuple[str, Any]]
    """Keys and their values in the order of overrides, with paths in place of references."""
    references: Mapping[str, "Stage"] = field(default_factory=dict)
    """By key, the stage whose result it names."""

    @property
    def result(self) -> Path:
        return self.folder / COMMANDS[self.command].name

    @property
    def sources(self) -> "list[Stage]":
        """All stages whose results it uses."""
        return [stage for stage in (self.source, *self.references.values()) if stage is not None]

    def overrides(self, policy: Path | None = None) -> list[str]:
        """The overrides of its YAML, of the form key=value. `policy` stands in for that of the source."""
        given: dict[str, Any] = {}
        if self.source is not None:
            given = {"policy.build": None, "policy.path": str(policy or self.source.result)}
            if self.command == TRAIN:
                given["sft"] = None  # its supervised stage would begin again from the policy of another stage
        return [f"{key}={_text(value)}" for key, value in (*given.items(), *self.values)] + [
            f"run_dir={_text(str(self.folder))}"
        ]

    @property
    def words(self) -> list[str]:
        """The command that it runs, as words after `python -m`."""
        package, name = self.command.split()
        if self.command == ROWS:
            assert self.source is not None
            flags = [_flag(key, value) for key, value in self.values if value not in (None, False)]
            return [package, name, str(self.source.folder), "--out", str(self.result), *(w for f in flags for w in f)]
        return [package, name, str(self.yaml), *self.overrides()]


def _flag(key: str, value: object) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _text(value: object) -> str:
    """The value in one line of YAML, which JSON is."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and read_value(value) == value
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
