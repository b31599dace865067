"""Environments that each break one clause of the contract, beside a sound one."""

import threading
import time
from typing import Any

from envs.messages import Message, Reply, ToolCall
from envs.text_env import Split, TextEnv, draw_in_split

WORDS = ("sun", "moon", "star", "sea", "wind", "rain", "snow", "tree", "leaf", "bird", "stone", "hill")


class Sound(TextEnv):
    """Write a word and its number backwards. Option: `level`."""

    OPTIONS = {"level": 1}
    shared: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        split, self.options = self.read_options(options)
        self.word = draw_in_split(
            self.np_random, split, lambda rng: f"{rng.choice(WORDS)}{rng.integers(100, 1000)}", key=str
        )
        return (Message("user", f"Backwards: {self.word}"),), {"key": self.word}

    def step(self, action: Reply) -> Any:
        return self.pay(float(action.text == self.word[::-1]))

    def pay(self, reward: float) -> Any:
        return (), reward, True, False, {"reward_parts": {"right": reward}}

    def gold_reply(self) -> Reply:
        return Reply(self.word[::-1])


class Undescribed(Sound):
    __doc__ = None


class TakesAnyOption(Sound):
    """Takes any option. Option: `level`."""

    def read_options(self, options: Any) -> Any:
        given = {name: value for name, value in (options or {}).items() if name in ("split", "level")}
        return super().read_options(given)


class EmptyOpening(Sound):
    """Says nothing. Option: `level`."""

    def reset(self, **arguments: Any) -> Any:
        return (), super().reset(**arguments)[1]


class OpensForThePolicy(Sound):
    """Says the policy's reply itself. Option: `level`."""

    def reset(self, **arguments: Any) -> Any:
        opening, info = super().reset(**arguments)
        return (*opening, Message("assistant", "nus")), info


class SpeaksForThePolicy(Sound):
    """Adds the policy's reply again. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return ((Message("assistant", action.text),), *super().step(action)[1:])


class NotPicklable(Sound):
    """Holds a lock. Option: `level`."""

    def reset(self, **arguments: Any) -> Any:
        self.lock = threading.Lock()
        return super().reset(**arguments)


class DrawsFromElsewhere(Sound):
    """Another task each time. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=time.monotonic_ns() % 2**31, options=options)


class HashesText(Sound):
    """Another task in another process. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=hash(f"{seed}") % 2**31, options=options)


class OneTask(Sound):
    """Always the same. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=0, options=options)


class NoSplit(Sound):
    """Held-out tasks are those of training. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options={**(options or {}), "split": "train"})


class Leaks(Sound):
    """Tells the answer. Option: `level`."""

    def reset(self, **arguments: Any) -> Any:
        _, info = super().reset(**arguments)
        return (Message("user", f"Say {self.word[::-1]}"),), info


class SharesState(Sound):
    """Remembers the task in the class. Option: `level`."""

    def reset(self, **arguments: Any) -> Any:
        result = super().reset(**arguments)
        Sound.shared[:] = [id(self)]
        return result

    def step(self, action: Reply) -> Any:
        return self.pay(float(action.text == self.word[::-1] and Sound.shared == [id(self)]))


class GoldIsWrong(Sound):
    """Gold earns nothing. Option: `level`."""

    def gold_reply(self) -> Reply:
        return Reply(self.word)


class PaysSilence(Sound):
    """Pays for nothing. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay(float(action.text in ("", self.word[::-1])))


class PaysAnEcho(Sound):
    """Looks anywhere for the word. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay(float(self.word in action.text or action.text == self.word[::-1]))


class PaysCanaries(Sound):
    """Pays whoever orders it to. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay(float("SYSTEM NOTICE" in action.text or action.text == self.word[::-1]))


class PartsDoNotAddUp(Sound):
    """Names other parts. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return (*super().step(action)[:4], {"reward_parts": {"right": 0.25}})


class NotRepeatable(Sound):
    """Rewards by the clock. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay(1.0 if action.text == self.word[::-1] else (time.monotonic_ns() % 1000) * 1e-6)


class Fragile(Sound):
    """Cannot read everything. Option: `level`."""

    def step(self, action: Reply) -> Any:
        action.text.encode()
        return super().step(action)


class NeverEnds(Sound):
    """Goes on. Option: `level`."""

    def step(self, action: Reply) -> Any:
        result = super().step(action)
        return result if result[1] else ((Message("user", "again"),), 0.0, False, False, {})


class Leaves(Sound):
    """Leaves a thread behind. Option: `level`."""

    def step(self, action: Reply) -> Any:
        threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
        return super().step(action)


class CloseOnce(Sound):
    """Cannot be closed twice. Option: `level`."""

    def close(self) -> None:
        del self.word


class RememberedInTheClass:
    """Switch on one lamp. Option: `level`."""

    lit: set[int] = set()
    max_turns = 3

    def reset(self, rng: Any, split: Split, level: int = 1) -> str:
        self.wanted = draw_in_split(rng, split, lambda rng: int(rng.integers(10_000)), key=str)
        self.lit.clear()
        return f"Switch on lamp {self.wanted}, then say so."

    def switch(self, lamp: int) -> str:
        """Switch a lamp on."""
        self.lit.add(lamp)
        return "on"

    def score(self, reply: Reply) -> float:
        return float(self.lit == {self.wanted} and reply.text != "")

    def gold_reply(self) -> Reply:
        return Reply("done") if self.lit else Reply("", "", (ToolCall("switch", {"lamp": self.wanted}),))


class GoldEarnsMoreOrLess(Sound):
    """Rewards the right word by the clock. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay((1.0 - (time.monotonic_ns() % 1000) * 1e-6) * (action.text == self.word[::-1]))


class PaysTooMuch(Sound):
    """Pays ten. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay(10.0 * (action.text == self.word[::-1]))


class ForgetsAMember(Sound):
    """Scores a group, all but one. Option: `level`."""

    def score_group(self, conversations: Any) -> Any:
        return [0.5] * (len(conversations) - 1)


class ToolThatIsNone(RememberedInTheClass):
    """Has a helper that is no tool. Option: `level`."""

    def solution(self) -> int:
        return self.wanted


class MissesAKey(Sound):
    """Looks for what is not there. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return self.pay(float({}["answer"]))


class PaysAndTakes(Sound):
    """Takes something for every reply, and gives it back. Option: `level`."""

    max_turns = 2

    def reset(self, **arguments: Any) -> Any:
        self.has_tried = False
        return super().reset(**arguments)

    def step(self, action: Reply) -> Any:
        if not self.has_tried and action.text == self.word[::-1]:
            self.has_tried = True
            return (Message("user", "again"),), -0.25, False, False, {}
        right = float(action.text == self.word[::-1])
        return (), right + 0.25 * self.has_tried, True, False, {"reward_parts": {"right": right}}


class HiddenWord(Sound):
    """Guess a number that nobody is told. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.key = super().reset(seed=seed, options=options)[1]["key"]
        return (Message("user", "Which word do I think of?"),), {}


class HiddenFromElsewhere(HiddenWord):
    """Thinks of another word each time. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=time.monotonic_ns() % 2**31, options=options)


class HiddenWithoutSplit(HiddenWord):
    """Thinks of the same words in both splits. Option: `level`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options={**(options or {}), "split": "train"})


class TurnsAreNone(Sound):
    """Declares no number of turns. Option: `level`."""

    max_turns = None  # pyright: ignore[reportAssignmentType]


class AnswersInLists(Sound):
    """Gives lists. Option: `level`."""

    def step(self, action: Reply) -> Any:
        return ([], *super().step(action)[1:])


class RaisesHalfACharacter(Sound):
    """Raises what cannot be written. Option: `level`."""

    def step(self, action: Reply) -> Any:
        raise ValueError("\ud800")


class HangsAtStep(Sound):
    """Does not come back. Option: `level`."""

    def step(self, action: Reply) -> Any:
        time.sleep(3)
