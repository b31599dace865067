"""Are tasks equal for one seed, different for other seeds, disjoint between splits, and not given away?"""

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from envs.check.subject import Check, Subject, floor, gold, play, require
from envs.messages import Message, Reply
from envs.player import play_turns, saying
from envs.results import task_key
from envs.session import Session

MAX_LEAKED_SHARE = 0.5  # short answers occur in some prompts by chance
NUM_SPLIT_SEEDS = 300
SPLIT_SECONDS = 30.0
NUM_PROCESS_SEEDS = 5
PROCESS_DEADLINE_S = 120.0
MEMBERS = ((0, gold), (0, saying("hello")), (1, gold), (0, gold), (0, saying("")))
"""Seeds and policies of instances that are played interleaved."""


def one_seed_is_one_task(subject: Subject) -> None:
    """One seed gives equal messages and keys in two instances, and again in the same instance.
    To fix: draw everything from `self.np_random`, nothing from `random`, time or sets."""
    left, right = subject.make(), subject.make()
    for seed in range(subject.num_seeds):
        first, other, again = (told_and_key(subject, session, seed) for session in (left, right, left))
        require(first[0] == other[0], f"seed {seed}: two instances give different messages")
        require(first[0] == again[0], f"seed {seed}: a second reset gives different messages")
        require(first[1] == other[1] == again[1], f"seed {seed}: the same messages have different keys")


def another_process_draws_the_same_task(subject: Subject) -> None:
    """One seed gives equal messages and keys in processes that hash text differently, as workers on a cluster do.
    To fix: sort the items of a set, and do not use `hash()`."""
    code = (
        "import json, sys; from envs.check.subject import Subject; from envs.check.tasks import told_and_key;"
        "env_id, options = json.loads(sys.argv[1]); subject = Subject(env_id, options, 0); session = subject.make();"
        f"print([told_and_key(subject, session, seed) for seed in range({NUM_PROCESS_SEEDS})]); session.close()"
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
    """There are at least half as many different tasks (by key, or by opening if there are no keys) as seeds.
    To fix: provide more tasks, or rows, to draw from."""
    session = subject.make()
    tasks = (subject.reset(session, seed) for seed in range(subject.num_seeds))
    seen = [task_key(session.env, *task) for task in tasks]
    require(2 * len(set(seen)) >= len(seen), f"only {len(set(seen))} different tasks for {len(seen)} seeds")


def splits_share_no_task(subject: Subject) -> None:
    """Over 300 seeds, or half a minute, no key (or opening, if there are no keys) occurs in both splits.
    To fix: draw with `draw_in_split`, and give variants of one problem the same key."""
    session = subject.make()
    tasks: dict[str, set[Any]] = {"train": set(), "heldout": set()}
    deadline = time.monotonic() + SPLIT_SECONDS
    for seed in range(NUM_SPLIT_SEEDS):
        for split, seen in tasks.items():
            seen.add(task_key(session.env, *subject.reset(session, seed, split)))
        if time.monotonic() > deadline:
            break
    both = tasks["train"] & tasks["heldout"]
    require(not both, f"{len(both)} tasks are in both splits, one of them {next(iter(both), None)!r:.200}")


def prompts_do_not_hold_the_answer(subject: Subject) -> None:
    """The last gold reply's text occurs in the opening of at most half of the tasks, or earns nothing as first reply.
    To fix: remove the answer from the prompt; use longer answers than one letter or digit."""
    session = subject.make()
    num_leaked = 0
    for seed in range(subject.num_seeds):
        opening, _ = subject.reset(session, seed)
        replies: list[str] = []

        def choose(session: Session, messages: Sequence[Message], replies: list[str] = replies) -> Reply:
            replies.append(gold(session).text)
            return gold(session)

        play(session, choose)
        told = "\n".join(message.content for message in opening)
        if replies[-1] and re.search(rf"(?<!\w){re.escape(replies[-1])}(?!\w)", told):
            subject.reset(session, seed)  # "done" earns nothing if tools must be called first
            num_leaked += play(session, saying(replies[-1]))[0] > floor(session.env)
    require(num_leaked <= MAX_LEAKED_SHARE * subject.num_seeds, f"{num_leaked} of {subject.num_seeds} prompts hold it")


def what_was_said_does_not_change(subject: Subject) -> None:
    """Returned messages do not change while the episode continues: earlier tokens are never rewritten.
    To fix: return new messages, and do not keep a list that you change later."""
    session = subject.make()
    for seed in range(subject.num_seeds):
        opening, info = subject.reset(session, seed)
        kept = copy.deepcopy((opening, info.get("key")))
        play(session, gold)
        require((opening, info.get("key")) == kept, f"seed {seed}: the opening was changed by later steps")


def members_of_a_group_share_no_state(subject: Subject) -> None:
    """Interleaved instances of two tasks, some played by gold replies and some not, each earn the same as alone.
    To fix: keep state in the instance, not in the module or class."""
    alone = []
    for seed, choose in MEMBERS:
        session = subject.make()
        subject.reset(session, seed)
        alone.append(play(session, choose)[0])
    members = [(subject.make(), seed, choose) for seed, choose in MEMBERS]
    for session, seed, _ in members:
        subject.reset(session, seed)
    playing = members
    for _ in range(members[0][0].env.max_turns):
        playing = [one for one in playing if not play_turns(one[0], [], one[2], 1)[0]]
    totals = [session.reward for session, _, _ in members]
    require(totals == alone, f"interleaved members earned {totals}, and each alone {alone}")


def episodes_at_once_do_not_meet(subject: Subject) -> None:
    """Eight episodes of different tasks in eight threads earn the same as one after another.
    To fix: protect what instances share (caches, files, connections) with a lock, or share nothing."""

    def earned(seed: int) -> tuple[float, dict[str, float]]:
        session = subject.make()
        subject.reset(session, seed)
        return play(session, gold)

    gold_of = subject.make()
    subject.reset(gold_of, 0)
    gold(gold_of)
    alone = [earned(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        require(list(pool.map(earned, range(8))) == alone, "concurrent episodes earned other rewards than sequential")


def told_and_key(subject: Subject, session: Session, seed: int) -> tuple[tuple[Message, ...], Any]:
    """The opening of a task, and its key if that is simple enough to be the same in another process."""
    opening, info = subject.reset(session, seed)
    key = task_key(session.env, opening, info)
    return opening, key if isinstance(key, str | int) else None


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
