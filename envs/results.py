"""What is a valid result of an environment? This module defines it for the trainer, the commands and the checks.

All functions raise `ResultError` with what is wrong, and return text as valid Unicode (`envs.messages.valid`).

Rules for rewards: each is a finite number. `reward_range` bounds the total of an episode. The total is checked when the
episode is over, not at each step, so an environment may subtract in one step what it pays in another. A truncated
episode (out of turns or tokens) is also over: its total is what was paid until then, 0 if no reply was ever scored. So
an environment with tools or several turns must have a range in which 0 is allowed, and is not the full reward.
"""

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from envs.errors import cut, named, shown
from envs.messages import Message, Reply, ToolCall, ToolSpec, valid, valid_text
from envs.text_env import StepResult, TextEnv, read_score

MAX_MESSAGE_CHARACTERS = 1_000_000
"""Default; in training, `rollout.max_message_characters` replaces it."""
NOTE_CHARACTERS = 50
"""More than the note of a cut text has."""
ROLES = ("system", "user", "assistant", "tool")
TOLERANCE = 1e-6
"""How far a total may be outside its declared range: a sum of parts is not exactly 1."""
FULL_TOLERANCE = 1e-9
MAX_NAME_CHARACTERS = 200
"""Maximum length of a reward part's name, which becomes the name of a metric."""
MAX_SEEN_TOOLS = 1000
_SEEN_TOOLS: dict[int, tuple[ToolSpec, ...]] = {}
"""Tools that were already read, by identity: reading 24 of them takes as long as opening a task."""
Read = TypeVar("Read")


class ResultError(ValueError):
    """An environment returned or declares something that the contract does not allow."""


class RangeError(ResultError):
    """The total of an episode is outside of its declared range, or not finite; or the range cannot be right."""


def is_full_reward(reward: float, reward_range: tuple[float, float]) -> bool:
    """Whether the reward is the top of the range, which accuracy, pass rates and pass@k count."""
    top = reward_range[1]
    return reward >= top - FULL_TOLERANCE * max(1.0, abs(top))


def check_total(total: float, reward_range: tuple[float, float]) -> None:
    """Raises `RangeError` for the total of an episode that the environment's declaration excludes."""
    low, high = reward_range
    if not math.isfinite(total) or not low - TOLERANCE <= total <= high + TOLERANCE:
        raise RangeError(f"reward {total} is outside of its declared range [{low}, {high}]")


def check_attributes(env: TextEnv) -> None:
    """Raises `ResultError` that names the attribute with a value of the wrong kind."""
    turns = env.max_turns
    if not isinstance(turns, int | np.integer) or isinstance(turns, bool) or turns < 1:
        raise ResultError(f"max_turns must be a whole number of at least 1, got {shown(turns)}")
    if not _is_range(env.reward_range):
        raise ResultError(f"reward_range must be two numbers, the lower first, got {shown(env.reward_range)}")
    if not isinstance(env.OPTIONS, Mapping) or not all(isinstance(name, str) for name in env.OPTIONS):
        raise ResultError(f"OPTIONS must map names to their defaults, got {shown(env.OPTIONS)}")
    for name in ("is_async", "has_close", "scores_groups"):
        if not isinstance(getattr(env, name), bool):
            raise ResultError(f"{name} must be True or False, got {shown(getattr(env, name))}")
    if env.answer_of is not None and not callable(env.answer_of):
        raise ResultError(f"answer_of must be a function of a text, or None, got {shown(env.answer_of)}")
    if not isinstance(env.tools, tuple | list) or not all(isinstance(tool, ToolSpec) for tool in env.tools):
        raise ResultError(f"tools must be a tuple of ToolSpec, got {shown(env.tools)}")


def check_opened(env: TextEnv) -> tuple[tuple[ToolSpec, ...], int]:
    """Check the attributes that `reset` may have set, and make the tools' texts valid. Returns tools and `max_turns`.

    Raises `ResultError`; `RangeError` for a range that cannot have the total of an episode which was never scored.
    """
    check_attributes(env)
    tools = env.tools
    if _SEEN_TOOLS.get(id(tools)) is not tools:  # most environments share one tuple among all instances
        tools = env.tools = read_tools(tools)
        if len(_SEEN_TOOLS) >= MAX_SEEN_TOOLS:
            _SEEN_TOOLS.clear()
        _SEEN_TOOLS[id(tools)] = tools
    _check_unfinished(env, has_tools=bool(tools))
    return tools, int(env.max_turns)


def _check_unfinished(env: TextEnv, *, has_tools: bool) -> None:
    """A single reply is scored unless it calls a tool; of several none need be, such as those with malformed calls."""
    low, high = env.reward_range
    if (has_tools or env.max_turns > 1) and not low <= 0 < high:
        raise RangeError(
            f"reward_range must be from 0 or less to more than 0, got ({low:g}, {high:g}): with tools or several turns"
            " an episode may end before it is scored, and its total is what was paid until then, 0 at first; shift the"
            " rewards"
        )


def read_tools(tools: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
    """The tools as they are shown to the policy; the same tuple if nothing had to be made valid."""
    for tool in tools:
        if not isinstance(tool.name, str) or not isinstance(tool.description, str) or not tool.name:
            raise ResultError(f"tools: a tool needs a name and a description, both text, got {shown(tool)}")
        if not isinstance(tool.parameters, Mapping):
            raise ResultError(f"tools: the parameters of {tool.name} must be a mapping, got {shown(tool.parameters)}")
        try:
            json.dumps(dict(tool.parameters))
        except (TypeError, ValueError, RecursionError) as error:
            raise ResultError(f"tools: the parameters of {tool.name} are not JSON: {named(error)}") from None
    read = tuple(valid(tool) for tool in tools)
    if isinstance(tools, tuple) and all(new is old for new, old in zip(read, tools, strict=True)):
        return tools
    return read


def read_opening(result: Any, most: int = MAX_MESSAGE_CHARACTERS) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """The result of `reset`: messages of at most `most` characters each, and info."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise ResultError(f"reset must return (messages, info), got {shown(result)}")
    opening, info = _read(lambda: (_messages(result[0], most), _info(result[1])))
    if not opening:
        raise ResultError("reset must give at least one message; there is nothing to reply to")
    return opening, info


def read_step(result: Any, most: int = MAX_MESSAGE_CHARACTERS) -> StepResult:
    """The result of `step`, with `info["reward_parts"]`, if present, as finite floats by name."""
    if not isinstance(result, tuple) or len(result) != 5:
        raise ResultError(f"step must return (messages, reward, terminated, truncated, info), got {shown(result)}")
    messages, reward, terminated, truncated, info = result

    def read() -> StepResult:
        if not _is_finite_number(reward):
            raise ResultError(f"reward must be a finite number, got {shown(reward)}")
        checked = _info(info)
        if "reward_parts" in checked:
            checked = {**checked, "reward_parts": _parts(checked["reward_parts"])}
        ends = _truth("terminated", terminated), _truth("truncated", truncated)
        return _messages(messages, most), float(reward), *ends, checked

    return _read(read)


def read_scores(scores: Any, num_members: int) -> list[tuple[float, dict[str, float]]]:
    """The result of `score_group`: reward and parts of each member."""

    def read(score: Any) -> tuple[float, dict[str, float]]:
        try:
            reward, parts = read_score(score)
        except (TypeError, ValueError, OverflowError) as error:
            raise ResultError(f"score_group: {named(error)}") from None
        if not _is_finite_number(reward):
            raise ResultError(f"a score must be a finite number, got {shown(reward)}")
        return reward, _parts(parts)

    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != num_members:
        raise ResultError(f"score_group must give {num_members} scores in order, got {shown(scores)}")
    return _read(lambda: [read(score) for score in scores])


def read_gold(reply: Any) -> Reply:
    """The result of `gold_reply`."""
    if not isinstance(reply, Reply):
        raise ResultError(f"gold_reply must return a Reply, got {shown(reply)}")

    def read() -> Reply:
        _messages((reply.as_message(),), MAX_MESSAGE_CHARACTERS)
        return valid(reply)

    return _read(read)


def task_key(env: TextEnv, opening: tuple[Message, ...], info: Mapping[str, Any]) -> Hashable:
    """The identity of a task: `info["key"]`, else the attribute `key`, else the opening messages."""
    key = info.get("key", getattr(env, "key", None))
    if key is None:
        return opening
    try:
        hash(key)
    except TypeError:
        return repr(key)
    return key


def _read(read: Callable[[], Read]) -> Read:
    """Reading an environment's result may run its code: a property, a comparison, `__bool__`."""
    try:
        return read()
    except (ResultError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: it would end the reading process
        raise ResultError(f"what the environment returned cannot be read: {named(error)}") from error


def _messages(messages: Any, most: int) -> tuple[Message, ...]:
    if not isinstance(messages, tuple) or not all(isinstance(message, Message) for message in messages):
        raise ResultError(f"messages must be a tuple of envs.messages.Message, got {shown(messages)}")
    return tuple(_message(message, most) for message in messages)


def _message(message: Message, most: int) -> Message:
    """The message in our own types: a rollout is sent to other processes, which lack the environment's classes."""
    role, calls = message.role, message.tool_calls
    if not isinstance(role, str) or role not in ROLES:
        raise ResultError(f"a message's role must be one of {', '.join(ROLES)}, got {shown(role)}")
    texts = {name: getattr(message, name) for name in ("content", "reasoning", "name")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ResultError(f"the {name} of a message must be text, got {shown(text)}")
        if len(text) > most and (role, name) == ("tool", "content"):  # how long it is depends on the policy's call
            texts[name] = cut(text, max(0, most - NOTE_CHARACTERS))
        elif len(text) > most:
            raise ResultError(
                f"a message has {len(text)} characters, more than rollout.max_message_characters ({most})"
            )
    if not isinstance(calls, tuple) or not all(isinstance(call, ToolCall) for call in calls):
        raise ResultError(f"the tool_calls of a message must be a tuple of ToolCall, got {shown(calls)}")
    plain: Any = {name: valid_text(text) for name, text in texts.items()}
    return Message(valid_text(role), tool_calls=tuple(map(_call, calls)), **plain)  # type: ignore[arg-type]


def _call(call: ToolCall) -> ToolCall:
    name, arguments = call.name, call.arguments
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ResultError(f"a tool call has a name and arguments by name, got {shown(call)}")
    try:
        plain = json.loads(json.dumps(dict(arguments), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultError(f"the arguments of a call of {shown(name)} are not JSON: {named(error)}") from None
    return ToolCall(valid_text(name), valid(plain))


def _info(info: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise ResultError(f"info must be a dict, got {type(info).__name__}")
    return dict(info)


def _parts(parts: Any) -> dict[str, float]:
    if not isinstance(parts, dict) or not all(map(_is_finite_number, parts.values())):
        raise ResultError(f"info['reward_parts'] must be a dict of finite numbers, got {shown(parts)}")
    return {cut(str(name), MAX_NAME_CHARACTERS): float(value) for name, value in parts.items()}


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ResultError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def _is_range(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in value)
    return numbers and value[0] < value[1]


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:  # an integer too large for a float
        return False
