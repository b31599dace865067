"""Groups that their environment compares: what the scores add, and what a comparison costs that fails."""

import asyncio
from typing import Any

import pytest

import rl.rollouts.env_session as environment_module
from envs.facts import Facts
from envs.messages import Message
from rl.data_types import Outcome, Rollout
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.env_session import EnvSession
from rl.rollouts.group_score import with_group_scores
from rl.rollouts.play import Player
from tests.echo import Echo, played
from tests.makers import make_config, make_rollout, make_task
from tests.scripted import CharacterChat, ScriptedEngine


class Judged(Echo):
    """The group's longest reply wins."""

    fails = 0

    def score_group(self, conversations: Any) -> Any:
        if Judged.fails:
            Judged.fails -= 1
            raise RuntimeError("the judge does not answer")
        lengths = [len(conversation[-1].content) for conversation in conversations]
        return [{"longest": 1.0 if length == max(lengths) else 0.0} for length in lengths]


def judged(outcomes: list[str], monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> tuple[Rollout, ...]:
    """Three members with replies of one, two and three letters, compared; `outcomes` are what they had before."""
    monkeypatch.setattr(environment_module, "make", lambda env_id: Judged())
    monkeypatch.setattr(environment_module, "facts", lambda env_id: Facts((0.0, 1.0), True))
    monkeypatch.setattr(Judged, "fails", fails)
    config = make_config()
    rollouts = [
        make_rollout(0.0 if Outcome(outcome).counts else None, outcome, messages=(Message("assistant", "x" * length),))
        for length, outcome in enumerate(outcomes, 1)
    ]

    async def run() -> tuple[Rollout, ...]:
        player = Player(config, CharacterChat(), ScriptedEngine(lambda *_: ""), EnvRunner(4), 1.0)  # pyright: ignore[reportArgumentType]
        return await with_group_scores(player, make_task(), rollouts)

    return asyncio.run(run())


def test_members_that_count_are_compared_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = [rollout.reward for rollout in judged(["ok", "truncated", "env_error"], monkeypatch)]
    assert rewards == [0.0, 1.0, None]
    assert judged(["ok"] * 3, monkeypatch)[2].reward_parts == {"correct": 0.0, "longest": 1.0}


def test_a_comparison_is_tried_again_and_then_masks_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rollout.reward for rollout in judged(["ok"] * 3, monkeypatch, fails=1)] == [0.0, 0.0, 1.0]
    failed = judged(["ok", "env_timeout", "ok"], monkeypatch, fails=2)
    assert [rollout.outcome for rollout in failed] == ["env_error", "env_timeout", "env_error"]
    assert [rollout.reward for rollout in failed] == [None, None, None]
    assert "the judge does not answer" in failed[0].error


def fail(*arguments: object) -> Any:
    raise OSError(24, "Too many open files")


def test_an_exception_nobody_foresaw_costs_its_comparison_only_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EnvSession, "compares", fail)
    rollouts = judged(["ok", "env_timeout", "ok"], monkeypatch)
    assert [rollout.outcome for rollout in rollouts] == ["infra_error", "env_timeout", "infra_error"]
    assert [rollout.reward for rollout in rollouts] == [None, None, None]
    assert "Traceback" in rollouts[0].error and "Too many open files" in rollouts[0].error


def test_an_episode_that_cannot_be_closed_keeps_its_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(EnvSession, "close", fail)
    assert [rollout.reward for rollout in judged(["ok"] * 3, monkeypatch)] == [0.0, 0.0, 1.0]
    rollout = played(Echo, lambda ids, params: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.OK, 1.0)
    assert caplog.text.count("an episode could not be closed: ") == 2 and "Too many open files" in caplog.text
