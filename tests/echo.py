"""Echo, an environment that asks twice, and what plays it with a scripted engine."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import rl.rollouts.env_session as environment_module
from envs.messages import Message, Reply
from envs.text_env import TextEnv
from rl.data_types import Rollout
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.play import Player, play
from rl.tokens import Tokens
from tests.makers import make_config, make_task
from tests.scripted import CharacterChat, ScriptedEngine

Script = Callable[..., Any]


class Echo(TextEnv):
    """Asks twice; the reward is 1 when the second reply is `yes`."""

    max_turns = 3
    instances: list["Echo"] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.num_steps = 0
        Echo.instances.append(self)
        return (Message("user", "first?"),), {}

    def step(self, action: Reply) -> Any:
        self.num_steps += 1
        if self.num_steps == 1:
            return (Message("user", "second?"),), 0.0, False, False, {}
        reward = float(action.text == "yes")
        return (), reward, True, False, {"reward_parts": {"yes": reward}}


def played(env: type[TextEnv], script: Script, monkeypatch: pytest.MonkeyPatch, **rollout: Any) -> Rollout:
    monkeypatch.setattr(environment_module, "make", lambda env_id: env())
    config = make_config(rollout=rollout, policy={"path": "x", "max_tokens": 120})
    engine = ScriptedEngine(script)

    async def run() -> Rollout:
        player = Player(config, CharacterChat(), engine, EnvRunner(4), 1.0)  # pyright: ignore[reportArgumentType]
        (lane,) = engine.open_lanes(1)
        return await play(player, make_task(), "0-0", 0, lane)

    rollout_played = asyncio.run(run())
    assert all(lane.is_closed for lane in engine.lanes)
    return rollout_played


def soon(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether it holds within this time."""
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def failing(method: str, fail: Callable[[], Any]) -> type[TextEnv]:
    """Echo whose `reset` or `step` does something bad."""
    return type("Failing", (Echo,), {method: lambda self, *args, **kwargs: fail()})


def as_text(tokens: Tokens) -> str:
    return "".join(map(chr, tokens.ids.tolist()))
