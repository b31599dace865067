"""How does a plain class become an environment with tools? Its public typed methods are the tools.

    class Lamp:
        \"\"\"Switch on the right lamp.\"\"\"

        def reset(self, rng, split, level=1):            # the parameters after split are the environment's options
            ...
            return "Switch on the red lamp."             # the prompt: text, or messages

        def switch(self, name: str) -> str:              # a tool: schema from type hints and docstring
            \"\"\"Switch a lamp on.\"\"\"

        def score(self, reply):                          # a number, or the reward's parts by name
            return float(self.lit == {self.wanted})

        def gold_reply(self):                            # the reply of a perfect policy now; for data and checks
            ...

`max_turns` and `reward_range` may be class attributes, `key` an attribute that `reset` sets; methods may be `async`.
"""

import functools
import inspect
from collections.abc import Coroutine
from typing import Any, TypeVar

from envs.errors import cut, error_text
from envs.messages import Message, Reply, ToolCall, ToolSpec
from envs.results import MAX_MESSAGE_CHARACTERS
from envs.scored import opening, options_of
from envs.text_env import TextEnv, read_score
from envs.tool_specs import read_arguments, tool_spec

OWN_METHODS = {"reset", "score", "gold_reply", "score_group", "close"}
MAX_TURNS = 6
MAX_NAME_CHARACTERS = 100
"""Maximum length of an unknown tool's name: a policy can make up any name."""
MAX_RESULT_CHARACTERS = MAX_MESSAGE_CHARACTERS // 2
"""Maximum length of a tool's result: a tool that repeats the policy's text must not cause an environment error."""
Result = TypeVar("Result")


def is_tool_class(candidate: object) -> bool:
    """Whether this is a plain class with tools."""
    return inspect.isclass(candidate) and all(callable(getattr(candidate, name, None)) for name in ("reset", "score"))


class ToolClassEnv(TextEnv):
    """One instance of a plain class as an environment.

    `step` runs the calls of a reply in order and returns their results as tool messages. An unknown tool, a wrong
    argument or a `ValueError` is returned to the policy as text; any other exception is an environment error. A reply
    without calls ends the episode with `score(reply)`. Raises `TypeError` for methods that cannot be tools.
    """

    def __init__(self, plain: type) -> None:
        super().__init__()
        self.inner: Any = plain()
        self._methods = {name: getattr(self.inner, name) for name in tool_names(plain)}
        self.tools = tool_specs(plain)
        self.max_turns = getattr(plain, "max_turns", MAX_TURNS)  # type: ignore[misc]
        self.reward_range = getattr(plain, "reward_range", (0.0, 1.0))  # type: ignore[misc]
        self.OPTIONS = class_options(plain)  # type: ignore[misc]
        used = [*self._methods.values(), self.inner.reset, self.inner.score]
        self.is_async = any(map(inspect.iscoroutinefunction, used))
        self.scores_groups = hasattr(plain, "score_group")
        self.has_close = hasattr(plain, "close")

    @property
    def name(self) -> str:
        return type(self.inner).__name__

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._now_or_later(self._reset(options))

    def step(self, action: Reply) -> Any:
        return self._now_or_later(self._step(action))

    def gold_reply(self) -> Reply:
        if not hasattr(self.inner, "gold_reply"):
            raise NotImplementedError(f"{self.name} has no gold_reply")
        return self.inner.gold_reply()

    def score_group(self, conversations: Any) -> Any:
        return self.inner.score_group(conversations)

    def close(self) -> Any:
        return self.inner.close() if hasattr(self.inner, "close") else None

    async def call(self, call: ToolCall) -> str:
        """Run one call and return its result, or what was wrong with it, as text."""
        if call.name not in self._methods:
            return f"error: no tool named {_named(call)}; tools: {', '.join(self._methods)}"
        method = self._methods[call.name]
        try:
            result = await self._settled(method(**read_arguments(method, call.arguments)))
            return cut(str(result), MAX_RESULT_CHARACTERS)
        except ValueError as error:
            return f"error: {error_text(error)}"

    async def _reset(self, options: dict[str, Any] | None) -> tuple[tuple[Message, ...], dict[str, Any]]:
        split, chosen = self.read_options(options)
        prompt = await self._settled(self.inner.reset(self.np_random, split, **chosen))
        messages = opening({"prompt": prompt})
        return messages, {"key": getattr(self.inner, "key", messages)}

    async def _step(self, action: Reply) -> Any:
        if action.tool_calls:
            results = [Message("tool", await self.call(call), name=_named(call)) for call in action.tool_calls]
            return tuple(results), 0.0, False, False, {}
        reward, parts = read_score(await self._settled(self.inner.score(action)))
        return (), reward, True, False, {"reward_parts": parts}

    async def _settled(self, value: Any) -> Any:
        """The awaited result of one of the class's methods. Raises `TypeError` if it is awaitable but no method is
        async."""
        if not inspect.isawaitable(value):
            return value
        if not self.is_async:
            value.close() if inspect.iscoroutine(value) else None
            raise TypeError(f"a method of {self.name} returned an awaitable; declare it with async def")
        return await value

    def _now_or_later(self, coroutine: Coroutine[Any, Any, Result]) -> Result | Coroutine[Any, Any, Result]:
        return coroutine if self.is_async else run_now(coroutine)


def run_now(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


def _named(call: ToolCall) -> str:
    return cut(call.name, MAX_NAME_CHARACTERS)


@functools.cache
def class_options(plain: type) -> dict[str, Any]:
    """The options that `reset` takes, with their defaults. Cached, since every rollout makes an instance."""
    return options_of(plain.reset, 3)


@functools.cache
def tool_names(plain: type) -> tuple[str, ...]:
    """The names of the public methods that are tools."""
    names = [name for name in dir(plain) if not name.startswith("_") and name not in OWN_METHODS]
    return tuple(name for name in names if inspect.isfunction(getattr(plain, name)))


@functools.cache
def tool_specs(plain: type) -> tuple[ToolSpec, ...]:
    return tuple(tool_spec(getattr(plain, name)) for name in tool_names(plain))
