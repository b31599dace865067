"""How are configuration errors reported?"""

from collections.abc import Sequence
from dataclasses import dataclass

from envs.errors import InputError


@dataclass(frozen=True, slots=True)
class Problem:
    """One configuration error: its place (file and line), the dotted key, what is wrong, and how to fix it."""

    where: str
    key: str
    wrong: str
    fix: str

    def __str__(self) -> str:
        parts = [self.where, f"{self.key}: {self.wrong}" if self.key else self.wrong]
        return ": ".join(part for part in parts if part) + f"\n    fix: {self.fix}"


class ConfigError(InputError):
    """A configuration is invalid: a text, or a list of problems."""

    def __init__(self, problems: str | Sequence[Problem]) -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        if not isinstance(problems, str):
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            problems = f"{count} in the configuration\n" + "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(problems)
