"""How does one rollout use an engine that many rollouts share?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl.engine.clock import Place
from rl.engine.protocol import SampledReply, SamplingParams

if TYPE_CHECKING:
    from rl.engine.thread import ThreadedEngine


class ThreadedLane:
    """A `rl.engine.protocol.Lane`."""

    def __init__(self, engine: "ThreadedEngine", place: Place) -> None:
        self._engine = engine
        self._place = place

    async def seated(self) -> None:
        await self._engine.seated(self._place)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> SampledReply:
        """Sample one reply; cancelling the coroutine withdraws the request. Raises `EngineError`."""
        return await self._engine.sample(self._place, prompt_ids, params)

    def close(self) -> None:
        self._engine.close_lane(self._place)
