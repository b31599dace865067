"""What an environment may give or raise: everything but what is right."""

import asyncio
import math
import threading
from collections.abc import Callable
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np

from envs.messages import Message, ToolCall, ToolSpec

TOOL = ToolSpec("price", "What it costs.", {"type": "object", "properties": {}})


class Odd:
    """Every way to look at it raises."""

    def _fail(self, *_: Any) -> Any:
        raise KeyboardInterrupt("nobody pressed it")

    __repr__ = __eq__ = __bool__ = __len__ = __iter__ = __hash__ = __float__ = __int__ = __getattr__ = _fail  # pyright: ignore[reportAttributeAccessIssue]
    __str__ = __index__ = __call__ = __contains__ = __lt__ = __getitem__ = __add__ = __await__ = _fail  # pyright: ignore[reportAttributeAccessIssue]


class OddText(str):
    """Text that lies about itself."""

    __slots__ = ()

    def __str__(self) -> str:
        raise SystemExit("no text")

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return -1

    def encode(self, *_: Any) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise OSError


class OddNumber(float):
    def __float__(self) -> float:
        return math.inf


class OddMessage(Message):
    """A message of a class that no other process has."""

    def __getattribute__(self, name: str) -> Any:
        if name == "tool_calls":
            raise SystemExit("no calls")
        return object.__getattribute__(self, name)


def itself(value: Any) -> Any:
    """A list or a dict that holds itself."""
    value.append(value) if isinstance(value, list) else value.update(me=value)
    return value


class Wordless(Exception):
    def __str__(self) -> str:
        raise SystemExit("no words")

    __repr__ = __str__


class Homeless(BaseException):
    """Its class says of no module that it is from there."""


Homeless.__module__ = None  # pyright: ignore[reportAttributeAccessIssue]


class Stopped(StopIteration):
    def __str__(self) -> str:
        raise KeyError


def circular() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def endless() -> Any:
    return endless()


RAISED: tuple[Callable[[], BaseException], ...] = (
    *(lambda kind=kind: kind() for kind in (KeyError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError)),
    *(lambda kind=kind: kind() for kind in (StopIteration, StopAsyncIteration, asyncio.CancelledError, TimeoutError)),
    *(lambda kind=kind: kind() for kind in (Wordless, Homeless, Stopped, RecursionError, NotImplementedError)),
    *(lambda kind=kind: kind("\ud800") for kind in (ValueError, SystemExit, OSError)),
    lambda: UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    lambda: ValueError("x" * 3_000_000),
    lambda: type("N" * 100_000, (Exception,), {})(),
    lambda: BaseExceptionGroup("\ud800", [Homeless(), ValueError("\udfff")]),
    circular,
)
NUMBERS_LIKE = (
    *(None, 0, -1, 1, 10**400, True, 1.5, -0.1, math.nan, math.inf, -math.inf, 1j, Decimal(1), OddNumber(0.5)),
    *(np.float32(1), np.float64(math.nan), np.int64(3), np.bool_(True), np.array([1, 2]), np.array("x", dtype=object)),
)
TEXTS_LIKE = ("", "3", "\ud800", b"\xff", OddText("user"), "x" * 2_000_000, ..., NotImplemented, object(), int, print)
HOLDING = (
    *((), [], {}, set(), ("user",), [1, 2], (1.0, 0.0), (0, 1, 2), {1: 2}, {"a": Odd()}, {("a",): 1}, {"\ud800": 1}),
    *(itself([]), itself({}), MappingProxyType({"a": 1}), range(3), Message("user", "?"), TOOL, ToolCall("x"), Odd()),
    *(Message("robot", "?"), OddMessage("user", "?"), ToolSpec("", "", {}), ToolCall("x", {"a": {1j: 1}})),  # pyright: ignore[reportArgumentType]
)
WRONG: tuple[Callable[[], Any], ...] = (
    *((lambda value=value: value) for value in (*NUMBERS_LIKE, *TEXTS_LIKE, *HOLDING)),
    *(lambda: (number for number in (1, 2)), lambda: asyncio.sleep(0), threading.Lock, lambda: [None] * 1_000_000),
)
