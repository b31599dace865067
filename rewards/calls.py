"""Are these the function calls that were wanted? Name and arguments, with a category for what is wrong.

Values are compared as the Berkeley function-calling leaderboard does (Patil et al. 2025, "The Berkeley Function Calling
Leaderboard (BFCL)", ICML): each parameter has several allowed values, `""` among them means it may be left out, text is
compared without case and punctuation, and a whole number will do for a decimal one. Calls in one turn have no order.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Category = Literal[
    "right",
    "no_call",
    "unexpected_call",
    "wrong_number_of_calls",
    "wrong_function",
    "missing_argument",
    "unknown_argument",
    "wrong_type",
    "wrong_value",
]
Call = tuple[str, Mapping[str, Any]]
Wanted = tuple[str, Mapping[str, Sequence[Any]]]
IGNORED = re.compile(r"[ ,./\-_*^]")


def judge_calls(calls: Sequence[Call], wanted: Sequence[Wanted]) -> Category:
    """`right` when the calls are the wanted ones in any order, else the first thing that is wrong with them."""
    if not wanted:
        return "unexpected_call" if calls else "right"
    if not calls:
        return "no_call"
    if len(calls) != len(wanted):
        return "wrong_number_of_calls"
    return _match(list(calls), list(wanted))


def _match(calls: list[Call], wanted: list[Wanted]) -> Category:
    """Whether the calls can be assigned to the wanted ones, each to one; else what is wrong with the first call."""
    if not calls:
        return "right"
    verdicts: list[Category] = [judge_call(calls[0], target) for target in wanted]
    worst: Category | None = None
    for place, verdict in enumerate(verdicts):
        if verdict == "right":
            rest = _match(calls[1:], wanted[:place] + wanted[place + 1 :])
            if rest == "right":
                return "right"
            worst = worst or rest
    same_name: list[Category] = [verdict for verdict in verdicts if verdict not in ("right", "wrong_function")]
    return worst or (same_name[0] if same_name else "wrong_function")


def judge_call(call: Call, wanted: Wanted) -> Category:
    """What is wrong with one call, or `right`."""
    name, arguments = call
    wanted_name, allowed = wanted
    if name != wanted_name:
        return "wrong_function"
    if any(argument not in allowed for argument in arguments):
        return "unknown_argument"
    for argument, values in allowed.items():
        if argument not in arguments:
            if "" not in values:
                return "missing_argument"
        elif not any(same_argument(arguments[argument], value) for value in values):
            kinds = {_kind(value) for value in values if value != ""}
            return "wrong_value" if _kind(arguments[argument]) in kinds else "wrong_type"
    return "right"


def same_argument(given: Any, allowed: Any) -> bool:
    """Equality of two JSON values as the module's docstring says; within dicts each allowed value is a list of them."""
    if isinstance(given, str) and isinstance(allowed, str):
        return _plain(given) == _plain(allowed)
    if isinstance(given, list) and isinstance(allowed, list | tuple):
        return len(given) == len(allowed) and all(map(same_argument, given, allowed))
    if isinstance(given, dict) and isinstance(allowed, dict):
        return judge_call(("", given), ("", {name: _alternatives(value) for name, value in allowed.items()})) == "right"
    return _kind(given) == _kind(allowed) and given == allowed


def _alternatives(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _plain(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__
