"""Environments from elsewhere, on their real content."""

from typing import Any

import gymnasium
import pytest

from envs.adapters.gymnasium_text import Gymnasium
from envs.check import check_environment
from envs.messages import Message, Reply
from envs.text_env import EnvironmentOptionError, TextEnv


def failures(env_id: str, **options: Any) -> list[str]:
    results = check_environment(env_id, options, num_seeds=5)
    return [f"{result.name}: {result.detail}" for result in results if result.status == "failed"]


def test_the_adapter_of_gymnasium_keeps_the_contract() -> None:
    assert failures("other/Gymnasium-v0") == []


def play(env: TextEnv, *replies: str) -> list[Any]:
    return [env.step(Reply(reply)) for reply in replies]


def test_a_frozen_lake_is_crossed_in_words_or_numbers() -> None:
    env = Gymnasium()
    messages, _ = env.reset(seed=0)
    assert "Reply with one of: left, down, right, up." in messages[0].content
    assert "SFFF" in messages[0].content.replace("\x1b[41mS\x1b[0m", "S")
    steps = play(env, "down", "I go\nDown", "2", "right", "jump", "down")
    assert [step[2] for step in steps] == [False] * 6
    assert steps[4][0] == (Message("user", "That is no action."),)
    assert env.step(Reply("right"))[1:3] == (1.0, True)
    env.reset(seed=0)
    assert play(env, "right", "down")[-1][1:3] == (0.0, True)  # a hole


class Parrot(gymnasium.Env):
    """A text environment: say the word; every right word earns 2, a wrong one costs 1."""

    observation_space = action_space = gymnasium.spaces.Text(20)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abc"), size=5))
        return self.word, {}

    def step(self, action: str) -> Any:
        reward = 2.0 if action == self.word else -1.0
        return self.word, reward, reward > 0, False, {}


def test_a_text_environment_is_played_and_its_return_is_brought_to_0_and_1() -> None:
    gymnasium.register("test/Parrot-v0", entry_point=Parrot)
    env = Gymnasium()
    options = {
        "id": "test/Parrot-v0",
        "kwargs": {},
        "actions": [],
        "told": "Say:",
        "turns": 3,
        "lowest": -3,
        "highest": 2,
    }
    messages, _ = env.reset(seed=0, options=options)
    word = messages[0].content.split()[-1]
    assert play(env, "wrong", f"Well\n{word}")[-1][4]["reward_parts"] == {"return": pytest.approx((2 - 1 + 3) / 5)}
    env.reset(seed=0, options=options)
    assert play(env, "a", "b", "not, allowed!")[-1][1:3] == (pytest.approx(0.2), True)


def test_an_environment_that_gymnasium_does_not_know_is_an_error_of_the_options() -> None:
    with pytest.raises(EnvironmentOptionError, match="gymnasium cannot make 'Nowhere-v0'"):
        Gymnasium().reset(seed=0, options={"id": "Nowhere-v0"})
