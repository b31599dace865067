"""Environments that do what none should, each in its own way; played in a real run by tests/test_train.py."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from envs.messages import Message, Reply
from envs.text_env import TextEnv


class Sound:
    """Any text is right. The others are like it, but for one thing."""

    max_turns = 2

    def reset(self, rng: np.random.Generator, split: str, marker: str = "") -> str:
        self.marker = marker
        return f"Say something about {rng.integers(1000)}."

    def score(self, reply: Reply) -> Any:
        return 1.0

    def gold_reply(self) -> Reply:
        return Reply("something")


class Crashes(Sound):
    def score(self, reply: Reply) -> Any:
        raise KeyError("answer")


class Exits(Sound):
    def score(self, reply: Reply) -> Any:
        raise SystemExit(1)


class Hangs(Sound):
    def score(self, reply: Reply) -> Any:
        time.sleep(1000)


class LeaksThreads(Sound):
    def score(self, reply: Reply) -> Any:
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        return 1.0


class FloodsMessages(TextEnv):
    """In its answer; an opening like this would be refused before the run starts."""

    max_turns = 2

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.read_options(options)
        return (Message("user", f"Say something about {self.np_random.integers(1000)}."),), {}

    def step(self, action: Reply) -> Any:
        return (Message("user", "x" * 50_000_000),), 0.0, False, False, {}


class FloodsOutput(Sound):
    def score(self, reply: Reply) -> Any:
        for _ in range(200):
            print("y" * 50_000)
        return 1.0


class WrongTypes(Sound):
    def score(self, reply: Reply) -> Any:
        return "1.0"


class KillsItsWorker(Sound):
    """The first time only, which `marker` remembers."""

    def score(self, reply: Reply) -> Any:
        marker = Path(self.marker)
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0
