"""What do episodes, the sandbox and the judging of mathematics cost on this machine?

    python -m benchmarks.environments --out benchmarks/results/environments.json     (about one minute)

Episodes are played by polygym's own machinery with a scripted engine, so that nothing but the machinery is measured.
Every figure is the median of its repetitions, and the raw numbers are kept.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from envs.messages import Message, Reply, ToolCall
from envs.sandbox import level_here, run_program
from envs.text_env import TextEnv
from rewards.math_answer import answer_correct
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.play import Player, play
from tests.conftest import CharacterChat, ScriptedEngine, make_config, make_task

NUM_REPEATS = 5
NUM_EPISODES = 512
AT_ONCE = 64
NUM_WAITING = 1000
NUM_PROGRAMS = 200
PROGRAMS_AT_ONCE = 16
NUM_CHECKS = 400


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

    async def step(self, action: Reply) -> Any:  # type: ignore[override]
        await asyncio.sleep(self.latency_s)
        self.num_steps += 1
        if self.num_steps == 1:
            return (Message("user", "more"),), 0.0, False, False, {}
        return (), 1.0, True, False, {"reward_parts": {"done": 1.0}}


def latency_of(seed: int) -> float:
    return float(10 ** np.random.default_rng(seed).uniform(-2, 0))


class CallingChat(CharacterChat):
    """Every `call` of the scripted engine is a call of `look`."""

    def parse(self, reply_ids: Any, tools: Any, budget: Any) -> Reply:
        reply = super().parse(reply_ids, tools, budget)
        return Reply("", "", (ToolCall("look", {"place": "here"}),)) if reply.text == "call" else reply


async def play_many(env_id: str, seeds: range, at_once: int) -> None:
    """Play one episode a seed, so many at the same time. Raises `RuntimeError` where one does not end well."""
    engine = ScriptedEngine(lambda prompt_ids, params: "done" if len(prompt_ids) > 10 else "call")
    player: Any = Player(make_config(), CallingChat(), engine, EnvRunner(16), 1.0)  # type: ignore[arg-type]
    slots = asyncio.Semaphore(at_once)

    async def one(seed: int) -> None:
        async with slots:
            task = make_task(seed, env_id)
            object.__setattr__(task, "seed", seed)
            (lane,) = engine.open_lanes(1)
            rollout = await play(player, task, "group", 0, lane)  # type: ignore[arg-type]
            if rollout.reward != 1.0:
                raise RuntimeError(f"{rollout.outcome}: {rollout.error}")

    await asyncio.gather(*map(one, seeds))


def no_op_episode_ms() -> float:
    """CPU milliseconds of the whole process an episode of two turns with a tool call."""
    started = time.process_time()
    asyncio.run(play_many("benchmarks.environments:NoOp", range(NUM_EPISODES), AT_ONCE))
    return (time.process_time() - started) / NUM_EPISODES * 1000


def waiting_by_ideal() -> float:
    """Episodes a second of a thousand at once, by what their latencies allow: the longest one."""
    ideal_s = 2 * max(map(latency_of, range(NUM_WAITING)))
    started = time.perf_counter()
    asyncio.run(play_many("benchmarks.environments:Waiting", range(NUM_WAITING), NUM_WAITING))
    return ideal_s / (time.perf_counter() - started)


def program_latencies() -> list[float]:
    """Seconds of each of many short programs, sixteen at once, after the seconds of all of them."""

    def one(number: int) -> float:
        started = time.perf_counter()
        result = run_program("print(int(input()) * 2)", f"{number}\n")
        if result.stdout != f"{number * 2}\n":
            raise RuntimeError(f"{result.status}: {result.detail}")
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
        latencies = list(pool.map(one, range(NUM_PROGRAMS)))
    return [time.perf_counter() - started, *latencies]


def checks_per_s(answer: Callable[[int], str]) -> float:
    """Checks a second, of answers to `n`, sixteen at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
        verdicts = list(pool.map(lambda number: answer_correct(answer(number), number), range(2, NUM_CHECKS + 2)))
    if not all(verdicts):
        raise RuntimeError("a right answer was judged wrong")
    return NUM_CHECKS / (time.perf_counter() - started)


def main(out: Annotated[Path, typer.Option(help="JSON file to write.")]) -> None:
    level = level_here()
    asyncio.run(play_many("benchmarks.environments:NoOp", range(AT_ONCE), AT_ONCE))
    answer_correct("#### 3*4", 12)
    programs = [program_latencies() for _ in range(NUM_REPEATS)]
    raw = {
        "no_op_episode_ms": [no_op_episode_ms() for _ in range(NUM_REPEATS)],
        "waiting_by_ideal": [waiting_by_ideal() for _ in range(NUM_REPEATS)],
        "programs_per_s": [NUM_PROGRAMS / run[0] for run in programs],
        "program_p95_ms": [float(np.percentile(run[1:], 95)) * 1000 for run in programs],
        "number_checks_per_s": [checks_per_s(lambda number: f"#### {number}") for _ in range(NUM_REPEATS)],
        "symbolic_checks_per_s": [
            checks_per_s(lambda number: f"\\boxed{{{number - 1}+1}}") for _ in range(NUM_REPEATS)
        ],
    }
    summary = {name: statistics.median(values) for name, values in raw.items()}
    summary["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "sandbox_level": level}
    out.write_text(json.dumps({"summary": summary, "machine": machine, "raw": raw}, indent=2) + "\n")
    typer.echo(json.dumps(summary, indent=2))


if __name__ == "__main__":
    typer.run(main)
