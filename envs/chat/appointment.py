"""Can the policy ask a user until it knows enough? A scripted user wants an appointment."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from envs.messages import Message, Reply
from envs.text_env import StepResult, TextEnv, choose_level, draw_in_split, read_score
from rewards.rubric import Rubric

SLOTS = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
    "time": ("9:00", "10:30", "14:00", "16:15"),
    "name": ("Anna Berg", "Tom Lind", "Mia Frost", "Ben Hall"),
    "doctor": ("Dr. Gray", "Dr. Stone"),
}
LEVELS = {1: ("day", "time"), 2: ("day", "time", "name"), 3: ("day", "time", "name", "doctor")}
WORDS_FOR = {"day": ("day",), "time": ("time", "when"), "name": ("name",), "doctor": ("doctor",)}
RUBRIC = Rubric({"details": 0.4, "booked": 0.6})


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants, and which detail is given at the start."""

    details: tuple[tuple[str, str], ...]
    told: str

    @property
    def text(self) -> str:
        return " ".join(value for _, value in self.details) + f" ({self.told})"


def draw_wish(rng: np.random.Generator, slots: tuple[str, ...]) -> Wish:
    details = tuple((slot, str(rng.choice(SLOTS[slot]))) for slot in slots)
    return Wish(details, str(rng.choice(slots)))


class Appointment(TextEnv):
    """Book an appointment: ask the user for each detail that is missing, then confirm all of them.

    The user is scripted: a reply with a question mark that asks for one detail (day, time, name, doctor) gets it; any
    other question gets no detail. The episode ends with a reply that begins with `Booked:`.

    Options: `level` sets how many details there are, 2 to 4.
    Reward parts: `details` 0.4 times the share of right details after `Booked:`, `booked` 0.6 if all are right.
    """

    OPTIONS: ClassVar = {"level": 1}
    max_turns: ClassVar[int] = 6

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        slots = choose_level(chosen["level"], LEVELS)
        self._wish = draw_in_split(self.np_random, split, lambda rng: draw_wish(rng, slots), lambda wish: wish.text)
        self._known = {self._wish.told}
        self._num_turns = 0
        system = f"Book appointments. You need: {', '.join(slots)}. End with: Booked: {', '.join(slots).upper()}"
        told = dict(self._wish.details)[self._wish.told]
        opening = (Message("system", system), Message("user", f"I need an appointment. {told}, please."))
        return opening, {"key": self._wish.text}

    def step(self, action: Reply) -> StepResult:
        self._num_turns += 1
        stated = action.text.strip().removeprefix("Booked:") if action.text.strip().startswith("Booked:") else None
        if stated is None and self._num_turns < self.max_turns:
            return (Message("user", self._answer(action.text)),), 0.0, False, False, {}
        share = self._share_right(stated or "")
        reward, parts = read_score(RUBRIC({"details": share, "booked": float(share == 1.0)}))
        return (), reward, True, False, {"reward_parts": parts}

    def gold_reply(self) -> Reply:
        for slot, _ in self._wish.details:
            if slot not in self._known:
                return Reply(f"Which {slot}?")
        return Reply(f"Booked: {', '.join(value for _, value in self._wish.details)}")

    def _share_right(self, stated: str) -> float:
        """Share of the details that are stated; 0 if another value of a detail is stated too."""
        wanted = {value for _, value in self._wish.details}
        values = {value for slot, _ in self._wish.details for value in SLOTS[slot] if value.lower() in stated.lower()}
        return len(values) / len(wanted) if values <= wanted else 0.0

    def _answer(self, text: str) -> str:
        """What the user says to a reply that does not end the episode."""
        asked = [slot for slot, _ in self._wish.details if any(word in text.lower() for word in WORDS_FOR[slot])]
        if "?" not in text or len(asked) != 1:
            return "Ask me for one thing at a time, please."
        self._known.add(asked[0])
        return f"{dict(self._wish.details)[asked[0]]}."
