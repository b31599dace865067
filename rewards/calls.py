"""Do function calls match the wanted ones? Compares names and arguments, and categorises what is wrong.

Values are compared as in the Berkeley function-calling leaderboard (Patil et al. 2025, "The Berkeley Function Calling
Leaderboard (BFCL)", ICML). Each parameter has several allowed values; `""` among them means that it may be omitted.
Text is compared without case and punctuation. An integer is accepted for a decimal number. Calls in one turn have no
order. Unlike in the leaderboard, a call may pass `""` itself only if the other allowed values are texts.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
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


def judge_calls(
    calls: Sequence[Call], wanted: Sequence[Wanted], judge: Callable[[Call, Any], Category] | None = None
) -> Category:
    """`right` if the calls are the wanted ones in any order, else what is wrong with the first unmatched call.

    `judge` compares one call with a wanted one (default: `judge_call`). Equal calls are counted, not compared one by
    one, so many equal calls cost little.
    """
    judge = judge or judge_call
    if not wanted:
        return "unexpected_call" if calls else "right"
    if not calls:
        return "no_call"
    if len(calls) != len(wanted):
        return "wrong_number_of_calls"
    num_calls, num_wanted = Counter(map(_key, calls)), Counter(map(_key, wanted))
    call_of, wanted_of = (
        dict(zip(map(_key, calls), calls, strict=True)),
        dict(zip(map(_key, wanted), wanted, strict=True)),
    )
    verdicts: dict[str, dict[str, Category]] = {
        key: {other: judge(call_of[key], wanted_of[other]) for other in num_wanted} for key in num_calls
    }
    calls_left, wanted_left = _match(verdicts, num_calls, num_wanted)
    if not calls_left:
        return "right"
    left: list[Category] = [verdicts[calls_left[0]][other] for other in wanted_left]
    same_name: list[Category] = [verdict for verdict in left if verdict != "wrong_function"]
    return same_name[0] if same_name else "wrong_function"


def _match(
    verdicts: Mapping[str, Mapping[str, Category]], num_calls: Mapping[str, int], num_wanted: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """The kinds of calls and of wanted calls that remain unmatched in a maximum matching.

    Uses augmenting paths between kinds (Ford and Fulkerson 1956), each found by breadth-first search.
    """
    assigned: Counter[tuple[str, str]] = Counter()
    calls_left, wanted_left = dict(num_calls), dict(num_wanted)
    for start in num_calls:
        while calls_left[start] and (path := _augmenting_path(start, verdicts, assigned, wanted_left)):
            taken = list(zip(path[2::2], path[1::2], strict=False))  # (call, wanted) pairs to reassign
            size = min(calls_left[start], wanted_left[path[-1]], *(assigned[pair] for pair in taken))
            for pair in zip(path[::2], path[1::2], strict=True):
                assigned[pair] += size
            for pair in taken:
                assigned[pair] -= size
            calls_left[start] -= size
            wanted_left[path[-1]] -= size
    return [key for key, num in calls_left.items() if num], [key for key, num in wanted_left.items() if num]


def _augmenting_path(
    start: str,
    verdicts: Mapping[str, Mapping[str, Category]],
    assigned: Mapping[tuple[str, str], int],
    wanted_left: Mapping[str, int],
) -> list[str] | None:
    """Call, wanted, call, ..., wanted: each wanted call fits the call before it and is assigned to the one after it."""
    paths, reached = deque([[start]]), {start}
    seen: set[str] = set()
    while paths:
        path = paths.popleft()
        for other, verdict in verdicts[path[-1]].items():
            if verdict != "right" or other in seen:
                continue
            seen.add(other)
            if wanted_left[other]:
                return [*path, other]
            for holder in verdicts:
                if holder not in reached and assigned.get((holder, other), 0):
                    reached.add(holder)
                    paths.append([*path, other, holder])
    return None


def _key(call: tuple[str, Mapping[str, Any]]) -> str:
    """The same for equal calls; different for values of different types."""
    return json.dumps(call, sort_keys=True, default=repr)


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
        elif not any(same_argument(arguments[argument], value) for value in _given_values(values)):
            kinds = {_kind(value) for value in _given_values(values)}
            return "wrong_value" if _kind(arguments[argument]) in kinds else "wrong_type"
    return "right"


def same_argument(given: Any, allowed: Any) -> bool:
    """Equality of JSON values as in the module's docstring; within dicts, each allowed value is a list of values."""
    if isinstance(given, str) and isinstance(allowed, str):
        return plain(given) == plain(allowed)
    if isinstance(given, list) and isinstance(allowed, list | tuple):
        return len(given) == len(allowed) and all(map(same_argument, given, allowed))
    if isinstance(given, dict) and isinstance(allowed, dict):
        return judge_call(("", given), ("", {name: _alternatives(value) for name, value in allowed.items()})) == "right"
    return _kind(given) == _kind(allowed) and given == allowed


def _given_values(values: Sequence[Any]) -> Sequence[Any]:
    """The allowed values without the `""` that means omission; among texts, `""` is a value too."""
    others = [value for value in values if value != ""]
    return values if all(isinstance(value, str) for value in others) else others


def _alternatives(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def plain(text: str) -> str:
    """The text without case and punctuation, as the leaderboard compares it."""
    return IGNORED.sub("", text).lower().replace("'", '"')


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__
