"""`python -m envs play`: a person, or the gold replies, in the place of the policy."""

import json
import shlex
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from envs.event_loop import settle
from envs.messages import Message, Reply, ToolCall
from envs.registry import make
from envs.text_env import TextEnv

STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
HELP = "Write your reply, then an empty line. A line `!NAME argument=value ...` calls the tool NAME; Ctrl-D gives up."


def play_environment(
    console: Console,
    env_id: str,
    options: dict[str, Any],
    seed: int,
    *,
    gold: bool = False,
    read_line: Callable[[str], str] = input,
) -> float | None:
    """Play one episode in the terminal and give its reward; None when it was given up."""
    env = make(env_id)
    messages, _ = settle(env.reset(seed=seed, options=options))
    if not gold:
        console.print(HELP, style="dim")
    for tool in env.tools:
        console.print(f"tool {tool.name}: {tool.description} {json.dumps(tool.parameters['properties'])}", markup=False)
    total = 0.0
    for turn in range(env.max_turns):
        for message in messages:
            print_message(console, message)
        reply = env.gold_reply() if gold else ask(console, env, turn, read_line)
        if reply is None:
            return None
        if gold:
            print_message(console, reply.as_message())
        messages, reward, terminated, truncated, info = settle(env.step(reply))
        total += reward
        if terminated or truncated:
            for message in messages:
                print_message(console, message)
            parts = "".join(f"  {name} {value:.3g}" for name, value in info.get("reward_parts", {}).items())
            console.print(f"[bold]reward {total:.3f}[/bold]{parts}")
            break
    settle(env.close())
    return total


def ask(console: Console, env: TextEnv, turn: int, read_line: Callable[[str], str]) -> Reply | None:
    """The person's reply; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = read_line(f"reply {turn + 1} of {env.max_turns}> " if not lines else "... ")
        except EOFError:
            console.print("given up")
            return None
        if line.startswith("!"):
            try:
                return Reply("\n".join(lines), "", (read_call(line[1:]),))
            except ValueError as error:
                console.print(f"[red]{error}")
                continue
        if not line and lines:
            return Reply("\n".join(lines))
        lines.append(line)


def read_call(line: str) -> ToolCall:
    """`name key=value ...` as a call; values are JSON where they can be read so, else text. Raises `ValueError`."""
    name, *pairs = shlex.split(line) or [""]
    if not name:
        raise ValueError("name the tool after the exclamation mark")
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"arguments are name=value, got {pair!r}")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return ToolCall(name, arguments)


def print_message(console: Console, message: Message) -> None:
    console.print(Text(f"{message.role} {message.name}".strip(), style=STYLES[message.role]))
    if message.reasoning:
        console.print(Text(message.reasoning, style="dim italic"))
    if message.content:
        console.print(Text(message.content))
    for call in message.tool_calls:
        console.print(Text(f"-> {call.name}({json.dumps(dict(call.arguments))})", style="yellow"))
