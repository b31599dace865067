"""How long would a run's steps take if engine and learner did nothing else? A simulation, for `benchmarks.waiting`.

Groups start in order, as many as the bound allows; a step takes the next P groups when all their rollouts have ended.
The engine samples a token of each of its n requests in `token_s * (A + B * n)` seconds, whatever the learner does; the
learner updates for `update_s`.
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.waiting_env import Waits
from envs.rollout_file import array_from, read_rollouts
from rl.runs.folder import RunFolder

A, B = 1.55, 0.092
"""Milliseconds of an engine step, by the rates of `pipeline` and of 8 requests in flight: only their ratio matters."""


@dataclass(frozen=True, slots=True)
class Speeds:
    token_s: float
    """By how much a step of the engine takes longer than A + B * n."""
    update_s: float


Rollout = Sequence[tuple[int, float]]
"""By turn: sampled tokens, and the seconds that the environment waits afterwards."""
Group = Sequence[Rollout]


def played_groups(run_dir: Path, scale: float) -> list[Group]:
    """The groups of a run, in the order in which they were started."""
    groups: dict[int, list[Rollout]] = {}
    for file in RunFolder(run_dir).rollouts_files("train").values():
        for rollout in read_rollouts(file):
            num_tokens = [len(array_from(turn["reply"]["ids"])) for turn in rollout["turns"]]
            waits_s = waits_of(rollout["task"], scale)
            groups.setdefault(rollout["task"]["ordinal"], []).append(list(zip(num_tokens, waits_s, strict=False)))
    return [group for _, group in sorted(groups.items())]


def waits_of(task: Mapping[str, Any], scale: float) -> Sequence[float]:
    """What the environment waits in this task: the same in each of the group's rollouts."""
    env = Waits()
    coroutine = env.reset(seed=task["seed"], options={"scale": scale, "split": task["split"]})
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value[1]["waits_s"]
    raise RuntimeError("reset waits for something")


def calibrated(groups: Sequence[Group], num_prompts: int, measured: Mapping[str, Any]) -> Speeds:
    """The speed at which the engine works as long in the simulated synchronous steps as in those that were measured."""
    update_s = measured["update_s"]
    unit = Speeds(1e-3, update_s)
    worked_s = measured["step_s"] * (measured["working"]["engines"] + measured["working"]["both"])
    num_steps = len(groups) // num_prompts
    simulated_s = Simulation(groups, num_prompts, 0, unit).run().engine_s / num_steps
    return replace(unit, token_s=unit.token_s * worked_s / simulated_s)


def seconds_a_step(groups: Sequence[Group], num_prompts: int, bound: int, speeds: Speeds) -> float:
    """Without the first steps, which fill the line of groups."""
    ends = Simulation(groups, num_prompts, bound, speeds).run().step_ends
    first = min(3, len(ends) - 2)
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


class Simulation:
    """One engine, one learner and waiting environments."""

    def __init__(self, groups: Sequence[Group], num_prompts: int, bound: int, speeds: Speeds) -> None:
        self._groups, self._num_prompts, self._bound, self._speeds = groups, num_prompts, bound, speeds
        self.step_ends: list[float] = []
        self.engine_s = 0.0
        self._order = itertools.count()
        self._asked: list[tuple[float, int, int, int, int]] = []
        """Requests: when the engine may begin, a number, and group, member and turn."""
        self._left = [len(group) for group in groups]
        self._ended_at = [0.0] * len(groups)
        self._num_started = 0

    def run(self) -> "Simulation":
        now, sampling = 0.0, dict[tuple[int, int, int], int]()
        self._start(0.0)
        while len(self.step_ends) < len(self._groups) // self._num_prompts:
            self._train()
            while self._asked and self._asked[0][0] <= now:
                _, _, *key = heapq.heappop(self._asked)
                group, member, turn = key
                sampling[group, member, turn] = self._groups[group][member][turn][0]
            if not sampling:
                if not self._asked:
                    break
                now = max(now, self._asked[0][0])
                continue
            step_s = self._speeds.token_s * (A + B * len(sampling))
            now, self.engine_s = now + step_s, self.engine_s + step_s
            for key in list(sampling):
                sampling[key] -= 1
                if sampling[key] <= 0:
                    del sampling[key]
                    self._reply(now, *key)
        return self

    def _start(self, now: float) -> None:
        """Start as many groups as the bound allows after so many steps."""
        allowed = self._num_prompts * (len(self.step_ends) + 1 + self._bound)
        while self._num_started < min(allowed, len(self._groups)):
            for member in range(len(self._groups[self._num_started])):
                heapq.heappush(self._asked, (now, next(self._order), self._num_started, member, 0))
            self._num_started += 1

    def _reply(self, now: float, group: int, member: int, turn: int) -> None:
        turns = self._groups[group][member]
        answered = now + turns[turn][1]
        if turn + 1 < len(turns):
            heapq.heappush(self._asked, (answered, next(self._order), group, member, turn + 1))
            return
        self._left[group] -= 1
        self._ended_at[group] = max(self._ended_at[group], answered)

    def _train(self) -> None:
        """Account for all updates whose groups have ended."""
        while len(self.step_ends) < len(self._groups) // self._num_prompts:
            first = len(self.step_ends) * self._num_prompts
            members = range(first, first + self._num_prompts)
            if any(self._left[group] for group in members):
                return
            before = self.step_ends[-1] if self.step_ends else 0.0
            ready = max(self._ended_at[group] for group in members)
            self.step_ends.append(max(before, ready) + self._speeds.update_s)
            self._start(self.step_ends[-1])  # not before: a group that starts during an update has the older version
