"""What is said about a wrong configuration?"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where (file and line), which dotted key, what is wrong with its value, and how to mend it."""

    where: str
    key: str
    wrong: str
    fix: str

    def __str__(self) -> str:
        parts = [self.where, f"{self.key}: {self.wrong}" if self.key else self.wrong]
        return ": ".join(part for part in parts if part) + f"\n    fix: {self.fix}"


class ConfigError(ValueError):
    """What is wrong with a configuration, as text or as problems that are listed."""

    def __init__(self, problems: str | Sequence[Problem]) -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        if not isinstance(problems, str):
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            problems = f"{count} in the configuration\n" + "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(problems)
