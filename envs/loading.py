"""When is the data of an environment read? Once per process, before its first task: a reset has a short deadline."""

from collections.abc import Mapping
from typing import Any

from envs.event_loop import call_within
from envs.registry import factory_of
from envs.text_env import TextEnv

LOAD_S = 300.0
"""Maximum duration of reading the data of one environment."""


def load_data(env_id: str, options: Mapping[str, Any]) -> None:
    """Let an installed environment read what its tasks with these options need (`TextEnv.load_data`).

    Errors are ignored, because making or resetting the environment raises them again.
    """

    def load() -> None:
        factory, _ = factory_of(env_id)
        if isinstance(factory, type) and issubclass(factory, TextEnv):
            factory.load_data(options)

    try:
        call_within(load, LOAD_S)
    except Exception:
        return
    except BaseException as error:  # environment code may raise anything
        if isinstance(error, KeyboardInterrupt):
            raise
