"""Which options was a task opened with? For the message about a failed `reset`."""

from collections.abc import Mapping
from typing import Any

from envs.errors import shown
from envs.text_env import EnvironmentOptionError, TextEnv


def options_text(env: TextEnv, options: Mapping[str, Any], error: BaseException | None) -> str:
    """The options of a task that are not the defaults, as text: a wrong option fails inside `reset`.

    Empty if the error itself names the option.
    """
    if isinstance(error, EnvironmentOptionError):
        return ""
    try:
        defaults = env.OPTIONS if isinstance(env.OPTIONS, Mapping) else {}
        given = {name: value for name, value in options.items() if name != "split" and defaults.get(name) != value}
    except BaseException:  # attributes may be properties, defaults may be anything, and both may exit
        return ""
    told = [f"{name}={shown(value, 60)} (default {shown(defaults.get(name), 60)})" for name, value in given.items()]
    return f"; with the option{'s' if len(told) > 1 else ''} {', '.join(told)}" if told else ""
