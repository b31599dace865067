"""Which options was a task opened with? For the message about a `reset` that failed."""

from collections.abc import Mapping
from typing import Any

from envs.errors import shown
from envs.text_env import EnvironmentOptionError, TextEnv


def options_text(env: TextEnv, options: Mapping[str, Any], error: BaseException | None) -> str:
    """Which options a task was opened with, where they are not the defaults: a wrong one fails inside of `reset`.

    Empty for an error that names the option itself.
    """
    if isinstance(error, EnvironmentOptionError):
        return ""
    try:
        defaults = env.OPTIONS if isinstance(env.OPTIONS, Mapping) else {}
        given = {name: value for name, value in options.items() if name != "split" and defaults.get(name) != value}
    except BaseException:  # the environment's attributes may be properties, its defaults anything, and they may exit
        return ""
    told = [f"{name}={shown(value, 60)} (default {shown(defaults.get(name), 60)})" for name, value in given.items()]
    return f"; with the option{'s' if len(told) > 1 else ''} {', '.join(told)}" if told else ""
