"""`python -m envs list` and `info`: which environments are there, and what is this one?"""

import dataclasses
import inspect
import json
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from envs.commands.play import print_message
from envs.event_loop import settle
from envs.registry import Announced, announcements, make, whole_name


def list_environments(console: Console, *, as_json: bool = False, try_them: bool = False) -> None:
    """All announced environments with package, version and origin; imports none unless they are to be tried."""
    found = [tried(announced) if try_them else announced for announced in announcements()]
    if as_json:
        console.print_json(json.dumps([_row(announced) for announced in found]))
        return
    table = Table("id", "package", "class", "state")
    for announced in found:
        state = f"[red]broken: {announced.problem}" if announced.problem else "ok" if try_them else "announced"
        table.add_row(announced.env_id, announced.package, announced.target, state)
    console.print(table)
    console.print(
        "python -m envs list --try imports each, info ID tells more; module:Class in a YAML names a class that no"
        " package announces."
    )


def tried(announced: Announced) -> Announced:
    """With the error of making it, where there is one."""
    if announced.problem:
        return announced
    try:
        settle(make(announced.env_id).close())
    except Exception as error:
        return dataclasses.replace(announced, problem=str(error))
    return announced


def _row(announced: Announced) -> dict[str, str]:
    return {
        "id": announced.env_id,
        "package": announced.package,
        "class": announced.target,
        "problem": announced.problem,
    }


def show_environment(console: Console, env_id: str, options: dict[str, Any], seed: int) -> None:
    """Description, options, tools and one task. Raises what `make` raises."""
    env = make(env_id)
    described = getattr(env, "inner", env)
    console.print(f"[bold]{env_id}[/bold]  {whole_name(env_id)}")
    console.print(Markdown(inspect.getdoc(type(described)) or "It has no description."))
    low, high = env.reward_range
    console.print(f"\nreward {low} to {high}, at most {env.max_turns} replies, {'async' if env.is_async else 'sync'}")
    console.print(f"options {', '.join(f'{name}={value!r}' for name, value in env.OPTIONS.items()) or 'none'}")
    for tool in env.tools:
        console.print(f"tool {tool.name}: {tool.description} {json.dumps(tool.parameters['properties'])}", markup=False)
    console.print(f"\n[bold]task of seed {seed}[/bold]")
    messages, _ = settle(env.reset(seed=seed, options=options))
    for message in messages:
        print_message(console, message)
    try:
        console.print("[bold]first gold reply[/bold]")
        print_message(console, env.gold_reply().as_message())
    except NotImplementedError as error:
        console.print(str(error), markup=False)
    settle(env.close())
