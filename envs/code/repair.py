"""Can the policy repair its code from test feedback? A few turns, each with a failing case, then hidden tests."""

import json
from typing import Any, ClassVar

from envs.code.functions import draw_task
from envs.errors import shown
from envs.messages import Message, Reply, valid_text
from envs.sandbox import SandboxResult, run_function
from envs.text_env import StepResult, TextEnv
from rewards.code import extract_code, same_value

NUM_SHOWN = 3
TURN_COST = 0.1


class Repair(TextEnv):
    """Write a Python function; each failed try is answered with a failing case.

    The shown tests are the first three inputs. Once they pass, the hidden tests decide, and the episode ends. The code
    is the fenced block of a reply that defines f, or the whole reply.

    Options: `level` selects the functions as in `code/Functions-v0`.
    Reward parts: `passed` 1 if shown and hidden tests pass; `tries` subtracts 0.1 for every try after the first.
    """

    OPTIONS: ClassVar = {"level": 1}
    max_turns: ClassVar[int] = 4

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        self._level, self._description = draw_task(self, options)
        self._num_tries = 0
        prompt = f"{self._description.prompt} It will be tested; you have {self.max_turns} tries."
        return (Message("user", prompt),), {"key": self._description.prompt}

    def step(self, action: Reply) -> StepResult:
        self._num_tries += 1
        inputs = [[argument] for argument in self._level.inputs]
        result = run_function(extract_code(action.text, "f"), "f", inputs)
        failing = self._failing_case(result)
        if failing is not None and self._num_tries < self.max_turns:
            return (Message("user", failing),), 0.0, False, False, {}
        passed = float(failing is None and self._num_wrong(result) == 0)
        parts = {"passed": passed, "tries": -TURN_COST * (self._num_tries - 1) * passed}
        return (), sum(parts.values()), True, False, {"reward_parts": parts}

    def gold_reply(self) -> Reply:
        return Reply(self._description.code)

    def _failing_case(self, result: SandboxResult) -> str | None:
        """The message about the first shown case that fails; None if all pass."""
        if result.status != "ok":
            return valid_text(f"It failed: {result.status}: {result.detail}")
        for argument, value in list(zip(self._level.inputs, result.value, strict=True))[:NUM_SHOWN]:
            expected = self._description.values(argument)[-1]
            if not same_value(value, expected):
                return f"f({json.dumps(argument)}) gave {shown(value, 100)[:100]}, expected {json.dumps(expected)}."
        return None

    def _num_wrong(self, result: SandboxResult) -> int:
        expected = [self._description.values(argument)[-1] for argument in self._level.inputs]
        return sum(not same_value(*pair) for pair in zip(result.value, expected, strict=True))
