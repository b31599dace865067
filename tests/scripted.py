"""An engine that replies what a test says, a chat over characters, and what one reply of any engine was, as tuples."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs.messages import Message, Reply, ToolSpec
from rl.chat.budget import ThinkingLimit
from rl.config.environments import BudgetConfig
from rl.data_types import Budget, Finish
from rl.engine.protocol import Lane, SampledReply, SamplingParams
from rl.tokens import Tokens
from rl.weights.source import WeightSource
from tests.makers import make_reply

END = 0  # the stop token of CharacterChat


class CharacterChat:
    """A chat whose tokens are characters: message after message, each ended by token 0."""

    stop_ids = (END,)
    pad_id = END

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> "CharacterDialogue":
        return CharacterDialogue(messages, budget)


class CharacterDialogue:
    def __init__(self, messages: Sequence[Message], budget: Budget) -> None:
        self._budget = budget
        self._is_closed = True
        self.prompt_ids: tuple[int, ...] = ()
        self.say(messages)

    def take(self, reply_ids: Sequence[int]) -> Reply:
        self._is_closed = reply_ids[-1] == END
        self.prompt_ids = (*self.prompt_ids, *reply_ids)
        text = "".join(chr(token) for token in reply_ids if token != END)
        return Reply("", malformed=text, malformed_kind="form") if text.startswith("malformed") else Reply(text)

    def say(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids = [] if self._is_closed else [END]
        for message in messages:
            ids += [*map(ord, message.content), END]
        self.new_ids = tuple(ids)
        self.prompt_ids = (*self.prompt_ids, *ids)
        return self.new_ids

    def thinking_limit(self, enforcement: BudgetConfig, room: int) -> ThinkingLimit | None:
        if not isinstance(self._budget, int):
            return None
        return ThinkingLimit(self._budget, enforcement.grace_tokens, (ord("|"),), ord("|"), frozenset({ord(".")}))


class ScriptedLane:
    def __init__(self, engine: "ScriptedEngine") -> None:
        self._engine = engine
        self.is_closed = False

    async def seated(self) -> None:
        pass

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> SampledReply:
        await asyncio.sleep(0)
        reply = self._engine.script(tuple(prompt_ids), params)
        if isinstance(reply, Exception):
            raise reply
        ids: tuple[int, ...] = (*map(ord, reply), END)
        finish: Finish = "stop"
        if len(ids) > params.max_reply_tokens:
            ids, finish = ids[: params.max_reply_tokens], "length"
        return SampledReply(make_reply(ids, self._engine.version), finish)

    def close(self) -> None:
        self.is_closed = True


@dataclass(frozen=True)
class SampledTurn:
    """A prompt and what an engine replied to it, as plain tuples."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    reply_logprobs: tuple[float, ...]
    forced_mask: tuple[bool, ...]
    policy_versions: tuple[int, ...]
    finish: Finish
    tokens: Tokens


async def sample_turn(lane: Lane, prompt_ids: Sequence[int], params: SamplingParams) -> SampledTurn:
    await lane.seated()
    reply = await lane.sample(prompt_ids, params)
    tokens = reply.tokens
    columns = [tokens.ids, tokens.columns["logprob"], ~tokens.sampled, tokens.columns["version"]]
    ids, logprobs, forced, versions = (tuple(column.tolist()) for column in columns)
    return SampledTurn(tuple(prompt_ids), ids, logprobs, forced, versions, reply.finish, tokens)


class ScriptedEngine:
    """Replies what `script(prompt_ids, params)` says; an exception from it is raised."""

    def __init__(self, script: Callable[[tuple[int, ...], SamplingParams], str | Exception]) -> None:
        self.script = script
        self.version = 0
        self.lanes: list[ScriptedLane] = []

    def open_lanes(self, num: int) -> list[ScriptedLane]:
        lanes = [ScriptedLane(self) for _ in range(num)]
        self.lanes += lanes
        return lanes

    async def load_weights(self, source: WeightSource) -> str:
        self.version = source.version
        return source.hash

    def check_alive(self) -> None:
        pass

    def shutdown(self) -> None:
        pass
