"""The contract of an environment: what `reset`, `step` and `gold_reply` promise.

An environment plays one episode of one task. `reset(seed, options)` gives the opening messages; `step(reply)` takes the
policy's reply and gives the messages that follow it, the reward, and whether the episode is over, in gymnasium's order
`(messages, reward, terminated, truncated, info)`. The same seed and options always give the same task.

`options` always may hold `split` (`train` or `heldout`); each environment names its own further options in `OPTIONS`.
A task can never be in both splits, because its key decides which one it belongs to (`in_split`).
"""

import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium
import numpy as np

from envs.messages import Message, Reply, ToolCall, ToolSpec
from envs.spaces import Conversation, Replies

Split = Literal["train", "heldout"]
StepResult = tuple[tuple[Message, ...], float, bool, bool, dict[str, Any]]
Problem = TypeVar("Problem")
Level = TypeVar("Level")
HELDOUT_IN = 5  # one key in five is held out


class EnvironmentOptionError(ValueError):
    """An option that the environment does not have, or a value it cannot take."""


class TextEnv(gymnasium.Env[tuple[Message, ...], Reply]):
    """Base of all environments. Subclasses write `reset`, `step` and `gold_reply`.

    `max_turns` bounds the replies of an episode; `reward_range` bounds the sum of its rewards, and a reward outside of
    it is an error of the environment. `info["reward_parts"]` of the last step names what the reward consists of.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    """The environment's own options and their defaults."""
    max_turns: ClassVar[int] = 1
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tools: tuple[ToolSpec, ...] = ()

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = Conversation()
        self.action_space = Replies()

    def step(self, action: Reply) -> StepResult:
        """Play one reply. Called after `reset`, never after the end of the episode."""
        raise NotImplementedError(f"{type(self).__name__} must write step(reply)")

    def gold_reply(self) -> Reply:
        """What a perfect policy would reply now. Called before each `step` of an episode, never after its end."""
        raise NotImplementedError(f"{type(self).__name__} has no gold replies")

    def read_options(self, options: Mapping[str, Any] | None) -> tuple[Split, dict[str, Any]]:
        """The split and the environment's own options with defaults filled in.

        Raises `EnvironmentOptionError` for an unknown option or split.
        """
        given = dict(options or {})
        split = given.pop("split", "train")
        if split not in ("train", "heldout"):
            raise EnvironmentOptionError(f"split must be 'train' or 'heldout', got {split!r}")
        unknown = sorted(set(given) - set(self.OPTIONS))
        if unknown:
            known = ", ".join(sorted(self.OPTIONS)) or "none"
            raise EnvironmentOptionError(f"{type(self).__name__} has no option {unknown[0]!r}; its options: {known}")
        return split, {**self.OPTIONS, **given}


def in_split(key: str, split: Split) -> bool:
    """Whether the task with this key belongs to the split. A key belongs to exactly one, on every machine."""
    digest = hashlib.sha256(key.encode()).digest()
    return (digest[0] % HELDOUT_IN == 0) == (split == "heldout")


def draw_in_split(
    rng: np.random.Generator,
    split: Split,
    draw: Callable[[np.random.Generator], Problem],
    key: Callable[[Problem], str],
) -> Problem:
    """Draw problems until one belongs to the split. Raises `EnvironmentOptionError` after 1,000 draws."""
    for _ in range(1000):
        problem = draw(rng)
        if in_split(key(problem), split):
            return problem
    raise EnvironmentOptionError(f"no problem of split {split!r} in 1000 draws: the options leave too few problems")


def choose_level(level: object, levels: Mapping[int, Level]) -> Level:
    """What the option `level` stands for. Raises `EnvironmentOptionError` naming the levels there are."""
    if isinstance(level, bool) or not isinstance(level, int) or level not in levels:
        raise EnvironmentOptionError(f"level must be one of {', '.join(map(str, levels))}, got {level!r}")
    return levels[level]


class ToolEnv(TextEnv):
    """An environment whose public typed methods are its tools.

    Every public method that the subclass defines itself, other than the environment's own, is a tool: its docstring's
    first line is the description, its type hints (`str`, `int`, `float`, `bool`) are the schema. `step` runs the calls
    and returns their results as tool messages; an unknown tool, a wrong argument or an exception of type `ValueError`
    goes back to the policy as text. A reply without calls ends the episode with `score(reply)`.
    """

    max_turns: ClassVar[int] = 6

    def __init__(self) -> None:
        super().__init__()
        self.tools = tuple(tool_spec(method) for method in self._tool_methods().values())

    def score(self, reply: Reply) -> tuple[float, dict[str, float]]:
        """Reward and its parts for the reply that ended the episode."""
        raise NotImplementedError(f"{type(self).__name__} must write score(reply)")

    def step(self, action: Reply) -> StepResult:
        if action.tool_calls:
            results = tuple(Message("tool", self.call(call), name=call.name) for call in action.tool_calls)
            return results, 0.0, False, False, {}
        reward, parts = self.score(action)
        return (), reward, True, False, {"reward_parts": parts}

    def call(self, call: ToolCall) -> str:
        """Run one call and give its result, or what was wrong with it, as text."""
        methods = self._tool_methods()
        if call.name not in methods:
            return f"error: no tool named {call.name}; tools: {', '.join(methods)}"
        try:
            arguments = read_arguments(methods[call.name], call.arguments)
            return str(methods[call.name](**arguments))
        except ValueError as error:
            return f"error: {error}"

    def _tool_methods(self) -> dict[str, Callable[..., Any]]:
        own = set(dir(TextEnv)) | {"score", "call"}
        return {
            name: getattr(self, name)
            for name in dir(type(self))
            if not name.startswith("_") and name not in own and inspect.isfunction(getattr(type(self), name))
        }


JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def tool_spec(method: Callable[..., Any]) -> ToolSpec:
    """The spec of a tool from its signature and docstring. Raises `TypeError` for a parameter of another type."""
    hints = typing.get_type_hints(method)
    names = list(inspect.signature(method).parameters)
    for name in names:
        if hints.get(name) not in JSON_TYPES:
            raise TypeError(f"tool {method.__name__}: parameter {name} must be str, int, float or bool")
    properties = {name: {"type": JSON_TYPES[hints[name]]} for name in names}
    description = (inspect.getdoc(method) or "").split("\n")[0]
    return ToolSpec(method.__name__, description, {"type": "object", "properties": properties, "required": names})


def read_arguments(method: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments in the method's types; text is converted. Raises `ValueError` naming what is wrong."""
    hints = typing.get_type_hints(method)
    names = list(inspect.signature(method).parameters)
    if set(given) != set(names):
        raise ValueError(
            f"{method.__name__} takes {', '.join(names) or 'no arguments'}, got {', '.join(given) or 'none'}"
        )
    return {name: read_argument(name, hints[name], given[name]) for name in names}


def read_argument(name: str, kind: type, value: Any) -> Any:
    """The value in the type `kind`; text is converted. Raises `ValueError` where that would change the value."""
    text = value.strip() if isinstance(value, str) else value
    try:
        if kind is bool and str(text).lower() in ("true", "false"):
            return str(text).lower() == "true"
        if kind in (int, float) and not isinstance(text, bool) and kind(text) == float(text):
            return kind(text)
        if kind is str and not isinstance(text, (list, dict)):
            return str(text)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be {JSON_TYPES[kind]}, got {value!r}")
