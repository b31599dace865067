"""What do all sides share? The episode, how many of them are played, and how their CPU time is taken."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

NUM_THREADS = 16
PROMPT, CALLED, ENDED = "Look around.", {"place": "here"}, "done"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is played."""

    num_repeats: int
    num_episodes: int
    """Of one repetition."""
    at_once: int


FULL = Size(num_repeats=5, num_episodes=512, at_once=64)
SHORT = Size(num_repeats=1, num_episodes=4, at_once=2)


class Place:
    """The task's only tool."""

    def look(self, place: str) -> str:
        """Look at a place.

        Args:
            place: Where to look.
        """
        return "nothing"


class LookAround(Place):
    """The task in polygym's form."""

    max_turns = 2

    def reset(self, rng: Any, split: str) -> str:
        return PROMPT

    def score(self, reply: Any) -> float:
        return 1.0


LOOK_AROUND = f"{LookAround.__module__}:{LookAround.__name__}"


def run_side(make_measure: Callable[[Size], Callable[[], float]]) -> None:
    """The command of a side: prints the milliseconds of every repetition as a JSON list, after one that warms up."""

    def main(short: Annotated[bool, typer.Option(help="Few episodes, once.")] = False) -> None:
        size = SHORT if short else FULL
        measure = make_measure(size)
        measure()  # the first round pays for what is made once
        print(json.dumps([measure() for _ in range(size.num_repeats)]))

    typer.run(main)


def asyncio_ms(size: Size, one: Callable[[int, T], Awaitable[None]], make_threads: Callable[[int], T]) -> float:
    """CPU milliseconds per episode. `one` plays the episode of a number, on the threads that all episodes share."""

    async def all_of_them() -> None:
        slots, threads = asyncio.Semaphore(size.at_once), make_threads(NUM_THREADS)

        async def in_slot(number: int) -> None:
            async with slots:
                await one(number, threads)

        await asyncio.gather(*map(in_slot, range(size.num_episodes)))

    started = time.process_time()
    asyncio.run(all_of_them())
    return (time.process_time() - started) / size.num_episodes * 1000


def tiny_policy(folder: Path) -> Path:
    """Write the tiny policy into the folder; its tokenizer is the same on every side."""
    from rl.chat.formats.nemotron import NemotronFormat
    from rl.config.policy import TinyHybrid
    from rl.policies import build_policy

    policy = folder / "policy"
    texts = [f"<|im_start|>user\n{PROMPT}<|im_end|>\n<tool_call> look place here nothing {ENDED}"] * 200
    build_policy(TinyHybrid.model_validate({}), texts, policy, 0, NemotronFormat())
    return policy
