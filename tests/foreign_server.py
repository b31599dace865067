"""Run by tests/test_foreign.py in a process of its own: other projects' servers, from their own installed code.

`foreign_server.py PORT` serves resources servers of nemo-gym at `/MODULE`, and a guessing game of OpenEnv at `/text`
and `/numbers`, and at `/one_number` for one session at a time.
"""

import importlib
import sys
from typing import Any
from unittest.mock import MagicMock

import uvicorn
from fastapi import FastAPI

NEMO_GYM = ("example_session_state_mgmt", "example_multi_turn_gymnasium", "mcqa")
NOT_NEEDED = ("fastmcp", "fastmcp.client", "fastmcp.client.client", "scipy", "scipy.stats", "wandb", "yappi", "pydot")
"""What these projects import at once for other things than serving: MCP clients, profiles, uploads."""


def nemo_gym_app(module: str) -> Any:
    from nemo_gym.base_resources_server import SimpleResourcesServer  # pyright: ignore[reportMissingImports]

    app = importlib.import_module(f"resources_servers.{module}.app")
    here = (item for item in vars(app).values() if isinstance(item, type) and item.__module__ == app.__name__)
    made_by = next(item for item in here if issubclass(item, SimpleResourcesServer))
    config = made_by.model_fields["config"].annotation(host="127.0.0.1", port=1, entrypoint="app.py", name=module)
    return made_by.model_construct(config=config, server_client=None).setup_webserver()


def openenv_app(kind: str, num_sessions: int) -> Any:
    from openenv.core.env_server import (  # pyright: ignore[reportMissingImports]
        Action,
        Environment,
        Observation,
        State,
        create_fastapi_app,
    )

    class Number(Action):
        """Guess a number."""

        number: int

    class Text(Action):
        text: str

    class Told(Observation):
        said: str

    class Guess(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, highest: int = 9, **_: Any) -> Told:
            self.wanted = (seed or 0) % (highest + 1)
            return Told(said=f"Guess 0 to {highest}.")

        def step(self, action: Any, timeout_s: float | None = None, **_: Any) -> Told:
            number = action.number if isinstance(action, Number) else int(action.text)
            if number == self.wanted:
                return Told(said="right", reward=1.0, done=True)
            return Told(said="higher" if self.wanted > number else "lower", reward=0.0)

        @property
        def state(self) -> State:
            return State()

    return create_fastapi_app(Guess, Text if kind == "text" else Number, Told, max_concurrent_envs=num_sessions)


if __name__ == "__main__":
    sys.modules.update({name: MagicMock() for name in NOT_NEEDED})
    server = FastAPI()
    for name in NEMO_GYM:
        server.mount(f"/{name}", nemo_gym_app(name))
    server.mount("/text", openenv_app("text", 32))
    server.mount("/numbers", openenv_app("number", 32))
    server.mount("/one_number", openenv_app("number", 1))
    uvicorn.run(server, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
