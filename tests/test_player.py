"""The one player of rollouts outside of the trainer: outcomes, deadlines, groups, and closing exactly once."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from envs.event_loop import DeadlineError, call_within, settle
from envs.gold import GoldError, gold_conversation
from envs.messages import Message, Reply
from envs.player import EnvRollout, EnvTask, NoReplyError, gold, play, saying, score_group
from envs.session import Deadlines, EnvFailure, Opened, Session
from envs.text_env import EnvironmentOptionError, TextEnv
from envs.tool_class import ToolClassEnv

TASK = EnvTask("tests:Env", 3, "train", {})
QUICK = Deadlines(0.3, 0.3)


class Counted(TextEnv):
    """Two turns; pays -0.1 and then 1. Counts how often it is opened and closed."""

    OPTIONS = {"level": 1}
    max_turns = 2
    num_opened = num_closed = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).num_opened += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        _, self.chosen = self.read_options(options)
        self.num_steps = 0
        return (Message("user", "one?"),), {}

    def step(self, action: Reply) -> Any:
        self.num_steps += 1
        if self.num_steps == 1:
            return (Message("user", "two?"),), -0.1, False, False, {"reward_parts": {"cost": -0.1}}
        return (), 1.0, True, False, {"reward_parts": {"right": 1.0}}

    def gold_reply(self) -> Reply:
        return Reply("yes")

    def close(self) -> None:
        type(self).num_closed += 1


def counted(**methods: Any) -> Any:
    """A class of its own, with these methods, whose counters are at 0."""
    return type("Mine", (Counted,), {"num_opened": 0, "num_closed": 0, **methods})


def fails(error: Callable[[], BaseException]) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise error()

    return method


def hangs(self: Any, *args: Any, **kwargs: Any) -> Any:
    time.sleep(5)


def played(env: type[TextEnv], choose: Any = gold, deadlines: Deadlines | None = None) -> EnvRollout:
    return play(TASK, choose, Session(env, "tests:Env", deadlines))


def closes(env: Any, num: int = 1) -> bool:
    """Whether it is closed so often in the end, and not more often."""
    deadline = time.monotonic() + 10
    while env.num_closed < num and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return env.num_opened == env.num_closed == num


def test_a_rollout_has_messages_total_parts_and_outcome() -> None:
    env = counted()
    rollout = played(env)
    assert [message.content for message in rollout.messages] == ["one?", "yes", "two?", "yes"]
    assert (rollout.reward, rollout.reward_parts) == (pytest.approx(0.9), {"cost": -0.1, "right": 1.0})
    assert (rollout.outcome, rollout.error) == ("ok", "")
    assert (env.num_opened, env.num_closed) == (1, 1)


def test_only_the_total_must_lie_in_the_declared_range() -> None:
    assert played(counted()).outcome == "ok"  # -0.1 and then 1
    rollout = played(counted(reward_range=(0.0, 0.5)))
    assert (rollout.outcome, rollout.reward) == ("env_error", None)
    assert "reward 0.9 is outside of its declared range [0.0, 0.5]" in rollout.error


def test_a_rollout_that_is_cut_off_keeps_what_was_paid_if_that_is_in_the_range() -> None:
    replies = iter([Reply("yes"), None])
    rollout = played(counted(reward_range=(-1.0, 1.0)), lambda session, messages: next(replies))
    assert (rollout.outcome, rollout.reward) == ("truncated", pytest.approx(-0.1))
    replies = iter([Reply("yes"), None])
    assert played(counted(), lambda session, messages: next(replies)).outcome == "env_error"


@pytest.mark.parametrize("method", ["__init__", "reset", "step", "gold_reply"])
@pytest.mark.parametrize("error", [lambda: KeyError("gone"), lambda: SystemExit(3), KeyboardInterrupt, TimeoutError])
def test_whatever_an_environment_raises_is_an_error_of_its_own(method: str, error: Any) -> None:
    rollout = played(counted(**{method: fails(error)}))
    assert (rollout.outcome, rollout.reward, rollout.reward_parts) == ("env_error", None, {})
    assert "tests:Env" in rollout.error and rollout.error.count("\n") == 0


@pytest.mark.parametrize("method", ["__init__", "reset", "step", "gold_reply"])
def test_a_call_that_hangs_costs_its_deadline(method: str) -> None:
    rollout = played(counted(**{method: hangs}), deadlines=QUICK)
    assert rollout.outcome == "env_timeout" and "took longer than 0.3 s" in rollout.error


def test_the_line_that_raised_is_named() -> None:
    assert "tests/test_player.py:" in played(counted(step=fails(lambda: KeyError("gone")))).error


def test_who_chooses_may_fail_which_is_nobodys_reward() -> None:
    def choose(session: Session, messages: Any) -> Reply:
        raise NoReplyError("the endpoint is gone")

    env = counted()
    rollout = played(env, choose)
    assert (rollout.outcome, rollout.reward, rollout.error) == ("infra_error", None, "the endpoint is gone")
    assert closes(env)


@pytest.mark.parametrize("method", ["reset", "step"])
@pytest.mark.parametrize("action", [hangs, fails(lambda: KeyError("gone"))])
def test_an_environment_that_fails_is_closed_once(method: str, action: Any) -> None:
    env = counted(**{method: action})
    played(env, deadlines=QUICK)
    assert closes(env)


def test_an_environment_that_is_made_after_its_deadline_is_closed_once() -> None:
    may_go_on = threading.Event()

    def slow(self: Any) -> None:
        may_go_on.wait(10)
        Counted.__init__(self)

    env = counted(__init__=slow)
    assert played(env, deadlines=QUICK).outcome == "env_timeout"
    may_go_on.set()
    assert closes(env)


def test_an_asynchronous_close_is_waited_for_whatever_the_environment_is_else() -> None:
    async def close(self: Any) -> None:
        await asyncio.sleep(0.01)
        type(self).num_closed += 1

    env = counted(close=close)
    assert played(env).outcome == "ok"
    assert closes(env)


def test_a_plain_class_may_close_asynchronously() -> None:
    closed = []

    class Plain:
        def reset(self, rng: Any, split: str) -> str:
            return "?"

        def score(self, reply: Reply) -> float:
            return 1.0

        async def close(self) -> None:
            closed.append(1)

    with Session.of(ToolClassEnv(Plain)) as session:
        session.reset(0, {})
    assert closed == [1]


def test_a_close_that_a_mixin_writes_is_called() -> None:
    closed = []

    class Holds:
        def close(self) -> None:
            closed.append(1)

    class Mixed(Holds, TextEnv):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return (Message("user", "?"),), {}

        def step(self, action: Reply) -> Any:
            return (), 1.0, True, False, {}

    assert Mixed.has_close
    assert played(Mixed, saying("")).reward == 1.0
    assert closed == [1]


@pytest.mark.parametrize("error", [lambda: KeyError("gone"), lambda: SystemExit(3)])
def test_what_close_raises_is_nobodys_business(error: Any) -> None:
    assert played(counted(close=fails(error))).outcome == "ok"


def test_only_the_first_end_gives_what_is_to_be_closed() -> None:
    opened, env = Opened(), TextEnv()
    assert opened.put(env)
    assert (opened.end(), opened.end()) == (env, None)
    assert not opened.put(TextEnv())


def test_a_wrong_option_is_named_with_the_environment() -> None:
    def reset(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
        int(options["level"])

    with Session(counted(reset=reset), "me/Mine-v0") as session, pytest.raises(EnvFailure) as caught:
        session.reset(0, {"level": "hard", "split": "train"})
    message = str(caught.value)
    assert message.startswith("me/Mine-v0 (seed 0, split train): reset raised ValueError: invalid literal for int()")
    assert message.endswith("with the option level='hard' (default 1)")
    with Session(counted(), "me/Mine-v0") as session, pytest.raises(EnvFailure) as caught:
        session.read_options({"levle": 1})
    assert isinstance(caught.value.error, EnvironmentOptionError)


class Compares(Counted):
    """The longest first reply wins; members that are not in the comparison have no say."""

    reward_range = (0.0, 2.0)

    def score_group(self, conversations: Any) -> Any:
        lengths = [len(conversation[1].content) for conversation in conversations]
        return [{"longest": float(length == max(lengths))} for length in lengths]


def test_a_group_is_compared_and_failures_are_left_out() -> None:
    members = [played(Compares, saying(text)) for text in ("a", "bb", "c")]
    broken = played(counted(step=fails(lambda: KeyError("gone"))), saying("dddd"))
    scored = score_group(TASK, [*members, broken], Session(Compares, "tests:Env"))
    assert [rollout.reward for rollout in scored] == [pytest.approx(0.9), pytest.approx(1.9), pytest.approx(0.9), None]
    assert scored[1].reward_parts == {"cost": -0.1, "right": 1.0, "longest": 1.0}


@pytest.mark.parametrize("scores", [None, [1.0], [1.0, 50.0], ["a", "b"]])
def test_a_comparison_that_fails_leaves_no_reward(scores: Any) -> None:
    env = type("Odd", (Compares,), {"score_group": lambda self, conversations: scores})
    scored = score_group(TASK, [played(env, saying(text)) for text in ("a", "b")], Session(env, "tests:Env"))
    assert [(rollout.reward, rollout.outcome) for rollout in scored] == [(None, "env_error")] * 2


def test_gold_conversations_end_before_the_last_turn_is_stepped_and_fail_in_words() -> None:
    env = counted()()
    assert [message.content for message in gold_conversation(env, 0)] == ["one?", "yes", "two?", "yes"]
    assert (env.num_steps, type(env).num_closed) == (1, 0)  # whoever made it closes it
    with pytest.raises(GoldError, match=r"Mine \(seed 3, split train\): step raised KeyError: 'gone'"):
        gold_conversation(counted(step=fails(lambda: KeyError("gone")))(), 3)
    with pytest.raises(GoldError, match="max_turns must be a whole number"):
        gold_conversation(counted(max_turns=None)(), 3)


def test_what_a_gold_conversation_says_is_valid_text() -> None:
    env = counted(gold_reply=lambda self: Reply("\ud800"))()
    assert [message.content for message in gold_conversation(env, 0)] == ["one?", "\ufffd", "two?", "\ufffd"]


def test_a_deadline_is_told_from_a_timeout_that_the_code_raised() -> None:
    def times_out() -> None:
        raise TimeoutError("the server")

    with pytest.raises(TimeoutError, match="the server") as caught:
        call_within(times_out, 5.0)
    assert not isinstance(caught.value, DeadlineError)
    with pytest.raises(DeadlineError):
        call_within(lambda: time.sleep(5), 0.1)
    with pytest.raises(DeadlineError):
        call_within(lambda: asyncio.sleep(5), 0.1)


@pytest.mark.slow
def test_asynchronous_code_that_exits_or_blocks_does_not_end_the_loop_for_others() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def block() -> None:
        time.sleep(10)

    async def answer() -> str:
        return "alive"

    with pytest.raises(SystemExit):
        settle(leave())
    assert settle(answer(), 5.0) == "alive"
    with pytest.raises(DeadlineError):
        settle(block(), 0.1)
    assert settle(answer(), 5.0) == "alive"
