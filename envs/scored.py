"""The short way to write an environment: rows, and a function that scores a reply to one of them.

    @scored(rows=[{"prompt": "Capital of France?", "gold": "Paris"}, ...])
    def capitals(reply, row):
        \"\"\"Name a capital.\"\"\"
        return text_correct(reply.text, row["gold"])

A row is a mapping with `prompt` (text, or messages) and optionally `gold` (the text of a perfect reply),
`gold_reasoning`, `gold_calls`, `tools` (specs of functions to call), `key` (rows with the same key are in the same
split; default: the prompt) and `split`. None counts as missing. Other entries are for the score function. `rows` may be
a function that loads them once per process; instead, `draw` makes a row from a random generator. Parameters of these
functions are the environment's options, with their defaults.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from envs.errors import InputError, shown
from envs.messages import Message, Reply
from envs.text_env import EnvironmentOptionError, Split, TextEnv, draw_in_split, in_split, read_score

Row = Mapping[str, Any]
Score = float | Mapping[str, float]


class RowError(InputError):
    """A row that cannot be played."""


def scored(
    rows: Sequence[Row] | Callable[..., Sequence[Row]] | None = None,
    *,
    draw: Callable[..., Row] | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
    answer_of: Callable[[str], str | None] | None = None,
) -> Callable[[Callable[[Reply, Row], Any]], type[TextEnv]]:
    """Make an environment class from a score function: `score(reply, row)` returns a number or reward parts by name.

    The score function may be asynchronous. Give `rows` or `draw`; `draw(rng, **options)` must depend on nothing else.
    `answer_of` reads a reply's answer for majority votes (`TextEnv.answer_of`).
    """
    if (rows is None) == (draw is None) or (not draw and is_undecorated(rows)):
        raise TypeError("give either rows or draw: @scored(rows=...) or @scored(draw=...)")

    def make(score: Callable[[Reply, Row], Any]) -> type[TextEnv]:
        if len(inspect.signature(score).parameters) != 2:
            raise TypeError(f"{score.__name__} must take a reply and a row: def {score.__name__}(reply, row)")
        load = loader_of(rows or ())
        options = options_of(draw, 1) if draw else {"row": None, **options_of(load, 0)}
        names = {
            "__doc__": score.__doc__,
            "__module__": score.__module__,
            "__qualname__": score.__qualname__,
            "OPTIONS": options,
            "reward_range": reward_range,
            "answer_of": staticmethod(answer_of) if answer_of else None,
            "is_async": inspect.iscoroutinefunction(score),
            "_score": staticmethod(score),
            "_rows": None if draw else RowTable(load),
            "_draw": staticmethod(draw) if draw else None,
        }
        return type(score.__name__, (ScoredEnv,), names)

    return make


def is_undecorated(function: object) -> bool:
    """Whether this is a score function itself: not decorated, or decorated without brackets."""
    return inspect.isfunction(function) and list(inspect.signature(function).parameters)[:1] == ["reply"]


def loader_of(rows: Sequence[Row] | Callable[..., Sequence[Row]]) -> Callable[..., Sequence[Row]]:
    return rows if callable(rows) else lambda: rows


def options_of(function: Callable[..., Any], num_own: int) -> dict[str, Any]:
    """The parameters after the first `num_own`, with their defaults. Raises `TypeError` if one has none."""
    parameters = list(inspect.signature(function).parameters.values())[num_own:]
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty:
            raise TypeError(f"{function.__name__}: parameter {parameter.name} is an option and needs a default")
    return {parameter.name: parameter.default for parameter in parameters}


class RowTable:
    """Rows by split, loaded once per choice of options, even if many rollouts open their first task together."""

    def __init__(self, load: Callable[..., Sequence[Row]]) -> None:
        self._lock = threading.Lock()
        self._load = functools.lru_cache(maxsize=8)(lambda options: self._read(load, dict(options)))

    def load(self, options: Mapping[str, Any]) -> dict[Split, list[Row]]:
        """The rows by split. Raises `RowError` for a row that cannot be played."""
        hashable = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())
        with self._lock:
            return self._load(hashable)

    def of_split(self, split: Split, options: Mapping[str, Any]) -> list[Row]:
        """Raises `RowError` for a row that cannot be played, `EnvironmentOptionError` for an empty split."""
        rows = self.load(options)[split]
        if not rows:
            raise EnvironmentOptionError(f"no row is in split {split!r}: give more rows, or each a 'split'")
        return rows

    @staticmethod
    def _read(load: Callable[..., Sequence[Row]], options: Mapping[str, Any]) -> dict[Split, list[Row]]:
        found: dict[Split, list[Row]] = {"train": [], "heldout": []}
        for number, row in enumerate(load(**options)):
            if not isinstance(row, Mapping) or not row.get("prompt"):
                raise RowError(f"row {number} must be a mapping with a prompt, got {row!r:.200}")
            default: Split = "train" if in_split(row_key(row), "train") else "heldout"
            found[read_split(row, f"row {number}") or default].append(row)
        return found


def read_split(row: Row, place: str) -> Split | None:
    """The split that the row says, if it says one. Raises `RowError`, which begins with `place`."""
    split = row.get("split")
    if split not in (None, "train", "heldout"):
        raise RowError(f"{place}: split must be 'train' or 'heldout', got {shown(split)}")
    return split


def row_key(row: Row) -> str:
    """The identity of a row's problem."""
    key = row.get("key")
    return str(row["prompt"] if key is None else key)


def opening(row: Row) -> tuple[Message, ...]:
    """The row's prompt as messages. Raises `RowError`."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    try:
        return tuple(message if isinstance(message, Message) else Message(**message) for message in prompt)
    except TypeError as error:
        raise RowError(f"a prompt is text or a list of messages with role and content, got {prompt!r:.200}") from error


class ScoredEnv(TextEnv):
    """An environment of one reply, made by `scored`."""

    _score: ClassVar[staticmethod]
    _rows: ClassVar[RowTable | None]
    _draw: ClassVar[staticmethod | None]

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        if cls._rows is not None:
            cls._rows.load({name: options.get(name, value) for name, value in cls.OPTIONS.items() if name != "row"})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        self.row = self._choose(split, chosen)
        self.tools = tuple(self.row.get("tools") or ())
        return opening(self.row), {"key": row_key(self.row)}

    def step(self, action: Reply) -> Any:
        score = self._score(action, self.row)
        return self._finish(score) if self.is_async else self._result(score)

    def gold_reply(self) -> Reply:
        if self.row.get("gold") is None:
            raise NotImplementedError(f"the rows of {type(self).__name__} have no 'gold'")
        calls = tuple(self.row.get("gold_calls") or ())
        return Reply(str(self.row["gold"]), str(self.row.get("gold_reasoning") or ""), calls)

    async def _finish(self, score: Any) -> Any:
        return self._result(await score)

    def _result(self, score: Any) -> Any:
        reward, parts = read_score(score)
        return (), reward, True, False, {"reward_parts": parts}

    def _choose(self, split: Split, chosen: dict[str, Any]) -> Row:
        if self._draw is not None:
            make = self._draw
            return draw_in_split(self.np_random, split, lambda rng: make(rng, **chosen), row_key)
        assert self._rows is not None
        number = chosen.pop("row")
        rows = self._rows.of_split(split, chosen)
        if number is None:
            return rows[int(self.np_random.integers(len(rows)))]
        if not isinstance(number, int) or not 0 <= number < len(rows):
            raise EnvironmentOptionError(f"row must be 0 to {len(rows) - 1} in split {split!r}, got {number!r}")
        return rows[number]
