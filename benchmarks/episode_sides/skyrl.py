"""What does the environment's side of an episode cost in skyrl-gym? Made in place and called in a thread pool, as
SkyRL's generator does.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import skyrl_gym  # pyright: ignore[reportMissingImports]  # optional: `make adapters` installs it
from skyrl_gym.envs.base_text_env import (  # pyright: ignore[reportMissingImports]
    BaseTextEnv,
    BaseTextEnvStepOutput,
)
from skyrl_gym.tools.core import ToolGroup, tool  # pyright: ignore[reportMissingImports]

from benchmarks.episode_sides.common import CALLED, ENDED, PROMPT, Size, asyncio_ms, run_side


class Looking(ToolGroup):
    def __init__(self) -> None:
        super().__init__(name="looking")

    @tool
    def look(self, place: str) -> str:
        return "nothing"


class Env(BaseTextEnv):
    def __init__(self) -> None:
        super().__init__()
        self.max_turns = 2
        self.init_tool_groups([Looking()])

    def step(self, action: str) -> BaseTextEnvStepOutput:
        self.turns += 1
        if "<tool_call>" in action:
            call = json.loads(action.split("<tool_call>")[1].split("</tool_call>")[0])
            result = self._execute_tool("looking", call["name"], tuple(call["arguments"].values()))
            messages = [{"role": "user", "content": result}]
            return BaseTextEnvStepOutput(observations=messages, reward=0.0, done=False, metadata={})
        return BaseTextEnvStepOutput(observations=[], reward=1.0, done=True, metadata={})


def skyrl(size: Size) -> Callable[[], float]:
    skyrl_gym.register(id="look_around", entry_point=Env)
    call = f"<tool_call>{json.dumps({'name': 'look', 'arguments': CALLED})}</tool_call>"

    async def one(_: int, pool: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        env = skyrl_gym.make("look_around")
        await loop.run_in_executor(pool, env.init, [{"role": "user", "content": PROMPT}])
        await loop.run_in_executor(pool, env.step, call)
        last = await loop.run_in_executor(pool, env.step, ENDED)
        if not last["done"]:
            raise RuntimeError("the episode did not end")
        await loop.run_in_executor(pool, env.close)

    return lambda: asyncio_ms(size, one, ThreadPoolExecutor)


if __name__ == "__main__":
    run_side(skyrl)
