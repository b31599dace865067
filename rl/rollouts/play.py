"""How is one rollout played? Environment and engine alternate until the episode ends; the result is a `Rollout`.

Token ids are only appended: the next prompt is the last prompt, the sampled reply, and the new messages.
"""

import logging
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial

from envs.messages import Message, valid_text
from rl.chat.budget import violation
from rl.chat.chat import Chat
from rl.chat.dialogue import Dialogue
from rl.chat.format import ChatError
from rl.config.experiment import ExperimentConfig
from rl.data_types import Outcome, Rollout, Task, Turn
from rl.engine.protocol import Engine, EngineError, Lane, SamplingParams
from rl.rollouts.env_processes import EnvProcesses
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.env_session import EnvSession, EnvSessionError
from rl.rollouts.process_session import ProcessSession
from rl.tasks.seeds import derive_seed
from rl.tokens import Tokens

Episode = EnvSession | ProcessSession
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Player:
    """The objects that all rollouts of a worker share."""

    config: ExperimentConfig
    chat: Chat
    engine: Engine
    runner: EnvRunner
    temperature: float
    processes: EnvProcesses | None = None
    """None runs every environment on the runner's threads."""

    def session(self, task: Task) -> Episode:
        """A new session for this task, where the task's environment runs now."""
        rollout, env_id = self.config.rollout, task.env_id
        if self.processes is None:
            return EnvSession(task, self.runner, rollout)
        if (zygote := self.processes.zygote_of(env_id)) is not None:
            return ProcessSession(task, zygote, self.processes.slots, rollout)
        return EnvSession(task, self.runner, rollout, partial(self.processes.spent_on_thread, env_id))


async def play(player: Player, task: Task, group_id: str, member: int, lane: Lane) -> Rollout:
    """Play the task, and retry after failures that the policy did not cause.

    This returns a rollout whatever the policy writes and the environment does. An unexpected exception becomes an
    infrastructure error of this rollout, with its traceback as the rollout's `error`.
    """
    num_attempts = 0
    while True:
        num_attempts += 1
        rollout = await _attempt(player, task, group_id, member, lane, num_attempts)
        lane.close()
        if rollout.outcome.counts or num_attempts > player.config.rollout.num_retries:
            return rollout
        (lane,) = player.engine.open_lanes(1)


async def _attempt(player: Player, task: Task, group_id: str, member: int, lane: Lane, number: int) -> Rollout:
    await lane.seated()  # before anything of the rollout is open or timed
    started = time.monotonic()
    episode = player.session(task)
    table = _Table(player, task, group_id, member, number)
    error = ""
    try:
        outcome = await table.converse(episode, lane)
        if outcome.counts:
            episode.check_total()  # also for truncated rollouts, which the environment never ended
    except EnvSessionError as failure:
        outcome, error = failure.outcome, str(failure)
    except EngineError as failure:
        outcome, error = Outcome.INFRA_ERROR, f"{type(failure).__name__}: {failure}"
    except ChatError as failure:
        outcome, error = Outcome.ENV_ERROR, f"{task.env_id} (seed {task.seed}): {failure}"
    except Exception:  # an unexpected error costs only this rollout; its traceback is saved in the run folder
        outcome, error = Outcome.INFRA_ERROR, unforeseen(task)
    finally:
        leave(episode, task)
    return Rollout(
        task=task,
        group_id=group_id,
        member=member,
        turns=tuple(table.turns),
        messages=tuple(table.messages),
        reward=episode.reward if outcome.counts else None,
        reward_parts=episode.reward_parts if outcome.counts else {},
        outcome=outcome,
        error=error,
        malformed_calls=dict(table.malformed_calls),
        budget_violation=table.budget_violation,
        num_attempts=number,
        seconds=time.monotonic() - started,
    )


def unforeseen(task: Task) -> str:
    """What is told of the exception that is being handled, which no part of the rollout expects."""
    return f"{task.env_id} (seed {task.seed}): {valid_text(traceback.format_exc())}"


def leave(episode: Episode, task: Task) -> None:
    """Close the episode. What fails there costs nothing that was played."""
    try:
        episode.close()
    except Exception:
        logger.warning("an episode could not be closed: %s", unforeseen(task))


class _Table:
    """The conversation of one attempt as it grows."""

    def __init__(self, player: Player, task: Task, group_id: str, member: int, attempt: int) -> None:
        self._player = player
        self._task = task
        self._name = f"{group_id}/{member}/{attempt}"
        self._seed = derive_seed(group_id, member)
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.malformed_calls: Counter[str] = Counter()
        self.budget_violation = ""

    async def converse(self, episode: Episode, lane: Lane) -> Outcome:
        """Play until the episode ends. Raises `EnvSessionError` and `EngineError`."""
        opening = await episode.reset()
        self.messages += opening
        dialogue = self._player.chat.begin(opening, episode.tools, self._task.budget)
        self._check_opening(dialogue.prompt_ids)
        malformed = ""
        for num_left in reversed(range(episode.max_turns)):
            turn = await self._sample(lane, dialogue)
            if not num_left:
                lane.close()  # before the environment scores the reply: the engine need not wait for that
            self.turns.append(turn)
            reply = dialogue.take(turn.reply.ids.tolist())
            self.messages.append(reply.as_message())
            malformed = reply.malformed
            if malformed:
                self.malformed_calls[reply.malformed_kind] += 1
            if turn.finish == "length":
                if not reply.tool_calls and not malformed:
                    await episode.step(reply)
                return Outcome.TRUNCATED
            if malformed:
                following: tuple[Message, ...] = (Message("tool", f"error: {malformed}"),)
            else:
                following, terminated, truncated = await episode.step(reply)
                if terminated or truncated:
                    self.messages += following
                    return Outcome.TRUNCATED if truncated else self._ended()
            self.messages += following
            dialogue.say(following)
            if len(dialogue.prompt_ids) >= self._player.config.policy.max_tokens:
                return Outcome.TRUNCATED
        return Outcome.INVALID_ACTION if malformed else Outcome.TRUNCATED

    async def _sample(self, lane: Lane, dialogue: Dialogue) -> Turn:
        config = self._player.config
        rollout = config.rollout
        room = min(rollout.max_reply_tokens, config.policy.max_tokens - len(dialogue.prompt_ids))
        limit = dialogue.thinking_limit(config.budget, room)
        params = SamplingParams(
            max_reply_tokens=room,
            temperature=self._player.temperature,
            top_p=rollout.top_p,
            seed=derive_seed(self._seed, len(self.turns)),
            stop_ids=self._player.chat.stop_ids,
            thinking=limit,
            timeout_s=rollout.reply_timeout_s,
            name=f"{self._name}/{len(self.turns)}",
        )
        reply = await lane.sample(dialogue.prompt_ids, params)
        if reply.finish == "abort":
            raise EngineError("the engine gave up the reply")
        self.budget_violation = self.budget_violation or violation(reply.tokens, limit)
        num_new = len(dialogue.new_ids)
        columns = {name: column[len(column) - num_new :] for name, column in reply.prompt_columns.items()}
        prompt = Tokens.unsampled(dialogue.new_ids, columns)
        return Turn(prompt, reply.tokens, reply.finish, is_start=not self.turns)

    def _ended(self) -> Outcome:
        """The outcome of an episode that the environment terminated."""
        return Outcome.BUDGET_HIT if any(turn.num_forced for turn in self.turns) else Outcome.OK

    def _check_opening(self, prompt_ids: tuple[int, ...]) -> None:
        room = self._player.config.policy.max_tokens - len(prompt_ids)
        if room < 1:
            raise EnvSessionError(
                Outcome.ENV_ERROR,
                f"{self._task.env_id} (seed {self._task.seed}): the opening has {len(prompt_ids)} tokens, which leave"
                f" no room for a reply (policy.max_tokens is {self._player.config.policy.max_tokens}); raise it or"
                " shorten the task",
            )
