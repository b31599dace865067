"""What is the contract of an environment? The requirements on `reset`, `step` and `gold_reply`.

This is the full form. `envs.scored` (rows and a score function) and `envs.tool_class` (a class whose methods are tools)
are shorter ways to write an environment; both result in this form.

An environment plays one episode of one task. `reset(seed, options)` returns the opening messages. `step(reply)` takes
the policy's reply and returns the messages that follow it, the reward, and whether the episode is over, in gymnasium's
order `(messages, reward, terminated, truncated, info)`. The same seed and options always give the same task.

`options` may always contain `split` (`train` or `heldout`). Each environment declares its other options in `OPTIONS`. A
task can never be in both splits, because its key determines its split (`in_split`).
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium
import numpy as np

from envs.errors import InputError
from envs.messages import Message, Reply, ToolSpec, valid_text
from envs.spaces import Conversation, Replies

Split = Literal["train", "heldout"]
StepResult = tuple[tuple[Message, ...], float, bool, bool, dict[str, Any]]
Problem = TypeVar("Problem")
Level = TypeVar("Level")
HELDOUT_IN = 5  # one key in five is held out


class EnvironmentOptionError(InputError):
    """An option that the environment does not have, or a value it cannot take."""


class TextEnv(gymnasium.Env[tuple[Message, ...], Reply]):
    """Base class of all environments. Subclasses define `reset`, `step` and `gold_reply`; the first two may be `async`.

    `max_turns` is the maximum number of replies in an episode. `reward_range` bounds the sum of its rewards; a total
    outside the range is an environment error (`envs.results`). `info["reward_parts"]` of the last step names the parts
    of the reward.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    """The environment's own options and their defaults."""
    max_turns: ClassVar[int] = 1
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    answer_of: ClassVar[Callable[[str], str | None] | None] = None
    """Reads from the text of a last reply which answer it gives, in one form for all that mean the same, such as `1/2`;
    None for no answer. Only for tasks of one right answer: evaluations with several rollouts a task take a vote."""
    tools: tuple[ToolSpec, ...] = ()
    is_async: bool = False
    """Whether `reset` and `step` return awaitables; determined from `step`."""
    has_close: bool = False
    """Whether `close` does anything; determined from `close`."""
    scores_groups: bool = False
    """Whether `score_group` must be called; determined from `score_group`."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = Conversation()
        self.action_space = Replies()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.is_async = inspect.iscoroutinefunction(cls.step)
        # compared by identity, not by name: a mixin may define the method
        cls.scores_groups = cls.scores_groups or cls.score_group is not TextEnv.score_group
        cls.has_close = cls.has_close or cls.close is not gymnasium.Env.close

    def step(self, action: Reply) -> StepResult:
        """Play one reply. Called after `reset`, never after the end of the episode."""
        raise NotImplementedError(f"{type(self).__name__} must define step(reply)")

    def gold_reply(self) -> Reply:
        """The reply of a perfect policy now. Called before each `step` of an episode, never after its end."""
        raise NotImplementedError(f"{type(self).__name__} has no gold replies")

    def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> Sequence[float | Mapping[str, float]]:
        """Score each member of a group in addition to its own rewards, for judges that compare replies.

        Called after all members have ended, on an instance that was reset to their task, with the whole conversation of
        each member that counts. Returns a number or reward parts per member, in order. May be `async`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score groups")

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        """Read what tasks share, such as rows. `options` may be wrong: then `reset` says it.

        Called in each process before its first task (`envs.loading`); no deadline of a rollout covers it.
        """

    def read_options(self, options: Mapping[str, Any] | None) -> tuple[Split, dict[str, Any]]:
        """The split and the environment's own options with defaults filled in.

        Raises `EnvironmentOptionError` for an unknown option or split.
        """
        given = dict(options or {})
        split = given.pop("split", "train")
        if split not in ("train", "heldout"):
            raise EnvironmentOptionError(f"split must be 'train' or 'heldout', got {split!r}")
        unknown = sorted(set(given) - set(self.OPTIONS))
        if unknown:
            known = ", ".join(sorted(self.OPTIONS)) or "none"
            raise EnvironmentOptionError(f"{type(self).__name__} has no option {unknown[0]!r}; its options: {known}")
        return split, {**self.OPTIONS, **given}


def read_score(score: Any) -> tuple[float, dict[str, float]]:
    """Reward and its parts from a score function's result: a number, or parts by name, whose sum is the reward.

    Raises `TypeError` for anything else.
    """
    parts = dict(score) if isinstance(score, Mapping) else {"score": score}
    for name, value in parts.items():
        if not isinstance(value, int | float):
            raise TypeError(f"a score is a number, or numbers by name; {name} is {value!r:.100}")
    return math.fsum(parts.values()), {str(name): float(value) for name, value in parts.items()}


def in_split(key: str, split: Split) -> bool:
    """Whether the task with this key belongs to the split. A key belongs to exactly one, on every machine."""
    digest = hashlib.sha256(valid_text(key).encode()).digest()
    return (digest[0] % HELDOUT_IN == 0) == (split == "heldout")


def draw_in_split(
    rng: np.random.Generator,
    split: Split,
    draw: Callable[[np.random.Generator], Problem],
    key: Callable[[Problem], str],
) -> Problem:
    """Draw problems until one belongs to the split. Raises `EnvironmentOptionError` after 1,000 draws."""
    for _ in range(1000):
        problem = draw(rng)
        if in_split(key(problem), split):
            return problem
    raise EnvironmentOptionError(f"no problem of split {split!r} in 1000 draws: the options leave too few problems")


def choose_level(level: object, levels: Mapping[int, Level]) -> Level:
    """The entry of `levels` that the option `level` selects. Raises `EnvironmentOptionError` that lists the levels."""
    if isinstance(level, bool) or not isinstance(level, int) or level not in levels:
        raise EnvironmentOptionError(f"level must be one of {', '.join(map(str, levels))}, got {level!r}")
    return levels[level]
