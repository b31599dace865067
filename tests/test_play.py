"""Playing with a scripted engine: every way an episode can end gets its outcome, and tokens are only appended."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rl.rollouts.env_session as environment_module
from envs.messages import Message, Reply
from envs.text_env import TextEnv
from rl.data_types import Outcome
from rl.engine.protocol import EngineError, SampledReply
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.play import Player, play
from rl.runs.tracking import rollout_metrics
from tests.echo import Echo, as_text, failing, played
from tests.makers import group_of, make_config, make_task
from tests.scripted import CharacterChat, CharacterDialogue, ScriptedEngine, ScriptedLane


def test_a_complete_episode_is_ok_and_its_tokens_are_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = played(Echo, lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward, rollout.reward_parts) == (Outcome.OK, 1.0, {"yes": 1.0})
    first, second = rollout.turns
    assert (first.is_start, second.is_start) == (True, False)
    assert as_text(first.prompt) == "first?\0"
    assert as_text(second.prompt) == "second?\0"  # new since the reply, which nobody writes again
    assert as_text(first.reply) == as_text(second.reply) == "yes\0"
    assert [message.content for message in rollout.messages] == ["first?", "yes", "second?", "yes"]


def test_new_prompt_tokens_keep_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ScriptedLane.sample

    async def sample_with_places(lane: ScriptedLane, prompt_ids: Sequence[int], params: Any) -> SampledReply:
        reply = await sample(lane, prompt_ids, params)
        return replace(reply, prompt_columns={"place": np.arange(len(prompt_ids))})

    monkeypatch.setattr(ScriptedLane, "sample", sample_with_places)
    first, second = played(Echo, lambda ids, params: "yes", monkeypatch).turns
    assert first.prompt.columns["place"].tolist() == list(range(7))  # first?\0
    assert second.prompt.columns["place"].tolist() == list(range(11, 19))  # after yes\0: second?\0


def test_an_exception_nobody_foresaw_costs_its_rollout_only_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def take(self: object, reply_ids: Sequence[int]) -> Reply:
        raise KeyError("a bug in a parser")

    monkeypatch.setattr(CharacterDialogue, "take", take)
    rollout = played(Echo, lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.INFRA_ERROR, None)
    assert "Traceback" in rollout.error and "a bug in a parser" in rollout.error


def test_the_lane_is_closed_before_the_reply_of_the_last_turn_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes: list[ScriptedLane] = []
    closed: list[bool] = []

    class Slow(Echo):
        max_turns = 2

        def step(self, action: Reply) -> Any:
            closed.append(lanes[-1].is_closed)
            return super().step(action)

    make_lane = ScriptedLane.__init__
    monkeypatch.setattr(ScriptedLane, "__init__", lambda self, engine: lanes.append(self) or make_lane(self, engine))
    rollout = played(Slow, lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, len(rollout.turns), closed) == (Outcome.OK, 2, [False, True])


def test_each_turn_has_its_own_seed_and_each_member_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    played(Echo, lambda ids, params: seeds.append(params.seed) or "yes", monkeypatch)
    assert len(set(seeds)) == 2


def test_a_reply_cut_by_length_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = played(Echo, lambda ids, params: "y" * 50, monkeypatch, max_reply_tokens=10)
    assert (rollout.outcome, rollout.reward) == (Outcome.TRUNCATED, 0.0)
    assert len(rollout.turns[0].reply) == 10


def test_an_episode_out_of_tokens_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Long(Echo):
        def step(self, action: Reply) -> Any:
            return (Message("user", "x" * 200),), 0.0, False, False, {}

    assert played(Long, lambda ids, params: "yes", monkeypatch).outcome is Outcome.TRUNCATED


@pytest.mark.parametrize("reward_range", [(-1.0, 0.0), (1.0, 5.0)])
def test_never_being_scored_is_no_full_reward_and_no_surprise(
    reward_range: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = type("Shifted", (Echo,), {"reward_range": reward_range})
    rollout = played(env, lambda ids, params: "malformed", monkeypatch)
    assert (rollout.outcome, rollout.reward, rollout.turns) == (Outcome.ENV_ERROR, None, ())
    assert "reward_range" in rollout.error and "shift the rewards" in rollout.error


def test_turns_used_up_on_malformed_calls_are_an_invalid_action(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = played(Echo, lambda ids, params: "malformed", monkeypatch)
    assert (rollout.outcome, rollout.reward, rollout.malformed_calls) == (Outcome.INVALID_ACTION, 0.0, {"form": 3})
    assert rollout.messages[2] == Message("tool", "error: malformed")


def test_an_engine_that_does_not_keep_the_budget_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.echo.make_task", lambda: replace(make_task(), budget=4))
    rollout = played(Echo, lambda ids, params: "y" * 60, monkeypatch, max_reply_tokens=80)
    assert "that the budget does not force" in rollout.budget_violation
    assert rollout_metrics([group_of(rollout)])["budget_violations"] == 1
    assert played(Echo, lambda ids, params: "yes|", monkeypatch).budget_violation == ""


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_environment_that_raises_is_retried_once_and_then_masked(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise KeyError("gone")

    rollout = played(failing(method, fail), lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward, rollout.num_attempts) == (Outcome.ENV_ERROR, None, 2)
    assert "math/Arithmetic-v0 (seed 7, split train)" in rollout.error and "KeyError" in rollout.error


@pytest.mark.parametrize("reward", [math.nan, math.inf, 1.5, -0.5, None, "1", True])
def test_a_reward_that_is_not_a_number_in_range_is_an_error_of_the_environment(
    reward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = failing("step", lambda: ((), reward, True, False, {}))
    rollout = played(env, lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.ENV_ERROR, None)


@pytest.mark.parametrize(
    "result",
    [
        None,
        (1, 2),
        ("text", 0.0, True, False, {}),
        ((Message("user", None),), 0.0, False, False, {}),  # pyright: ignore[reportArgumentType]
        ((), 0.0, True, False, None),
        ((), 10**400, True, False, {}),
        ((), 0.0, True, False, {"reward_parts": None}),
        ((), 0.0, True, False, {"reward_parts": [1.0]}),
        ((), 0.0, True, False, {"reward_parts": {"correct": "yes"}}),
        ((), 0.0, True, False, {"reward_parts": {"correct": math.nan}}),
    ],
)
def test_a_step_that_returns_something_else_is_an_error_of_the_environment(
    result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert played(failing("step", lambda: result), lambda ids, params: "y", monkeypatch).outcome is Outcome.ENV_ERROR


def test_only_the_total_of_an_episode_must_lie_in_the_declared_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def paying(*rewards: float) -> type[TextEnv]:
        def step(self: Any, action: Reply) -> Any:
            self.num_steps += 1
            is_over = self.num_steps == len(rewards)
            return (() if is_over else (Message("user", "?"),)), rewards[self.num_steps - 1], is_over, False, {}

        return type("Paying", (Echo,), {"step": step})

    rollout = played(paying(-0.1, 1.0), lambda *_: "y", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.OK, pytest.approx(0.9))
    assert played(paying(1.5, -0.5), lambda *_: "y", monkeypatch).reward == 1.0
    for rewards in ((0.6, 0.6), (-0.6, 0.5)):
        rollout = played(paying(*rewards), lambda *_: "y", monkeypatch)
        assert (rollout.outcome, rollout.reward) == (Outcome.ENV_ERROR, None)
        assert "outside of its declared range [0.0, 1.0]" in rollout.error


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *(("max_turns", value) for value in (None, 0, "3", 2.5)),
        *(("reward_range", value) for value in (None, (1.0,), (1, 0), "01")),
        *(("tools", value) for value in (None, ("price",), {"price": 1})),
        *(("OPTIONS", value) for value in (None, ["level"])),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_an_error_of_the_environment_that_names_it(
    attribute: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
        setattr(self, attribute, value)
        return (Message("user", "first?"),), {}

    for env in (type("Wrong", (Echo,), {attribute: value}), type("Wrong", (Echo,), {"reset": reset})):
        rollout = played(env, lambda *_: "y", monkeypatch)
        assert (rollout.outcome, rollout.reward) == (Outcome.ENV_ERROR, None)
        assert f": {attribute} must " in rollout.error


class SaysHalfACharacter(Echo):
    """What it says, names its parts and raises cannot be written as UTF-8."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return (Message("user", "q \udcff", reasoning="\ud800"),), {}

    def step(self, action: Reply) -> Any:
        if action.text == "fail":
            raise ValueError("\ud800")
        return (Message("tool", "\ud800", name="n\ud800"),), 1.0, True, False, {"reward_parts": {"p\ud800": 1.0}}


def test_what_an_environment_says_is_made_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = played(SaysHalfACharacter, lambda *_: "y", monkeypatch)
    assert rollout.messages[0] == Message("user", "q \ufffd", reasoning="\ufffd")
    assert rollout.messages[-1] == Message("tool", "\ufffd", name="n\ufffd")
    assert rollout.reward_parts == {"p\ufffd": 1.0}
    rollout = played(SaysHalfACharacter, lambda *_: "fail", monkeypatch)
    assert rollout.outcome is Outcome.ENV_ERROR and "ValueError: \ufffd" in rollout.error


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_exception_without_words_and_one_with_too_many_are_errors_of_the_environment(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise KeyError

    for error in (Wordless(), ValueError("x" * 5_000_000)):

        def fail(error: Exception = error) -> None:
            raise error

        rollout = played(failing(method, fail), lambda *_: "y", monkeypatch)
        assert rollout.outcome is Outcome.ENV_ERROR
        assert len(rollout.error) < 3000


def test_a_timeout_that_the_environment_raises_is_its_error_and_not_our_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise TimeoutError("the server does not answer")

    rollout = played(failing("step", fail), lambda *_: "y", monkeypatch)
    assert rollout.outcome is Outcome.ENV_ERROR and "the server does not answer" in rollout.error


def test_a_wrong_option_is_named_with_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Levels(Echo):
        OPTIONS = {"level": 1}

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            int(options["level"])

    monkeypatch.setattr(environment_module, "make", lambda env_id: Levels())

    async def run() -> None:
        session = environment_module.EnvSession(make_task(level="hard"), EnvRunner(1), make_config().rollout)
        await session.reset()

    with pytest.raises(environment_module.EnvSessionError) as caught:
        asyncio.run(run())
    assert "math/Arithmetic-v0 (seed 7, split train): reset raised ValueError" in str(caught.value)
    assert "with the option level='hard' (default 1)" in str(caught.value)


def test_an_environment_that_hangs_costs_its_deadline_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    rollout = played(failing("step", lambda: time.sleep(60)), lambda ids, params: "y", monkeypatch, step_timeout_s=0.2)
    assert (rollout.outcome, rollout.num_attempts) == (Outcome.ENV_TIMEOUT, 2)
    assert "rollout.step_timeout_s" in rollout.error
    assert time.monotonic() - started < 30


def test_an_environment_that_exits_does_not_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> None:
        raise SystemExit(3)

    assert played(failing("step", leave), lambda ids, params: "y", monkeypatch).outcome is Outcome.ENV_ERROR


def test_a_failure_that_passes_is_retried_with_a_fresh_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Echo.instances.clear()
    replies = iter([EngineError("lost"), "no", "yes"])
    rollout = played(Echo, lambda ids, params: next(replies), monkeypatch)
    assert (rollout.outcome, rollout.reward, rollout.num_attempts) == (Outcome.OK, 1.0, 2)
    assert len(Echo.instances) == 2
    assert len(rollout.turns) == 2


def test_an_engine_that_fails_twice_is_an_infrastructure_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = played(Echo, lambda ids, params: EngineError("out of memory"), monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.INFRA_ERROR, None)
    assert "out of memory" in rollout.error


def test_an_opening_that_does_not_fit_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wordy(Echo):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return (Message("user", "x" * 500),), {}

    rollout = played(Wordy, lambda ids, params: "y", monkeypatch)
    assert rollout.outcome is Outcome.ENV_ERROR and "policy.max_tokens" in rollout.error


async def test_nothing_of_a_rollout_begins_before_its_lane_has_a_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(env_id: str) -> TextEnv:
        made.append(env_id)
        return Echo()

    class Waiting(ScriptedLane):
        async def seated(self) -> None:
            await asyncio.sleep(0.05)
            assert made == []

    monkeypatch.setattr(environment_module, "make", make)
    engine = ScriptedEngine(lambda *_: "yes")
    player = Player(make_config(), CharacterChat(), engine, EnvRunner(4), 1.0)  # pyright: ignore[reportArgumentType]
    rollout = await play(player, make_task(), "group", 0, Waiting(engine))
    assert rollout.outcome is Outcome.OK
    assert rollout.seconds < 0.05  # waiting is not the rollout's time


def test_the_total_of_a_rollout_that_the_trainer_cut_off_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Generous(Echo):
        def step(self, action: Reply) -> Any:
            return (Message("user", "x" * 200),), 1.5, False, False, {}

    rollout = played(Generous, lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.ENV_ERROR, None)
    assert "1.5" in rollout.error and "[0.0, 1.0]" in rollout.error
