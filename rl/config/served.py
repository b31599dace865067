"""What must whoever serves a policy know beside its folder, so that it answers as it was trained?"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rl.config.environments import BudgetConfig
from rl.config.errors import ConfigError
from rl.config.section import Positive, Section

if TYPE_CHECKING:
    from rl.config.experiment import ExperimentConfig

FILE = "polygym.json"
"""Its name in an export."""


class Served(Section):
    """Written by `rl export`, read by `rl serve`."""

    chat: str = "auto"
    """Chat format (`policy.chat`)."""
    budget: BudgetConfig = BudgetConfig()
    """How thinking budgets are enforced."""
    max_tokens: Positive = 4096
    """Longest conversation."""

    @classmethod
    def of(cls, config: "ExperimentConfig") -> "Served":
        return cls(chat=config.policy.chat, budget=config.budget, max_tokens=config.policy.max_tokens)

    @classmethod
    def read(cls, folder: Path) -> "Served":
        """The defaults for a folder that is no export. Raises `ConfigError` for a damaged file."""
        file = folder / FILE
        if not file.is_file():
            return cls()
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{file} is damaged: {error}; export the run again, or remove the file") from None

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
