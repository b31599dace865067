"""Plays replies in an environment and a chat format as a worker does, and checks what comes of them."""

import asyncio
import copy
import io
import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerFast

import rl.rollouts.env_session as environment_module
from envs.messages import Message
from envs.registry import make
from envs.text_env import TextEnv
from rl.algorithms.grpo import Grpo
from rl.chat.chat import Chat
from rl.chat.format import ChatError
from rl.chat.formats import CHAT_FORMATS
from rl.chat.formats.template import TemplateFormat
from rl.data_types import Budget, Finish, Group, Rollout, Task
from rl.engine.protocol import SampledReply, SamplingParams
from rl.learner.samples import make_samples
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.group_score import with_group_scores
from rl.rollouts.play import Player, play
from rl.runs.inspect import print_rollout
from rl.runs.saved_rollouts import rollout_from, rollout_object, write_rollouts
from tests.families import template_of
from tests.hostile_replies import TOKENIZER, Ids
from tests.makers import make_config, make_reply

Choose = Callable[[TextEnv], str | Ids]
"""The next reply in this environment, which was reset and may have been stepped."""


def _with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.copy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


CHATS = {name: Chat(TOKENIZER, kind.for_tokenizer(TOKENIZER)) for name, kind in CHAT_FORMATS.items()}
CHATS["qwen3"] = Chat(TOKENIZER, TemplateFormat.for_tokenizer(_with_template(template_of("qwen3"))))
"""By name; the last one has tools and a think block from a template."""
MAX_TOKENS = 1_500_000
MAX_PRINTED = 100_000
"""Characters of JSON; printing breaks lines at the width of every character, which takes seconds a megabyte."""


def gold_text(env: TextEnv, chat: Chat, budget: Budget) -> str:
    """What a perfect policy would write now, control tokens by name; empty where there is nothing to be said."""
    try:
        reply = env.gold_reply()
        dialogue = chat.begin((Message("user", "?"),), env.tools, budget)
        return chat.text(dialogue.reply_ids(reply)[:-1])
    except (ChatError, NotImplementedError, RuntimeError, LookupError):
        return ""  # after a wrong reply some environments have none


class HostileEngine:
    """Replies whatever `choose` says in the environment that was made last."""

    def __init__(self, chat: Chat, choose: Choose, made: list[TextEnv]) -> None:
        self._chat, self._choose, self._made = chat, choose, made

    def open_lanes(self, num: int) -> list["HostileEngine"]:
        return [self] * num

    async def seated(self) -> None:
        pass

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> SampledReply:
        reply = self._choose(self._made[-1])
        ids = reply if isinstance(reply, tuple) else tuple(TOKENIZER.encode(reply.encode(errors="replace").decode()))
        stops = [place for place, id in enumerate(ids) if id in self._chat.stop_ids]
        ids = ids[: stops[0] + 1] if stops else (*ids, self._chat.stop_ids[0])
        finish: Finish = "stop" if len(ids) <= params.max_reply_tokens else "length"
        ids = ids[: params.max_reply_tokens]
        return SampledReply(make_reply(ids), finish)

    def close(self) -> None:
        pass


class Table:
    """Plays replies in one environment and one chat format, and checks what comes of them."""

    def __init__(self, env_id: str, format: str = "nemotron", budget: Budget = "unlimited", **options: Any) -> None:
        self.chat = CHATS[format]
        self.budget: Budget = budget
        self.task = Task(0, env_id, 7, "train", budget, options)
        self.made: list[TextEnv] = []
        self.config = make_config(
            policy={"path": "x", "max_tokens": MAX_TOKENS},
            rollout={"max_reply_tokens": MAX_TOKENS // 2, "num_retries": 0},
            learner={"tokens_per_micro_batch": MAX_TOKENS},
        )

    def play(self, choose: Choose, num: int = 1) -> list[Rollout]:
        """`num` rollouts of one group, checked."""

        def recorded(env_id: str) -> TextEnv:
            self.made.append(make(env_id))
            return self.made[-1]

        async def run() -> list[Rollout]:
            engine = HostileEngine(self.chat, choose, self.made)
            player = Player(self.config, self.chat, engine, EnvRunner(2), 1.0)  # pyright: ignore[reportArgumentType]
            rollouts = [await play(player, self.task, "0-0", member, engine) for member in range(num)]  # pyright: ignore[reportArgumentType]
            return list(await with_group_scores(player, self.task, rollouts))

        before = environment_module.make
        environment_module.make = recorded
        try:
            rollouts = asyncio.run(run())
        finally:
            environment_module.make = before
        for rollout in rollouts:
            check_counts(rollout, self.made[-1].reward_range)
            check_usable(rollout)
        return rollouts

    def thought(self, text: str) -> str:
        """The text as an answer, after some reasoning where the policy may think."""
        return text if self.budget == "off" or not self.chat._format.has_thinking else f"Hm.\n</think>\n{text}"


def check_counts(rollout: Rollout, reward_range: tuple[float, float]) -> None:
    """Whatever the policy wrote is the policy's doing."""
    said = [message.content[:200] for message in rollout.messages if message.role == "assistant"]
    assert rollout.outcome.counts and not rollout.error, f"{rollout.outcome} {rollout.error[:2000]} after {said}"
    assert isinstance(rollout.reward, float)
    assert reward_range[0] - 1e-6 <= rollout.reward <= reward_range[1] + 1e-6


def check_usable(rollout: Rollout) -> None:
    """It crosses processes, is written and read back, shown, and trained on."""
    assert pickle.loads(pickle.dumps(rollout)).messages == rollout.messages
    file = io.StringIO()
    write_rollouts(file, 1, "train", [Group("0-0", rollout.task, (rollout,))])
    text = file.getvalue()
    text.encode()
    assert text.count("\n") == 1
    saved = json.loads(text)
    read = rollout_from(saved)
    assert rollout_object(read) == json.loads(json.dumps(rollout_object(rollout)))
    assert (read.messages, read.outcome, read.reward) == (rollout.messages, rollout.outcome, rollout.reward)
    if len(text) < MAX_PRINTED:
        shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        print_rollout(saved, Console(file=shown, width=100))
        shown.flush()
    group = Group("0-0", rollout.task, (rollout, rollout))
    samples = make_samples([group], lambda _: Grpo())
    assert bool(samples) == bool(rollout.outcome.counts and rollout.turns)
