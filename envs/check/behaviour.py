"""Does an environment behave in a worker: in time, for any reply, and without leaving anything behind?"""

import threading
import time
from pathlib import Path

from envs.check.subject import DEADLINES, Check, Skipped, Subject, play, require
from envs.event_loop import call_within
from envs.messages import Reply, ToolCall
from envs.player import saying

HOSTILE = ("\0", "x" * 100_000, "\ud800", "9" * 5000, "((((" * 500, "\\frac{" * 200, "<|im_end|></think>", "💥" * 50)
MAX_RESET_S = 5.0
MAX_STEP_S = 10.0
"""Half of training's default deadlines."""
SETTLE_S = 2.0


def any_text_can_be_scored(subject: Subject) -> None:
    """NUL, lone surrogates, 100,000 letters, numbers of 5,000 digits, unclosed brackets: all get a reward.
    To fix: expect any text; text that cannot be parsed is a wrong answer, not an error."""
    session = subject.make()
    for text in HOSTILE:
        subject.reset(session, 0)
        play(session, saying(text))


def wrong_tool_calls_come_back_as_text(subject: Subject) -> None:
    """Calls of an unknown tool, or with missing, additional or nonsensical arguments, neither raise nor end the
    episode.
    To fix: raise `ValueError` with a message for the policy; it becomes the tool's answer."""
    session = subject.make()
    subject.reset(session, 0)
    if not session.env.tools:
        raise Skipped("there are no tools")
    calls = [ToolCall("no_such_tool", {})]
    for tool in session.env.tools:
        names = list(tool.parameters.get("properties", {}))
        calls += [ToolCall(tool.name, {}), ToolCall(tool.name, {**dict.fromkeys(names, "?"), "more": 1})]
        calls += [ToolCall(tool.name, dict.fromkeys(names, value)) for value in ("", None, [], {"a": 1}, 10**30)]
    for call in calls:
        subject.reset(session, 0)
        messages, _, terminated, _, _ = subject.step(session, Reply("", "", (call,)))
        if session.env.max_turns > 1:
            require(bool(messages) and not terminated, f"the call {call} ended the episode")


def episodes_end_in_time(subject: Subject) -> None:
    """Whatever the replies are, an episode is over after `max_turns` replies.
    To fix: end the episode in the last turn, or raise `max_turns`."""
    session = subject.make()
    for seed in range(subject.num_seeds):
        subject.reset(session, seed)
        play(session, saying("Let me think about it."))


def reset_and_step_are_quick(subject: Subject) -> None:
    """Every reset took less than 5 s and every step less than 10 s, over all checks; the first reset may take longer.
    To fix: load data once per process, and give slow operations their own deadlines."""
    session = subject.make()
    subject.reset(session, 0)
    play(session, saying("hello"))
    resets, steps = subject.latencies["reset"][1:], subject.latencies["step"]
    require(max(resets, default=0.0) < MAX_RESET_S, f"the slowest reset took {max(resets, default=0.0):.1f} s")
    require(max(steps) < MAX_STEP_S, f"the slowest step took {max(steps):.1f} s")


def nothing_is_left_behind(subject: Subject) -> None:
    """Over twenty episodes, the number of threads and open files does not grow with the number of episodes.
    To fix: let `close` end what an episode starts."""

    def held() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    def episodes(num: int) -> None:
        for seed in range(num):
            session = subject.make()
            subject.reset(session, seed)
            play(session, saying("hello"))
            session.close()
        subject.made.clear()

    episodes(3)  # what is made once per process
    before = held()
    episodes(20)
    deadline = time.monotonic() + SETTLE_S
    while any(now >= then + 10 for now, then in zip(held(), before, strict=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for what, now, then in zip(("threads", "open files"), held(), before, strict=True):
        require(now < then + 10, f"{now - then} {what} more after twenty episodes")


def close_may_be_called_twice(subject: Subject) -> None:
    """Closing twice, and without a reset, raises nothing.
    To fix: let `close` check what there is to close."""
    fresh, played = subject.make(), subject.make()
    subject.reset(played, 0)
    for session in (fresh, fresh, played, played):
        call_within(session.env.close, DEADLINES.step_s)


BEHAVIOUR_CHECKS: tuple[Check, ...] = (
    any_text_can_be_scored,
    wrong_tool_calls_come_back_as_text,
    episodes_end_in_time,
    reset_and_step_are_quick,
    nothing_is_left_behind,
    close_may_be_called_twice,
)
