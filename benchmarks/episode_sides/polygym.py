"""What does a whole episode cost in polygym? Chat, tokens, environment, a record of every token."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.episode_sides.common import CALLED, ENDED, LOOK_AROUND, Size, asyncio_ms, run_side, tiny_policy
from envs.messages import Reply, ToolCall
from rl.chat.chat import load_chat
from rl.engine.protocol import SampledReply, SamplingParams
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.play import Player, play
from rl.tokens import Tokens
from rl.weights.source import WeightSource
from tests.makers import make_config, make_task


class ReadyLane:
    """Replies with these token ids, one after the other."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self._replies = iter(replies)

    async def seated(self) -> None:
        pass

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> SampledReply:
        ids = next(self._replies)
        num = len(ids)
        columns = {"logprob": [-0.5] * num, "version": [0] * num}
        return SampledReply(Tokens.make(ids, [True] * num, columns), "stop")

    def close(self) -> None:
        pass


class ReadyEngine:
    """Its lanes have the same replies ready."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self._replies = replies

    def open_lanes(self, num: int) -> list[ReadyLane]:
        return [ReadyLane(self._replies) for _ in range(num)]

    async def load_weights(self, source: WeightSource) -> str:
        return source.hash

    def check_alive(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def polygym(size: Size) -> Callable[[], float]:
    with tempfile.TemporaryDirectory() as folder:
        chat = load_chat(tiny_policy(Path(folder)), "nemotron")
    replies = (Reply("", "I look.", (ToolCall("look", CALLED),)), Reply(ENDED, "I saw."))
    dialogue = chat.begin((), (), "unlimited")
    engine = ReadyEngine([dialogue.reply_ids(reply) for reply in replies])
    config = make_config()

    async def one(seed: int, runner: EnvRunner) -> None:
        player = Player(config, chat, engine, runner, 1.0)
        (lane,) = engine.open_lanes(1)
        rollout = await play(player, make_task(seed, LOOK_AROUND), "group", 0, lane)
        if rollout.reward != 1.0 or len(rollout.turns) != 2:
            raise RuntimeError(f"{rollout.outcome}: {rollout.error}")

    return lambda: asyncio_ms(size, one, EnvRunner)


if __name__ == "__main__":
    run_side(polygym)
