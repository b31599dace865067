"""Does an environment keep the contract? Runs one through everything that training relies on.

`check_environment("me/Mine-v0")` belongs in the tests of every environment; each check's docstring says what it asks.
"""

import math
import pickle
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium.utils.env_checker import check_env

from envs.messages import Message, Reply
from envs.registry import make
from envs.text_env import TextEnv

MAX_LEAKED_SHARE = 0.5  # short answers stand in some prompts by chance
NUM_MEMBERS = 4


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One clause of the contract; `detail` says what was wrong, and is empty when `passed`."""

    name: str
    passed: bool
    detail: str = ""


class ContractError(ValueError):
    """The environment breaks its contract."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: an environment, its options, and how many seeds to try."""

    env_id: str
    options: Mapping[str, Any]
    num_seeds: int

    def reset(self, env: TextEnv, seed: int, split: str = "train") -> tuple[tuple[Message, ...], dict[str, Any]]:
        return env.reset(seed=seed, options={**self.options, "split": split})


def check_environment(env_id: str, options: Mapping[str, Any] | None = None, num_seeds: int = 20) -> list[CheckResult]:
    """The result of every check, in order. Never raises for what the environment does wrong."""
    subject = Subject(env_id, dict(options or {}), num_seeds)
    return [run_check(check, subject) for check in CHECKS]


def run_check(check: Callable[[Subject], None], subject: Subject) -> CheckResult:
    name = check.__name__.replace("_", " ")
    try:
        check(subject)
    except ContractError as error:
        return CheckResult(name, False, str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return CheckResult(name, False, f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    return CheckResult(name, True)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def gold(env: TextEnv) -> Reply:
    return env.gold_reply()


def empty(env: TextEnv) -> Reply:
    return Reply("")


def random(env: TextEnv) -> Reply:
    return Reply(env.action_space.sample().text)


def play(env: TextEnv, choose: Callable[[TextEnv], Reply]) -> tuple[float, dict[str, float]]:
    """Sum of rewards and the parts of the last step, for an episode that was reset. Raises `ContractError`."""
    total = 0.0
    for _ in range(env.max_turns):
        messages, reward, terminated, truncated, info = env.step(choose(env))
        require(isinstance(messages, tuple), f"step gave messages of type {type(messages).__name__}, not a tuple")
        total += reward
        if terminated or truncated:
            require("reward_parts" in info, "the last step's info has no reward_parts")
            return total, info["reward_parts"]
    raise ContractError(f"the episode was not over after max_turns ({env.max_turns}) replies")


def follows_gymnasium(subject: Subject) -> None:
    """gymnasium's own `check_env` finds no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(make(subject.env_id), skip_render_check=True)


def gold_replies_earn_the_highest_reward(subject: Subject) -> None:
    """Gold replies earn the top of `reward_range` in both splits, and asking for one twice gives the same."""
    env = make(subject.env_id)
    for split in ("train", "heldout"):
        for seed in range(subject.num_seeds):
            subject.reset(env, seed, split)
            require(env.gold_reply() == env.gold_reply(), f"seed {seed}: two gold replies in one state differ")
            total, _ = play(env, gold)
            require(
                total == env.reward_range[1], f"{split}, seed {seed}: gold earned {total}, not {env.reward_range[1]}"
            )


def empty_replies_earn_nothing(subject: Subject) -> None:
    """Empty replies earn 0, from the first turn on and after one gold reply that did not end the episode."""
    env = make(subject.env_id)
    for seed in range(subject.num_seeds):
        subject.reset(env, seed)
        total, _ = play(env, empty)
        require(total == 0.0, f"seed {seed}: empty replies earned {total}")
        subject.reset(env, seed)
        if env.max_turns > 1 and not env.step(env.gold_reply())[2]:
            total, _ = play(env, empty)
            require(total == 0.0, f"seed {seed}: empty replies after a gold one earned {total}")


def rewards_are_finite_and_parts_add_up(subject: Subject) -> None:
    """For gold, empty and random replies the reward is a finite float in range and the sum of its parts."""
    env = make(subject.env_id)
    env.action_space.seed(0)
    choices = (gold, empty, random)
    low, high = env.reward_range
    for seed in range(subject.num_seeds):
        for choose in choices:
            subject.reset(env, seed)
            total, parts = play(env, choose)
            require(math.isfinite(total) and low <= total <= high, f"seed {seed}: reward {total} not in {low}..{high}")
            added = math.fsum(parts.values())
            require(math.isclose(added, total, abs_tol=1e-9), f"seed {seed}: reward {total}, its parts {parts}")


def one_seed_is_one_task(subject: Subject) -> None:
    """One seed gives equal messages in two instances; at least half of the seeds give different ones."""
    left, right = make(subject.env_id), make(subject.env_id)
    seen = []
    for seed in range(subject.num_seeds):
        opening, _ = subject.reset(left, seed)
        require(opening == subject.reset(right, seed)[0], f"seed {seed}: two instances give different messages")
        require(opening == subject.reset(left, seed)[0], f"seed {seed}: a second reset gives different messages")
        seen.append(opening)
    require(2 * len(set(seen)) >= len(seen), f"only {len(set(seen))} different tasks for {len(seen)} seeds")


def prompts_do_not_hold_the_answer(subject: Subject) -> None:
    """The last gold reply's text stands in the opening messages of at most half of the tasks."""
    env = make(subject.env_id)
    num_leaked = 0
    for seed in range(subject.num_seeds):
        opening, _ = subject.reset(env, seed)
        replies: list[str] = []

        def choose(env: TextEnv, replies: list[str] = replies) -> Reply:
            replies.append(env.gold_reply().text)
            return env.gold_reply()

        play(env, choose)
        told = "\n".join(message.content for message in opening)
        num_leaked += bool(re.search(rf"(?<!\w){re.escape(replies[-1])}(?!\w)", told))
    require(num_leaked <= MAX_LEAKED_SHARE * subject.num_seeds, f"{num_leaked} of {subject.num_seeds} prompts hold it")


def splits_share_no_task(subject: Subject) -> None:
    """Over 300 seeds no opening occurs in both splits, nor a key where `info` has one."""
    env = make(subject.env_id)
    tasks: dict[str, set[Any]] = {"train": set(), "heldout": set()}
    for split, seen in tasks.items():
        for seed in range(300):
            opening, info = subject.reset(env, seed, split)
            seen.add(info.get("key", opening))
    both = tasks["train"] & tasks["heldout"]
    require(not both, f"{len(both)} tasks are in both splits, one of them {next(iter(both), None)!r}")


def members_of_a_group_share_no_state(subject: Subject) -> None:
    """Several instances of one task, played in turns, each earn what the gold replies earn alone."""
    envs = [make(subject.env_id) for _ in range(NUM_MEMBERS)]
    for env in envs:
        subject.reset(env, 0)
    totals, over = [0.0] * len(envs), [False] * len(envs)
    for _ in range(envs[0].max_turns):
        for place, env in enumerate(envs):
            if not over[place]:
                _, reward, terminated, truncated, _ = env.step(env.gold_reply())
                totals[place] += reward
                over[place] = terminated or truncated
    require(totals == [envs[0].reward_range[1]] * len(envs), f"members played in turns earned {totals}")


def a_pickled_copy_plays_on(subject: Subject) -> None:
    """An environment that was reset survives pickling and earns the same."""
    env = make(subject.env_id)
    subject.reset(env, 0)
    copy = pickle.loads(pickle.dumps(env))
    require(play(copy, gold) == play(env, gold), "the copy earned other")


def close_may_be_called_twice(subject: Subject) -> None:
    """Closing twice, and without a reset, raises nothing."""
    env = make(subject.env_id)
    env.close()
    env.close()


CHECKS = (
    follows_gymnasium,
    gold_replies_earn_the_highest_reward,
    empty_replies_earn_nothing,
    rewards_are_finite_and_parts_add_up,
    one_seed_is_one_task,
    prompts_do_not_hold_the_answer,
    splits_share_no_task,
    members_of_a_group_share_no_state,
    a_pickled_copy_plays_on,
    close_may_be_called_twice,
)
