"""`python -m envs list` and `info`: which environments are there, and what does one of them do?"""

import dataclasses
import inspect
import json
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from envs.commands.play import print_message, print_tools
from envs.errors import error_text
from envs.registry import Announced, announcements, whole_name
from envs.session import EnvFailure, Session


def list_environments(console: Console, *, as_json: bool = False, try_them: bool = False) -> None:
    """All announced environments with package, version and origin; imports them only if `try_them`."""
    found = [tried(announced) if try_them else announced for announced in announcements()]
    if as_json:
        console.print_json(json.dumps([_row(announced) for announced in found]))
        return
    table = Table("id", "package", "class", "state")
    for announced in found:
        state = f"[red]broken: {announced.problem}" if announced.problem else "ok" if try_them else "installed"
        table.add_row(announced.env_id, announced.package, announced.target, state)
    console.print(table)
    console.print(
        "installed: a package announces it by an entry point; it was not imported. python -m envs list --try imports"
        " each, info ID shows one. module:Class in a YAML names a class that no package announces."
    )


def tried(announced: Announced) -> Announced:
    """The announced environment, with the error of making it if there is one."""
    if announced.problem:
        return announced
    with Session.installed(announced.env_id) as session:
        try:
            session.env  # noqa: B018 - makes it
        except EnvFailure as failure:
            return dataclasses.replace(announced, problem=str(failure))
    return announced


def _row(announced: Announced) -> dict[str, str]:
    return {
        "id": announced.env_id,
        "package": announced.package,
        "class": announced.target,
        "problem": announced.problem,
    }


def show_environment(console: Console, env_id: str, options: dict[str, Any], seed: int) -> None:
    """Print description, options, tools and one task. Raises `EnvFailure`."""
    with Session.installed(env_id) as session:
        print_description(console, env_id, session)
        console.print(f"\n[bold]task of seed {seed}[/bold]")
        messages, _ = session.reset(seed, options)
        print_tools(console, session)  # some environments know their tools once a task is open
        for message in messages:
            print_message(console, message)
        console.print("[bold]first gold reply (a perfect one, given by the environment)[/bold]")
        try:
            print_message(console, session.gold_reply().as_message())
        except EnvFailure as failure:
            if not isinstance(failure.error, NotImplementedError):
                raise
            console.print(error_text(failure.error), markup=False)


def print_description(console: Console, env_id: str, session: Session) -> None:
    env = session.env
    described = getattr(env, "inner", env)
    console.print(f"[bold]{env_id}[/bold]  {whole_name(env_id)}")
    console.print(Markdown(inspect.getdoc(type(described)) or "It has no description."))
    low, high = env.reward_range
    console.print(f"\nreward {low} to {high}, at most {env.max_turns} replies, {'async' if env.is_async else 'sync'}")
    own = {name: value for name, value in env.OPTIONS.items() if not is_row_choice(name, value)}
    console.print(f"options {', '.join(f'{name}={value!r}' for name, value in own.items()) or 'none'}", markup=False)
    if len(own) < len(env.OPTIONS):
        console.print("row=NUMBER plays that row of the split, with any seed")


def is_row_choice(name: str, value: Any) -> bool:
    """Whether this is the option of every environment over rows that selects the row; by default the seed draws it."""
    return name == "row" and value is None
