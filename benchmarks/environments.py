"""What do episodes, the sandbox and the judging of mathematics cost on this machine?

    python -m benchmarks.environments --out benchmarks/results/environments.json     (about one minute)

Episodes are played by polygym's own machinery with a scripted engine, so that nothing but the machinery is measured.
Every figure is the median of its repetitions, and the raw numbers are kept.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import write_report
from envs.messages import Message, Reply, ToolCall, ToolSpec
from envs.sandbox import level_here, run_program
from envs.text_env import TextEnv
from rewards.math_answer import answer_correct
from rl.data_types import Budget
from rl.rollouts.env_processes import EnvProcesses
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.play import Player, play
from tests.makers import make_config, make_task
from tests.scripted import CharacterChat, CharacterDialogue, ScriptedEngine

AT_ONCE = 64
NO_OP = "benchmarks.environments:NoOp"
PROGRAMS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, and how often."""

    num_repeats: int = 5
    num_episodes: int = 512
    num_waiting: int = 1000
    """Episodes that wait, all at once."""
    num_programs: int = 200
    num_checks: int = 400


FULL = Size()
SHORT = Size(num_repeats=1, num_episodes=4, num_waiting=4, num_programs=4, num_checks=4)


class NoOp:
    """A tool that does nothing, and then a reply."""

    max_turns = 2

    def reset(self, rng: np.random.Generator, split: str) -> str:
        return "go"

    def look(self, place: str) -> str:
        """Look."""
        return "nothing"

    def score(self, reply: Reply) -> float:
        return 1.0


class Waiting(TextEnv):
    """Two steps that wait as long as their seed says, 10 ms to 1 s."""

    max_turns = 2

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.latency_s = latency_of(seed or 0)
        self.num_steps = 0
        return (Message("user", "go"),), {}

    async def step(self, action: Reply) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        await asyncio.sleep(self.latency_s)
        self.num_steps += 1
        if self.num_steps == 1:
            return (Message("user", "more"),), 0.0, False, False, {}
        return (), 1.0, True, False, {"reward_parts": {"done": 1.0}}


def latency_of(seed: int) -> float:
    return float(10 ** np.random.default_rng(seed).uniform(-2, 0))


class CallingChat(CharacterChat):
    """Every `call` of the scripted engine is a call of `look`."""

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> "CallingDialogue":
        return CallingDialogue(messages, budget)


class CallingDialogue(CharacterDialogue):
    def take(self, reply_ids: Sequence[int]) -> Reply:
        reply = super().take(reply_ids)
        return Reply("", "", (ToolCall("look", {"place": "here"}),)) if reply.text == "call" else reply


async def play_many(env_id: str, seeds: range, at_once: int, processes: EnvProcesses | None = None) -> None:
    """Play one episode a seed, so many at the same time. Raises `RuntimeError` if one does not end well."""
    engine = ScriptedEngine(lambda prompt_ids, params: "done" if len(prompt_ids) > 10 else "call")
    chat: Any = CallingChat()
    player = Player(make_config(), chat, engine, EnvRunner(16), 1.0, processes)
    slots = asyncio.Semaphore(at_once)

    async def one(seed: int) -> None:
        async with slots:
            (lane,) = engine.open_lanes(1)
            rollout = await play(player, replace(make_task(env_id=env_id), seed=seed), "group", 0, lane)
            if rollout.reward != 1.0:
                raise RuntimeError(f"{rollout.outcome}: {rollout.error}")

    await asyncio.gather(*map(one, seeds))


def no_op_episode_ms(num: int) -> float:
    """CPU milliseconds of the whole process per episode of two turns with a tool call."""
    started = time.process_time()
    asyncio.run(play_many(NO_OP, range(num), AT_ONCE))
    return (time.process_time() - started) / num * 1000


def process_episode_ms(num: int) -> float:
    """CPU milliseconds of all processes per such episode if each has a process of its own."""

    async def run(num: int) -> float:
        processes = EnvProcesses(make_config(tempfile.gettempdir(), environments={NO_OP: {"process": True}}))
        await play_many(NO_OP, range(num), AT_ONCE, processes)
        processes.close()
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    before = asyncio.run(run(1))
    once = asyncio.run(run(1))
    many = asyncio.run(run(num + 1))
    return ((many - once) - (once - before)) / num * 1000  # without what starting costs


def waiting_by_ideal(num: int) -> float:
    """Episodes per second, all at once, by what their latencies allow: the longest one."""
    ideal_s = 2 * max(map(latency_of, range(num)))
    started = time.perf_counter()
    asyncio.run(play_many("benchmarks.environments:Waiting", range(num), num))
    return ideal_s / (time.perf_counter() - started)


def program_latencies(num: int) -> list[float]:
    """Seconds of each of `num` short programs, sixteen at once, after the seconds of all of them."""

    def one(number: int) -> float:
        started = time.perf_counter()
        result = run_program("print(int(input()) * 2)", f"{number}\n")
        if result.stdout != f"{number * 2}\n":
            raise RuntimeError(f"{result.status}: {result.detail}")
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
        latencies = list(pool.map(one, range(num)))
    return [time.perf_counter() - started, *latencies]


def checks_per_s(answer: Callable[[int], str], num: int) -> float:
    """Checks per second of answers to `n`, sixteen at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
        verdicts = list(pool.map(lambda number: answer_correct(answer(number), number), range(2, num + 2)))
    if not all(verdicts):
        raise RuntimeError("a right answer was judged wrong")
    return num / (time.perf_counter() - started)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Few of everything, once; only to see that it runs.")] = False,
) -> None:
    size = SHORT if short else FULL
    asyncio.run(play_many(NO_OP, range(AT_ONCE), AT_ONCE))
    answer_correct("#### 3*4", 12)
    raw = measured(size)
    summary = {name: statistics.median(values) for name, values in raw.items()}
    summary["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    write_report(out, summary, sandbox_level=level_here(), raw=raw)


def measured(size: Size) -> dict[str, list[float]]:
    """Every figure, by repetition."""
    repeats = range(size.num_repeats)
    programs = [program_latencies(size.num_programs) for _ in repeats]
    return {
        "no_op_episode_ms": [no_op_episode_ms(size.num_episodes) for _ in repeats],
        "process_episode_ms": [process_episode_ms(size.num_episodes) for _ in repeats],
        "waiting_by_ideal": [waiting_by_ideal(size.num_waiting) for _ in repeats],
        "programs_per_s": [size.num_programs / run[0] for run in programs],
        "program_p95_ms": [float(np.percentile(run[1:], 95)) * 1000 for run in programs],
        "number_checks_per_s": [checks_per_s("#### {}".format, size.num_checks) for _ in repeats],
        "symbolic_checks_per_s": [checks_per_s(sum_of, size.num_checks) for _ in repeats],
    }


def sum_of(number: int) -> str:
    """The number as an answer that only a symbolic check can read."""
    return f"\\boxed{{{number - 1}+1}}"


if __name__ == "__main__":
    typer.run(main)
