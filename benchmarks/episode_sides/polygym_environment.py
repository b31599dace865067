"""What does the environment's side of an episode cost in polygym? It is made, reset and stepped with deadlines, and its
results are checked.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable

from benchmarks.episode_sides.common import CALLED, ENDED, LOOK_AROUND, Size, asyncio_ms, run_side
from envs.messages import Reply, ToolCall
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.env_session import EnvSession
from tests.makers import make_config, make_task


def polygym_environment(size: Size) -> Callable[[], float]:
    config = make_config().rollout

    async def one(seed: int, runner: EnvRunner) -> None:
        episode = EnvSession(make_task(seed, LOOK_AROUND), runner, config)
        await episode.reset()
        await episode.step(Reply("", "", (ToolCall("look", CALLED),)))
        _, terminated, _ = await episode.step(Reply(ENDED))
        if not terminated or episode.reward != 1.0:
            raise RuntimeError("the episode did not end well")
        episode.close()

    return lambda: asyncio_ms(size, one, EnvRunner)


if __name__ == "__main__":
    run_side(polygym_environment)
