"""Are its tasks the same for a seed, different for others, apart by split, and not given away?"""

import copy
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from envs.check.subject import Check, Subject, floor, gold, play, require, saying
from envs.messages import Reply
from envs.text_env import TextEnv

MAX_LEAKED_SHARE = 0.5  # short answers stand in some prompts by chance
NUM_SPLIT_SEEDS = 300
SPLIT_SECONDS = 30.0
NUM_PROCESS_SEEDS = 5
PROCESS_DEADLINE_S = 120.0
MEMBERS = ((0, gold), (0, saying("hello")), (1, gold), (0, gold), (0, saying("")))
"""Seeds and policies of instances that are played in turns."""


def one_seed_is_one_task(subject: Subject) -> None:
    """One seed gives equal messages in two instances and again in the same one.
    To mend: draw everything from `self.np_random`, nothing from `random`, time or sets."""
    left, right = subject.make(), subject.make()
    for seed in range(subject.num_seeds):
        opening, _ = subject.reset(left, seed)
        require(opening == subject.reset(right, seed)[0], f"seed {seed}: two instances give different messages")
        require(opening == subject.reset(left, seed)[0], f"seed {seed}: a second reset gives different messages")


def another_process_draws_the_same_task(subject: Subject) -> None:
    """One seed gives equal messages in processes that hash text differently, as workers on a cluster do.
    To mend: sort what comes out of a set, and use no `hash()`."""
    code = (
        "import json, sys; from envs.check.subject import Subject; env_id, options = json.loads(sys.argv[1]);"
        "subject = Subject(env_id, options, 0); env = subject.make();"
        f"print([subject.reset(env, seed)[0] for seed in range({NUM_PROCESS_SEEDS})])"
    )
    command = [sys.executable, "-c", code, json.dumps([subject.env_id, dict(subject.options)])]
    drawn = []
    for hash_seed in ("1", "2"):
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *sys.path]))
        settings = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=PROCESS_DEADLINE_S)
        require(done.returncode == 0, f"it cannot be played in a process of its own: {done.stderr[-500:]}")
        drawn.append(done.stdout)
    require(drawn[0] == drawn[1], "two processes draw different tasks for one seed")


def seeds_give_different_tasks(subject: Subject) -> None:
    """At least half of the seeds give tasks of their own.
    To mend: have more tasks, or rows, to draw from."""
    env = subject.make()
    tasks = [subject.reset(env, seed) for seed in range(subject.num_seeds)]
    seen = [info.get("key", opening) for opening, info in tasks]
    require(2 * len(set(seen)) >= len(seen), f"only {len(set(seen))} different tasks for {len(seen)} seeds")


def splits_share_no_task(subject: Subject) -> None:
    """Over 300 seeds, or half a minute, no opening occurs in both splits, nor a key where `info` has one.
    To mend: draw with `draw_in_split`, and give variants of one problem the same key."""
    env = subject.make()
    tasks: dict[str, set[Any]] = {"train": set(), "heldout": set()}
    deadline = time.monotonic() + SPLIT_SECONDS
    for seed in range(NUM_SPLIT_SEEDS):
        for split, seen in tasks.items():
            opening, info = subject.reset(env, seed, split)
            seen.add(info.get("key", opening))
        if time.monotonic() > deadline:
            break
    both = tasks["train"] & tasks["heldout"]
    require(not both, f"{len(both)} tasks are in both splits, one of them {next(iter(both), None)!r:.200}")


def prompts_do_not_hold_the_answer(subject: Subject) -> None:
    """The last gold reply's text stands in the opening messages of at most half of the tasks, or earns nothing at once.
    To mend: leave the answer out of the prompt; for answers of one letter or digit, use longer ones."""
    env = subject.make()
    num_leaked = 0
    for seed in range(subject.num_seeds):
        opening, _ = subject.reset(env, seed)
        replies: list[str] = []

        def choose(env: TextEnv, replies: list[str] = replies) -> Reply:
            replies.append(gold(env).text)
            return env.gold_reply()

        play(subject, env, choose)
        told = "\n".join(message.content for message in opening)
        if replies[-1] and re.search(rf"(?<!\w){re.escape(replies[-1])}(?!\w)", told):
            subject.reset(env, seed)  # saying "done" is no answer where tools have to be called first
            num_leaked += play(subject, env, saying(replies[-1]))[0] > floor(env)
    require(num_leaked <= MAX_LEAKED_SHARE * subject.num_seeds, f"{num_leaked} of {subject.num_seeds} prompts hold it")


def what_was_said_does_not_change(subject: Subject) -> None:
    """Messages that were returned stay as they were while the episode goes on: earlier tokens are never rewritten.
    To mend: return new messages and keep no list that you go on changing."""
    env = subject.make()
    for seed in range(subject.num_seeds):
        opening, info = subject.reset(env, seed)
        kept = copy.deepcopy((opening, info.get("key")))
        play(subject, env, gold)
        require((opening, info.get("key")) == kept, f"seed {seed}: the opening was changed by later steps")


def members_of_a_group_share_no_state(subject: Subject) -> None:
    """Instances of one task and of another, some played by gold replies and some not, each earn when they are played in
    turns what they earn alone. To mend: keep state in the instance, none in the module or class."""
    alone = []
    for seed, choose in MEMBERS:
        env = subject.make()
        subject.reset(env, seed)
        alone.append(play(subject, env, choose)[0])
    envs = [subject.make() for _ in MEMBERS]
    for env, (seed, _) in zip(envs, MEMBERS, strict=True):
        subject.reset(env, seed)
    totals, over = [0.0] * len(envs), [False] * len(envs)
    for _ in range(envs[0].max_turns):
        for place, (env, (_, choose)) in enumerate(zip(envs, MEMBERS, strict=True)):
            if not over[place]:
                _, reward, terminated, truncated, _ = subject.step(env, choose(env))
                totals[place] += reward
                over[place] = terminated or truncated
    require(totals == alone, f"members played in turns earned {totals}, and each alone {alone}")


def episodes_at_once_do_not_meet(subject: Subject) -> None:
    """Eight episodes of different tasks in eight threads earn what they earn one after another.
    To mend: guard what instances share (caches, files, connections) with a lock, or share nothing."""

    def earned(seed: int) -> tuple[float, dict[str, float]]:
        env = subject.make()
        subject.reset(env, seed)
        return play(subject, env, gold)

    gold_of = subject.make()
    subject.reset(gold_of, 0)
    gold(gold_of)
    alone = [earned(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        require(list(pool.map(earned, range(8))) == alone, "episodes at once earned other than one after another")


TASK_CHECKS: tuple[Check, ...] = (
    one_seed_is_one_task,
    another_process_draws_the_same_task,
    seeds_give_different_tasks,
    splits_share_no_task,
    prompts_do_not_hold_the_answer,
    what_was_said_does_not_change,
    members_of_a_group_share_no_state,
    episodes_at_once_do_not_meet,
)
