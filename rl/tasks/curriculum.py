"""Which task does the curriculum of an environment draw next? From easy to hard, by a policy's pass rates.

Pass rates are drawn from a Gaussian, however many tasks have each, around a mean that falls linearly over the run
(Nemotron 3 Nano, section 3.2, which gives the shape but no numbers). They are those of a profile, or those that the run
measures: then

- what has no pass rate is drawn as often as its share among what is not solved, all alike,
- what is solved drops out, but for a small share of the draws, which would show that it is failed again,
- if progress stalls, pass rates that are older are forgotten. Nano profiles again with the best checkpoint when
  progress stalls. The reward of the drawn tasks cannot tell that, since a curriculum keeps it where it aims. So what
  counts is the measured pass rate less that which the task had before (the learning progress of teacher-student
  curricula, arXiv:1707.00183).

What is drawn depends on the ordinal and on the pass rates, which change with a step's update only. A started ordinal
keeps what was drawn for it until it is finished. Both are part of the checkpoint, so a resumed run draws the same.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from envs.facts import reward_range_of
from envs.json_lines import JsonObject
from envs.results import is_full_reward
from rl.config.environments import EnvironmentConfig
from rl.data_types import Group
from rl.tasks.arms import Arm, arms_of, fingerprint


class Curriculum:
    """Draws tasks of one environment."""

    def __init__(self, env_id: str, environment: EnvironmentConfig, state: JsonObject | None = None) -> None:
        """`state` is what `state` returned. Raises `CurriculumError` for a profile without tasks to learn from."""
        assert environment.curriculum is not None
        self._env_id, self._config = env_id, environment.curriculum
        self.arms = arms_of(env_id, environment)
        self._started: dict[int, Arm] = {}
        self._gains: list[tuple[int, float]] = []
        """The newest steps that measured one, and by how much tasks were passed more often than their pass rates said,
        on average."""
        self._metrics: dict[str, float] = {}
        self._notes: list[str] = []
        if state:
            self._restore(state)

    def arm_of(self, ordinal: int, step: int, seed: int) -> Arm:
        """What was drawn for an ordinal that is started; for others, what would be drawn now."""
        return self._started.get(ordinal) or self.draw(step, seed)

    def start(self, ordinal: int, step: int, seed: int) -> None:
        """Draw for an ordinal, from now until it is finished."""
        self._started[ordinal] = self.arm_of(ordinal, step, seed)

    def draw(self, step: int, seed: int) -> Arm:
        rng, measured = random.Random(seed), self._config.measured
        solved = [arm for arm in self.arms if self.is_solved(arm)]
        left = [arm for arm in self.arms if not self.is_solved(arm)]
        if solved and left and measured and rng.random() < measured.solved_share:
            return rng.choice(solved)
        left = left or self.arms
        unknown = [arm for arm in left if arm.pass_rate is None]
        if unknown and rng.random() * len(left) < len(unknown):
            return rng.choice(unknown)
        return self._near(self.mean_pass_rate(step), left, rng)

    def is_solved(self, arm: Arm) -> bool:
        measured = self._config.measured
        if measured is None or arm.pass_rate is None or arm.num_tries < measured.solved_tries:
            return False
        return arm.pass_rate >= measured.solved_pass_rate

    def mean_pass_rate(self, step: int) -> float:
        """The mean pass rate of the tasks that this step draws."""
        first, last, num_steps = self._config.first_pass_rate, self._config.last_pass_rate, self._config.num_steps
        return last if num_steps is None else first + (last - first) * min(1.0, step / num_steps)

    def finish(self, step: int, groups: Sequence[Group], trained: Collection[str]) -> None:
        """Groups of this environment are trained, by the update that made `step`, or masked; `trained` has the ids.

        Groups that were drawn elsewhere (`rl.runs.saved_groups`) are left out.
        """
        drawn: list[Arm] = []
        passed: dict[int, list[bool]] = defaultdict(list)
        for group in groups:
            if (arm := self._started.pop(group.task.ordinal, None)) is None:
                continue
            drawn.append(arm)
            if group.group_id in trained:
                passed[arm.number] += self._passed(group)
        rates = [arm.pass_rate for arm in drawn if arm.pass_rate is not None]
        self._measure(step, {number: tries for number, tries in passed.items() if tries})
        self._metrics = self._metrics_of(drawn, rates)

    def metrics(self) -> dict[str, float]:
        """Of the groups that were finished last, by the names in `rl.runs.tracking`."""
        return {f"curriculum/{self._env_id}/{name}": value for name, value in self._metrics.items()}

    def notes(self) -> list[str]:
        """What is to be said since the last call."""
        said, self._notes = self._notes, []
        return [f"curriculum of {self._env_id}: {note}" for note in said]

    def state(self) -> JsonObject | None:
        """For the checkpoint, as JSON; None if nothing changes in a run."""
        if self._config.measured is None:
            return None
        return {
            "arms": fingerprint(self.arms),
            "started": {str(ordinal): arm.number for ordinal, arm in sorted(self._started.items())},
            "known": [[arm.pass_rate, arm.num_tries, arm.measured_at] for arm in self.arms],
            "gains": [list(one) for one in self._gains],
        }

    def __str__(self) -> str:
        rates = [arm.pass_rate for arm in self.arms if arm.pass_rate is not None]
        names = ", ".join(arm.name for arm in self.arms if arm.name)
        told = f"{len(self.arms)} sets of options ({names})" if names else f"{len(self.arms)} tasks"
        if rates:
            told += "" if len(rates) == len(self.arms) else f", {len(rates)} of them"
            told += f", passed {min(rates):.0%} to {max(rates):.0%} of the time"
        if self._config.profile:
            told += ", with the profile's options and budgets"
        if self._config.measured:
            told += f", {sum(map(self.is_solved, self.arms))} solved; pass rates are measured by the run"
        return told if rates or self._config.measured else f"{told}, drawn alike"

    def _near(self, mean: float, arms: Sequence[Arm], rng: random.Random) -> Arm:
        """One whose pass rate is drawn from the Gaussian around this mean."""
        known = [(arm, arm.pass_rate) for arm in arms if arm.pass_rate is not None]
        distances = [(rate - mean) / self._config.spread for _, rate in known]
        # each pass rate is drawn as often as the Gaussian says, however many tasks have it; moving means are hardly
        # ever equal, so those are alike that round to the same tenth
        alike = [round(rate, 1) if self._config.measured else rate for _, rate in known]
        num_alike = Counter(alike)
        exponents = [-0.5 * far**2 for far in distances]
        nearest = max(exponents)  # has the weight 1: where none is near, exp of all would be 0
        weights = [math.exp(one - nearest) / num_alike[own] for one, own in zip(exponents, alike, strict=True)]
        ((arm, _),) = rng.choices(known, weights)
        return arm

    def _passed(self, group: Group) -> list[bool]:
        """Of each rollout that counts, whether it has the full reward."""
        reward_range = reward_range_of(self._env_id)
        rewards = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
        return [is_full_reward(reward, reward_range) for reward in rewards]

    def _measure(self, step: int, passed: Mapping[int, Sequence[bool]]) -> None:
        measured = self._config.measured
        if measured is None or not passed:
            return
        was_left = not all(map(self.is_solved, self.arms))
        moved = [
            self.arms[number].measure(fmean(tries), len(tries), step, measured.weight)
            for number, tries in passed.items()
        ]
        if was_left and all(map(self.is_solved, self.arms)):
            self._notes.append("all of it is solved, so all of it is drawn from; take harder tasks, or end the run")
        gains = [gain for gain in moved if gain is not None]
        if gains and measured.plateau_steps is not None:
            self._gains.append((step, fmean(gains)))
            self._forget_if_stalled(measured.plateau_steps)

    def _forget_if_stalled(self, window: int) -> None:
        """Forget the pass rates that are older than the newest `window` steps with a gain if these made no progress.

        Between them there may be steps that trained none of these tasks.
        """
        self._gains = self._gains[-window:]
        if len(self._gains) < window or fmean(gain for _, gain in self._gains) > 0.0:
            return
        (first, _), *_ = self._gains
        self._gains.clear()
        old = [arm for arm in self.arms if arm.pass_rate is not None and arm.measured_at < first]
        for arm in old:
            arm.forget()
        if old:
            told = f"no progress over {window} steps, so the pass rates that are older are measured anew"
            self._notes.append(f"{told}: {len(old)} of {len(self.arms)}")

    def _metrics_of(self, drawn: Sequence[Arm], rates: Sequence[float]) -> dict[str, float]:
        """`rates` are the pass rates that the drawn arms had before the step."""
        metrics = {"pass_rate": fmean(rates)} if rates else {}
        if not drawn:
            return metrics
        if self._config.measured:
            metrics["unknown"] = 1.0 - len(rates) / len(drawn)
            metrics["solved"] = sum(map(self.is_solved, self.arms))
        for arm in self.arms:
            if arm.name:
                metrics[f"share/{arm.name}"] = sum(one is arm for one in drawn) / len(drawn)
            if arm.name and arm.pass_rate is not None:
                metrics[f"pass_rate/{arm.name}"] = arm.pass_rate
        return metrics

    def _restore(self, state: JsonObject) -> None:
        if state["arms"] != fingerprint(self.arms):
            self._notes.append("its tasks are others than the checkpoint's, so pass rates begin anew")
            return
        for arm, (pass_rate, num_tries, measured_at) in zip(self.arms, state["known"], strict=True):
            arm.pass_rate, arm.num_tries, arm.measured_at = pass_rate, num_tries, measured_at
        self._started = {int(ordinal): self.arms[number] for ordinal, number in state["started"].items()}
        # older checkpoints hold gains without their steps: the window begins anew
        self._gains = [(one[0], one[1]) for one in state["gains"] if isinstance(one, list)]
