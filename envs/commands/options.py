"""How are an environment's options read from a command line, as `name=value`, and how are they checked?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from envs.session import Session


def read_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Raises `typer.BadParameter` for what is not name=value."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"options are name=value, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def open_once(env_id: str, options: Mapping[str, Any]) -> None:
    """Open and close a task before anything is begun, so that a wrong id or option ends the command with code 2.

    Raises `EnvFailure`.
    """
    with Session.installed(env_id) as session:
        session.reset(0, options)
