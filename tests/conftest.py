"""What tests share: a scripted engine, a chat over characters, and short ways to make tasks and rollouts."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envs.commands.new import write_package
from envs.messages import Message, Reply, ToolSpec
from rl.chat.budget import ThinkingLimit
from rl.config.environments import BudgetConfig
from rl.config.experiment import ExperimentConfig
from rl.data_types import Budget, Finish, Group, Outcome, Rollout, Task, Turn
from rl.engine.protocol import Lane, SampledReply, SamplingParams
from rl.tokens import Tokens
from rl.weights.source import WeightSource

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
        return Reply("", malformed=text) if text.startswith("malformed") else Reply(text)

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
        return SampledReply(make_reply(ids, [self._engine.version] * len(ids)), finish)

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


def make_config(**changes: Any) -> ExperimentConfig:
    """A valid configuration; `changes` replace whole sections."""
    tree: dict[str, Any] = {
        "run_dir": "runs/test",
        "seed": 0,
        "policy": {"path": "models/none"},
        "environments": {"math/Arithmetic-v0": {}},
        "train": {"num_steps": 2, "num_prompts": 2, "group_size": 2},
        **changes,
    }
    return ExperimentConfig.model_validate(tree)


def make_task(ordinal: int = 0, env_id: str = "math/Arithmetic-v0", **options: Any) -> Task:
    return Task(ordinal, env_id, 7, "train", "unlimited", options)


def make_rollout(
    reward: float | None = 1.0,
    outcome: Outcome = Outcome.OK,
    *,
    task: Task | None = None,
    member: int = 0,
    turns: tuple[Turn, ...] | None = None,
) -> Rollout:
    """A one-turn rollout; a reward of None gets an outcome that does not count."""
    task = task or make_task()
    if reward is None and outcome.counts:
        outcome = Outcome.ENV_ERROR
    turns = (make_turn(),) if turns is None else turns
    messages = (Message("user", "1 + 1 = ?"), Message("assistant", "2", reasoning="1 + 1 = 2"))
    parts = {} if reward is None else {"correct": reward}
    error = "" if outcome.counts else "it broke"
    return Rollout(task, f"0-{task.ordinal}", member, turns, messages, reward, parts, outcome, error, 0, "", 1, 0.1)


def make_turn(
    prompt_ids: Sequence[int] = (1, 2), reply_ids: Sequence[int] = (3, 4), versions: Sequence[int] | None = None
) -> Turn:
    versions = [0] * len(reply_ids) if versions is None else versions
    return Turn(Tokens.unsampled(prompt_ids), make_reply(reply_ids, versions), "stop", is_start=True)


def make_reply(ids: Sequence[int], versions: Sequence[int], forced: Sequence[int] = ()) -> Tokens:
    """A reply whose tokens at the places `forced` were not sampled."""
    sampled = [place not in forced for place in range(len(ids))]
    return Tokens.make(ids, sampled, {"logprob": [-0.5] * len(ids), "version": versions})


def make_group(rewards: Sequence[float | None], ordinal: int = 0, **task_options: Any) -> Group:
    task = make_task(ordinal, **task_options)
    rollouts = tuple(make_rollout(reward, task=task, member=member) for member, reward in enumerate(rewards))
    return Group(f"0-{ordinal}", task, rollouts)


@pytest.fixture
def new_package(tmp_path: Path) -> Path:
    """The folder of a package as `envs new` writes it; it announces my/WordGame-v0."""
    write_package("WordGame", "function", tmp_path)
    return tmp_path / "polygym-word-game"


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parent.parent
