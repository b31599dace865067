"""Can the policy judge? It compares two replies to a task, and is paid for agreeing with people: a GenRM's training."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from envs.errors import shown
from envs.json_lines import read_rows
from envs.messages import Message, Reply, valid
from envs.scored import Row, RowError, RowTable, read_split, row_key
from envs.text_env import Split, StepResult, TextEnv, choose_level, draw_in_split
from rewards.judge import Comparison, comparison_question
from rewards.preference import NUM_RANKS, WORST, preference_reward, swapped

NAMES = ("Ana", "Ben", "Chen", "Dana", "Emil", "Fay", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena")
EVENTS = ("choir practice", "the team lunch", "our chess evening", "the book club", "a rehearsal", "the garden day")
FACTS = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "time": ("nine", "ten", "eleven", "noon", "three", "four", "five", "six"),
    "place": ("the library", "the town hall", "room twelve", "the old mill", "the station", "the school"),
    "thing": ("a pen", "some bread", "warm clothes", "a torch", "a chair", "your keys"),
}
SENTENCES = {"day": "It is on {}.", "time": "We begin at {}.", "place": "We meet at {}.", "thing": "Please bring {}."}
DIFFERENCES = {1: (2, 4), 2: (1, 4), 3: (1, 1)}
"""By level: the smallest and the largest number of facts by which one reply is better."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A task with two replies, and what is known of them; `scores` None if only the ranking is."""

    task: str
    replies: tuple[str, str]
    ranking: int
    scores: tuple[int, int] | None
    key: str
    thought: str = ""
    """How the scores were found, with a place for the number of right facts of each reply as it is shown."""


def draw_pair(rng: np.random.Generator, level: int = 1) -> Pair:
    """A request for an invitation with four facts, and two invitations; a score is 5 less the facts that are not right.

    Only the number of right facts differs, so the order of the replies is known.
    """
    smallest, largest = choose_level(level, DIFFERENCES)
    name, event = str(rng.choice(NAMES)), str(rng.choice(EVENTS))
    facts = {fact: str(rng.choice(values)) for fact, values in FACTS.items()}
    task = f"Invite {name} to {event}. " + " ".join(SENTENCES[fact].format(value) for fact, value in facts.items())
    difference = int(rng.integers(smallest, largest + 1))
    num_worse = int(rng.integers(difference, len(FACTS) + 1))
    nums = (num_worse - difference, num_worse)
    better, worse = (_invitation(rng, name, event, facts, num) for num in nums)
    scores = (5 - nums[0], 5 - nums[1])
    thought = f"Reply 1 has {{}} of {len(FACTS)} facts right, reply 2 {{}}."
    return Pair(task, (better, worse), 3 - min(2, difference - 1), scores, task, thought)


def _invitation(rng: np.random.Generator, name: str, event: str, facts: Mapping[str, str], num_wrong: int) -> str:
    """An invitation with `num_wrong` facts left out or changed, its sentences in any order."""
    wrong = {str(fact) for fact in rng.choice(list(FACTS), size=num_wrong, replace=False)}
    sentences = []
    for fact, value in facts.items():
        if fact in wrong and rng.random() < 0.5:
            continue
        told = str(rng.choice([one for one in FACTS[fact] if one != value])) if fact in wrong else value
        sentences.append(SENTENCES[fact].format(told))
    rng.shuffle(sentences)
    return " ".join([f"Dear {name}, you are invited to {event}.", *sentences])


def load_rows(rows: str = "") -> list[Row]:
    """The pairs of a file. Raises `RowError` that names the line and the key."""
    loaded: list[Row] = []
    for number, row in enumerate(valid(read_rows(Path(rows), "prompt", "reply_1", "reply_2", "ranking")), start=1):
        place = f"{rows}, line {number}"
        pair = _pair(row, place)
        loaded.append({"prompt": pair.task, "pair": pair, "key": pair.key, "split": read_split(row, place)})
    return loaded


def _pair(row: Row, place: str) -> Pair:
    for key in ("reply_1", "reply_2"):
        if not isinstance(row[key], str):
            raise RowError(f"{place}: {key} must be text, got {shown(row[key])}")
    if not _is_score(row["ranking"], NUM_RANKS):
        raise RowError(
            f"{place}: ranking must be a whole number from 1 (reply_1 is much better) to 6, got {shown(row['ranking'])}"
        )
    scores = (row.get("score_1"), row.get("score_2"))
    if scores != (None, None) and not all(_is_score(score, 5) for score in scores):
        raise RowError(
            f"{place}: score_1 and score_2 must be whole numbers from 1 to 5, or both missing, got {shown(scores)}"
        )
    task = _task(row["prompt"], place)
    known: Any = None if scores == (None, None) else scores
    return Pair(task, (row["reply_1"], row["reply_2"]), row["ranking"], known, row_key({**row, "prompt": task}))


def _is_score(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _task(prompt: Any, place: str) -> str:
    """The request as one text; of a conversation, each message with its role."""
    if isinstance(prompt, str) and prompt:
        return prompt
    try:
        if not prompt:
            raise TypeError
        return "\n\n".join(f"{message['role']}: {message['content'].strip()}" for message in prompt)
    except (TypeError, LookupError, AttributeError):
        raise RowError(
            f"{place}: prompt must be text or a list of messages with role and content, got {shown(prompt)}"
        ) from None


ROWS = RowTable(load_rows)


class GenRM(TextEnv):
    """Compare two replies to a task: a score from 1 to 5 for each, and a ranking from 1 to 6, as JSON on the last line.

    The question and its answer are those of `chat/Compared-v0`, so a policy that learns this can be its judge. The
    reward is that of Nemotron 3 Nano's GenRM (`rewards.preference`): 0 if all is right, -10 for a wrong form, else
    minus the distances from what people said. The seed decides which reply is shown first, against position bias.

    Options: `rows` is a JSONL file with `prompt` (text or messages), `reply_1`, `reply_2`, `ranking` (1 if reply_1 is
    much better, 6 if reply_2 is) and, where known, `score_1` and `score_2` (1 to 5); without scores only the ranking
    counts. Without `rows`, pairs of invitations with right and wrong facts are drawn; `level` is how far apart they
    are: 1 two facts or more, 2 one or more, 3 one.
    Reward parts, at most 0: `format`, `helpfulness`, `ranking`.
    """

    OPTIONS: ClassVar = {"rows": "", "level": 1}
    reward_range: ClassVar = (WORST, 0.0)

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        if options.get("rows"):
            ROWS.load({"rows": options["rows"]})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        self._pair = self._choose(split, **chosen)
        first, second = self._pair.replies
        told = Comparison(*(self._pair.scores or (1, 1)), self._pair.ranking)
        if self.np_random.random() < 0.5:
            first, second, told = second, first, swapped(told)
        self._ranking = told.ranking
        self._scores = (told.first, told.second) if self._pair.scores else None
        return (Message("user", comparison_question(self._pair.task, first, second)),), {"key": self._pair.key}

    def _choose(self, split: Split, rows: str, level: int) -> Pair:
        if not rows:
            return draw_in_split(self.np_random, split, lambda rng: draw_pair(rng, level), lambda pair: pair.key)
        found = ROWS.of_split(split, {"rows": rows})
        return found[int(self.np_random.integers(len(found)))]["pair"]

    def step(self, action: Reply) -> StepResult:
        parts = preference_reward(action.text, self._ranking, self._scores)
        return (), sum(parts.values()), True, False, {"reward_parts": parts}

    def gold_reply(self) -> Reply:
        first, second = self._scores or _scores_of(self._ranking)
        verdict = {"score_1": first, "score_2": second, "ranking": self._ranking}
        return Reply(json.dumps(verdict), self._pair.thought.format(first - 1, second - 1))


def _scores_of(ranking: int) -> tuple[int, int]:
    """Scores that suit a ranking, for a gold reply where none are known."""
    return {1: (5, 2), 2: (4, 2), 3: (4, 3), 4: (3, 4), 5: (2, 4), 6: (2, 5)}[ranking]
