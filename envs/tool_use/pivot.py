"""Does the policy act as an expert did, in one turn of an agent's conversation? PivotRL's tasks (arXiv:2603.21383)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from envs.gold import gold_conversation
from envs.messages import Message, Reply
from envs.pivots import PivotTurn, pivots_of, read_pivots
from envs.scored import Row, RowTable
from envs.text_env import EnvironmentOptionError, StepResult, TextEnv
from envs.tool_class import ToolClassEnv
from envs.tool_use.store import LEVELS, Store
from rewards.equivalence import TEXTS, Texts, judge_equivalence

NUM_CONVERSATIONS = 400
"""Of the built-in source."""
ANSWERED_IN = 4
"""One built-in conversation in four also gives its answer as a turn: any text earns the reward there."""


@functools.cache
def built_in() -> list[Row]:
    """Turns of gold conversations of `tools/Store-v0`."""
    rows: list[Row] = []
    for seed in range(NUM_CONVERSATIONS):
        env = ToolClassEnv(Store)
        messages = gold_conversation(env, seed, {"level": 1 + seed % len(LEVELS)})
        turns = pivots_of(messages, env.tools, str(seed))
        rows += [_row(turn) for turn in turns if turn.action.tool_calls or seed % ANSWERED_IN == 0]
    return rows


def load_rows(rows: str = "") -> list[Row]:
    return [_row(turn) for turn in read_pivots(Path(rows))] if rows else built_in()


def _row(turn: PivotTurn) -> Row:
    return {"prompt": turn.prompt, "turn": turn, "key": turn.key, "split": turn.split}


ROWS = RowTable(load_rows)


class Pivot(TextEnv):
    """Write the next turn of an agent's conversation. It is compared with what an expert did there.

    The calls must do the same as the expert's: equal names and arguments after normalisation with the tools' schemas,
    in any order (`rewards.equivalence`). Where the expert answered without a call, any text without a call is right.
    The calls are not executed. Seed n plays row n of the split, beginning anew after the last, so that
    `python -m envs eval -n NUM_ROWS` plays each row once.

    Options: `rows` is a JSONL file that `python -m envs pivots` wrote (default: turns of `tools/Store-v0`); `texts`
    says when two texts are equal: `exact`, `spaces` (blanks do not count) or `words` (nor do case and punctuation).
    Reward parts: `right` 1 if the turn does what the expert's did; otherwise a part of 0 is named after the error, such
    as `wrong_value`.
    """

    OPTIONS: ClassVar = {"rows": "", "texts": "spaces"}

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        ROWS.load({"rows": options.get("rows", "")})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        if chosen["texts"] not in TEXTS:
            raise EnvironmentOptionError(f"texts must be one of {', '.join(TEXTS)}, got {chosen['texts']!r}")
        self._texts: Texts = chosen["texts"]
        rows = ROWS.of_split(split, {"rows": chosen["rows"]})
        number = int(self.np_random.integers(len(rows))) if seed is None else seed % len(rows)
        self._turn: PivotTurn = rows[number]["turn"]
        self.tools = self._turn.tools
        return self._turn.prompt, {"key": self._turn.key}

    def step(self, action: Reply) -> StepResult:
        wanted = [(call.name, call.arguments) for call in self._turn.action.tool_calls]
        calls = [(call.name, call.arguments) for call in action.tool_calls]
        schemas = {tool.name: tool.parameters for tool in self.tools}
        category = judge_equivalence(calls, wanted, schemas, self._texts)
        if not wanted and (action.malformed or not action.text.strip()):
            category = "unexpected_call" if action.malformed else "no_answer"
        parts = {"right": 1.0} if category == "right" else {"right": 0.0, category: 0.0}
        return (), parts["right"], True, False, {"reward_parts": parts}

    def gold_reply(self) -> Reply:
        return self._turn.action
