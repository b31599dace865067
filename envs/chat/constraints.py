"""Can the policy write a text of a required form: a number of words, and words to use, avoid, start or end with?"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from envs.messages import Message, Reply
from envs.text_env import StepResult, TextEnv, choose_level, draw_in_split, read_score
from rewards.constraints import Constraint, share_followed
from rewards.rubric import Rubric

WORDS = (
    *("sun", "moon", "star", "sea", "wind", "rain", "snow", "tree", "leaf", "bird", "stone", "hill"),
    *("cloud", "rose", "door", "lamp", "book", "song", "gold", "blue", "red", "green", "cold", "warm"),
)
RUBRIC = Rubric({"share": 0.3, "all": 0.7})
SENTENCES = {
    "words": "Write {} words.",
    "lines": "Write {} lines.",
    "use": "Use {}.",
    "avoid": "Avoid {}.",
    "start": "Start with {}.",
    "end": "End with {}.",
    "order": "Use {} before {}.",
    "distinct": "Repeat no word.",
    "capitals": "Write in capitals.",
}


@dataclass(frozen=True, slots=True)
class Level:
    """How hard a demand is: the number of words to write, the number of further constraints, and their kinds."""

    num_words: tuple[int, int]
    num_further: tuple[int, int]
    kinds: tuple[str, ...]


LEVELS = {
    1: Level((3, 6), (1, 1), ("use", "start", "end", "avoid")),
    2: Level((3, 8), (1, 2), ("use", "start", "end", "avoid")),
    3: Level((4, 8), (2, 3), ("use", "start", "end", "avoid", "order", "distinct")),
    4: Level((6, 12), (3, 4), ("use", "start", "end", "avoid", "order", "distinct", "lines", "capitals")),
}


@dataclass(frozen=True, slots=True)
class Demand:
    """The requirements on a text, and a text that meets them."""

    constraints: tuple[Constraint, ...]
    gold: str

    @property
    def prompt(self) -> str:
        return " ".join(sentence(constraint) for constraint in self.constraints)


def sentence(constraint: Constraint) -> str:
    """The constraint as it is stated to the policy."""
    values = constraint.value if isinstance(constraint.value, tuple) else (constraint.value,)
    return SENTENCES[constraint.kind].format(*values)


def draw_demand(rng: np.random.Generator, level: Level) -> Demand:
    """A number of words and further constraints of different kinds.

    Every constraint gets its own words, so they never conflict; the gold text uses no word twice.
    """
    num_words = int(rng.integers(level.num_words[0], level.num_words[1] + 1))
    num_further = int(rng.integers(level.num_further[0], level.num_further[1] + 1))
    words = [str(word) for word in rng.permutation(WORDS)]
    constraints = [Constraint("words", num_words)]
    for kind in rng.permutation(level.kinds):
        if len(constraints) <= num_further and num_needed(constraints) + places(str(kind)) <= num_words:
            constraints.append(Constraint(str(kind), draw_value(rng, str(kind), words)))
    return Demand(tuple(constraints), compose(rng, constraints, num_words, words))


def places(kind: str) -> int:
    """Words of the text that a constraint of this kind takes up."""
    return {"use": 1, "start": 1, "end": 1, "order": 2}.get(kind, 0)


def num_needed(constraints: list[Constraint]) -> int:
    return sum(places(constraint.kind) for constraint in constraints)


def draw_value(rng: np.random.Generator, kind: str, words: list[str]) -> Any:
    """The constraint's value; the words it names are removed from `words`."""
    if kind in ("distinct", "capitals"):
        return None
    if kind == "lines":
        return int(rng.integers(2, 4))
    return (words.pop(), words.pop()) if kind == "order" else words.pop()


def compose(rng: np.random.Generator, constraints: list[Constraint], num_words: int, free: list[str]) -> str:
    """A text of `num_words` words that follows the constraints; `free` are words that none of them names."""
    values = {constraint.kind: constraint.value for constraint in constraints}
    middle = [values["use"]] if "use" in values else []
    num_free = num_words - num_needed(constraints)
    middle = [str(word) for word in rng.permutation(middle + free[:num_free])]
    for word in reversed(values.get("order", ())):
        middle.insert(0, word)
    first = [values["start"]] if "start" in values else []
    last = [values["end"]] if "end" in values else []
    text = split_lines([*first, *middle, *last], values.get("lines", 1))
    return text.upper() if "capitals" in values else text


def split_lines(words: list[str], num_lines: int) -> str:
    """The words on `num_lines` lines; all but the last line have one word."""
    return "\n".join([*words[: num_lines - 1], " ".join(words[num_lines - 1 :])])


class Constraints(TextEnv):
    """Write a text of a required form: `Write 4 words. Start with sun. Avoid red.`

    Any words are allowed where none is named. The gold text uses the environment's own 24 words and has no reasoning.

    Options: `level` 1 (3 to 6 words and one further constraint: use, avoid, start or end with a word), 2 (3 to 8 words,
    one or two), 3 (4 to 8 words, two or three, also: one word before another, no word twice), 4 (6 to 12 words, three
    or four, also: lines, capitals).
    Reward parts: `share` 0.3 times the share of constraints followed; `all` 0.7 if all are. A reply without a word
    follows none.
    """

    OPTIONS: ClassVar = {"level": 1}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        level = choose_level(chosen["level"], LEVELS)
        self._demand = draw_in_split(
            self.np_random, split, lambda rng: draw_demand(rng, level), lambda demand: demand.prompt
        )
        return (Message("user", self._demand.prompt),), {"key": self._demand.prompt}

    def step(self, action: Reply) -> StepResult:
        share = share_followed(action.text, self._demand.constraints)
        reward, parts = read_score(RUBRIC({"share": share, "all": float(share == 1.0)}))
        return (), reward, True, False, {"reward_parts": parts}

    def gold_reply(self) -> Reply:
        return Reply(self._demand.gold)
