"""Which files are in the folder of a chain, and which of its stages are finished?

chain.json        the stages in their order, written when the chain begins
NAME/             the folder of stage NAME: a run folder, or what another command writes
NAME/stage.json   how long the stage took so far
NAME/stage.yaml   the configuration, or the command, with which the stage ran; it exists when the stage is finished
figures/, report.html
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.json_lines import JsonObject
from rl.runs.files import storing, write_atomically
from rl.runs.history import DamagedError


@dataclass(frozen=True, slots=True)
class ListedStage:
    """A stage as the chain's folder tells it."""

    name: str
    command: str
    source: str
    """The stage whose policy or rollouts it began with; empty for none."""
    result: str
    """Name of what it leaves in its folder."""


class ChainFolder:
    """The places in a chain's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chain_file = path / "chain.json"
        self.report_file = path / "report.html"

    @property
    def holds_chain(self) -> bool:
        return self.chain_file.is_file()

    def begin(self, stages: Sequence[ListedStage]) -> None:
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        told = [{name: getattr(stage, name) for name in ListedStage.__slots__} for stage in stages]
        write_atomically(self.chain_file, json.dumps({"stages": told}, indent=2) + "\n")

    def stages(self) -> list[ListedStage]:
        """Raises `DamagedError`."""
        try:
            return [ListedStage(**stage) for stage in _read(self.chain_file)["stages"]]
        except (LookupError, TypeError) as error:
            raise DamagedError(f"{self.chain_file} is damaged: {error}; begin the chain in another run_dir") from None

    def seconds(self, name: str) -> float:
        """How long the stage took so far, all attempts together."""
        return float(self._record(name).get("seconds", 0.0))

    def finished_file(self, name: str) -> Path:
        """It exists when the stage is finished, and says with which configuration."""
        return self.path / name / "stage.yaml"

    def save(self, name: str, seconds: float, config: str | None) -> None:
        """Add the seconds of an attempt, which finished the stage if there is a configuration."""
        folder = self.path / name
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        told = {"seconds": round(self.seconds(name) + seconds, 1)}
        write_atomically(folder / "stage.json", json.dumps(told) + "\n")
        if config is not None:
            write_atomically(self.finished_file(name), config)

    def _record(self, name: str) -> JsonObject:
        file = self.path / name / "stage.json"
        return _read(file) if file.is_file() else {}


def _read(file: Path) -> JsonObject:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise DamagedError(
            f"{file} is damaged: {error}; delete it (of a stage.json only the seconds are lost)"
        ) from None
    if not isinstance(found, Mapping):
        raise DamagedError(
            f"{file} is damaged: it holds no object; delete it (of a stage.json only the seconds are lost)"
        )
    return dict(found)
