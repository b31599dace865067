"""An environment that does what the policy says, also what none should; played in processes of its own."""

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.messages import Message, Reply, ToolSpec
from envs.text_env import TextEnv
from rewards.queue_clock import in_queue

OVER = (), 1.0, True, False, {"reward_parts": {"done": 1.0}}


class OwnMessage(Message):
    """No other process has this class."""


class Obedient(TextEnv):
    """The reply names a method. Each of them ends the episode with the reward 1, or worse."""

    OPTIONS = {"folder": "."}
    """Where it writes what happened to it."""
    max_turns = 4

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        cls.note(options["folder"], "loaded")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.folder = self.read_options(options)[1]["folder"]
        self.num_steps = 0
        self.tools = (ToolSpec("look", "Look.", {"type": "object", "properties": {}}),)
        return (Message("user", f"{self.np_random.integers(10**6)}?"),), {}

    def step(self, action: Reply) -> Any:
        self.num_steps += 1
        return getattr(self, action.text)()

    def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[float]:
        return [-0.5 * place for place in range(len(conversations))]

    def close(self) -> None:
        self.note(self.folder, "closed")

    @staticmethod
    def note(folder: str, what: str) -> None:
        with (Path(folder) / what).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def more(self) -> Any:
        return (Message("user", f"step {self.num_steps}"),), 0.0, False, False, {}

    def end(self) -> Any:
        return OVER

    def draw(self) -> Any:
        """Without a seed of its own."""
        return (Message("user", f"{np.random.randint(10**9)}"),), 0.0, True, False, {}

    def crash(self) -> Any:
        ctypes.string_at(0)

    def crash_once(self) -> Any:
        marker = Path(self.folder) / "crashed"
        if not marker.exists():
            marker.touch()
            os.abort()
        return OVER

    def exit(self) -> Any:
        os._exit(3)

    def be_killed(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def hog(self) -> Any:
        self.held = []
        while True:
            self.held.append(bytearray(2**20))

    def loop(self) -> Any:
        while True:
            pass

    def match(self) -> Any:
        """Holds the interpreter lock and never ends."""
        return re.match(r"(a+)+$", "a" * 60 + "b")

    def raise_error(self) -> Any:
        raise KeyError("answer")

    def raise_exit(self) -> Any:
        raise SystemExit(1)

    def cancel(self) -> Any:
        raise asyncio.CancelledError

    def use_alarm(self) -> Any:
        """Only a main thread may."""
        rung: list[int] = []
        signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        while not rung:
            pass
        return OVER

    def flood(self) -> Any:
        for _ in range(20):
            print("y" * 50_000)
        return OVER

    def give_a_lock(self) -> Any:
        return (), 1.0, True, False, {"reward_parts": {"done": 1.0}, "lock": threading.Lock()}

    def give_own_types(self) -> Any:
        return (OwnMessage("user", "mine"),), np.float64(1.0), np.bool_(True), False, {"reward_parts": {"done": 1.0}}

    def give_too_much(self) -> Any:
        return (), 2.0, True, False, {}

    async def wait(self) -> Any:
        await asyncio.sleep(0.01)
        return OVER

    async def queue(self) -> Any:
        """Longer than the deadline, twice, in a queue of ours."""
        for _ in range(2):
            with in_queue():
                await asyncio.sleep(1.5)
        return await self.wait()

    async def wait_long(self) -> Any:
        await asyncio.sleep(100)

    async def block(self) -> Any:
        time.sleep(100)

    def start_another(self) -> Any:
        with (Path(self.folder) / "started").open("w") as file:
            file.write(f"{subprocess.Popen(['sleep', '1000']).pid}\n")
        return self.more()


class DiesWhenLoaded(Obedient):
    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        cls.note(options["folder"], "loaded")
        os.abort()


class LoadsForever(Obedient):
    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        cls.note(options["folder"], "loaded")
        time.sleep(1000)
