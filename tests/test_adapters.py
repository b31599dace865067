"""Environments from elsewhere, on their real content."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from envs.adapters.gymnasium_text import Gymnasium
from envs.adapters.reasoning_gym import is_harmless, tasks
from envs.check import check_environment
from envs.messages import Message, Reply
from envs.registry import make
from envs.text_env import EnvironmentOptionError, TextEnv
from rewards.tagged import tagged_answer

WITHOUT_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Generators of reasoning-gym whose entries have no answer; they are scored by their metadata only."""


def failures(env_id: str, **options: Any) -> list[str]:
    results = check_environment(env_id, options, num_seeds=5)
    return [f"{result.name}: {result.detail}" for result in results if result.status == "failed"]


def open_task(task: str, **options: Any) -> Any:
    pytest.importorskip("reasoning_gym", reason="make adapters installs it")
    env = make("other/ReasoningGym-v0")
    env.reset(seed=0, options={"task": task, **options})
    return env


@pytest.mark.slow
def test_every_generator_of_reasoning_gym_gives_its_own_gold_a_full_score() -> None:
    pytest.importorskip("reasoning_gym", reason="make adapters installs it")
    assert len(tasks()) == 105
    for task in sorted(set(tasks()) - WITHOUT_GOLD):
        env = open_task(task)
        assert env.step(env.gold_reply())[1] == 1.0, task
    for task in WITHOUT_GOLD:
        with pytest.raises(NotImplementedError):
            open_task(task).gold_reply()


@pytest.mark.slow
def test_only_the_tagged_answer_counts_and_only_when_it_is_full() -> None:
    env = open_task("chain_sum")
    gold = env.gold_reply().text.removeprefix("<answer>").removesuffix("</answer>")
    assert env.step(Reply(f"It is {gold}."))[1] == 0.0
    assert env.step(Reply(f"<answer>1</answer> no, <answer> {gold} </answer>"))[1] == 1.0
    hedged = Reply(f"<answer>{gold} or 12</answer>")
    assert env.step(hedged)[1] == 0.0
    graded = open_task("chain_sum", graded=True)
    assert 0.0 < graded.step(hedged)[1] < 1.0
    assert tagged_answer("<answer>a</answer>x<answer>\nb\n</answer>") == "b"
    assert tagged_answer("<answer>open") is None


def test_answers_that_a_scorer_would_evaluate_reach_nothing(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    for task in ("countdown", "spiral_matrix", "polynomial_multiplication"):
        env = open_task(task)
        for attack in (f"open('{planted}', 'w')", "exit(0)", "entry['answer'].split()", "().__class__"):
            assert env.step(Reply(f"<answer>{attack}</answer>"))[1] == 0.0
        assert env.step(env.gold_reply())[1] == 1.0  # and nothing is left of the attempt
    assert not planted.exists()
    for task in ("simple_integration", "polynomial_multiplication"):
        env = open_task(task)
        gold = tagged_answer(env.gold_reply().text)  # what sympy makes of the question is as right as this
        for attack in (f"expand({gold})", f"simplify({gold})", "exec(\"import os; os.write(1, b'1.0\\n')\")"):
            assert env.step(Reply(f"<answer>{attack}</answer>"))[1] == 0.0
        assert env.step(env.gold_reply())[1] == 1.0


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("countdown", "(3 + 4.5)*2 - 10/5", True),
        ("countdown", "x + 1", False),
        ("puzzle24", "exec(1)", False),
        ("simple_integration", "x**2/2 + 3.5*sin(2*x) - exp(-x) + C", True),
        ("simple_integration", "integrate(x, x)", False),
        ("simple_integration", "x.diff(x)", False),
        ("simple_integration", "exp(x)['a']", False),
        ("polynomial_multiplication", "8*x**3 - 2*x*y + 1", True),
        ("polynomial_multiplication", "expand((x+1)*(x+2))", False),
        ("polynomial_multiplication", "eval('1')", False),
        ("polynomial_multiplication", "1 " * 1_900 + "?", False),
    ],
)
def test_answers_for_a_parser_are_formulas_only(task: str, answer: str, expected: bool) -> None:
    assert is_harmless(task, answer) is expected


def test_answers_that_are_evaluated_are_literals_only() -> None:
    assert is_harmless("spiral_matrix", "[1, 2]") and is_harmless("spiral_matrix", "1 2 3")
    assert is_harmless("string_insertion", "ABBA")
    assert not is_harmless("spiral_matrix", "sorted([2, 1])")
    assert not is_harmless("string_insertion", "entry")


def test_an_unknown_generator_is_named_and_several_are_drawn_from() -> None:
    with pytest.raises(EnvironmentOptionError, match="reasoning-gym has no task 'sums'; tasks: ab, "):
        open_task("sums")
    env = open_task("chain_sum")
    tasks = set()
    for seed in range(20):
        env.reset(seed=seed, options={"task": ["chain_sum", "leg_counting"]})
        tasks.add(env.row["task"])
    assert tasks == {"chain_sum", "leg_counting"}


@pytest.mark.slow
def test_the_adapter_of_reasoning_gym_keeps_the_contract() -> None:
    pytest.importorskip("reasoning_gym", reason="make adapters installs it")
    assert failures("other/ReasoningGym-v0") == []


@pytest.mark.slow
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
    gymnasium.register("test/Parrot-v0", entry_point=lambda **_: Parrot())
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
