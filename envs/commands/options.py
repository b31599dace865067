"""How are an environment's options read from a command line? As `name=value`, with values as in YAML."""

import json
from collections.abc import Sequence
from typing import Any

import typer


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
