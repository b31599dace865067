"""What does a step's data cost the driver, in nanoseconds per token?

    python -m benchmarks.data_path --out benchmarks/results/data_path.json     (about one minute, one core)

A step's groups come from workers, become samples, go to the learner and become batches there. Both transfers are
pickled by the pickler that Ray uses, into the bytes that Ray would move; sockets and shared memory are left out. Every
figure is the best of its repetitions, divided by the step's tokens, prompts and replies together. As in `timeit`,
Python's garbage collector is off meanwhile.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import gc
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from ray.cloudpickle.cloudpickle_fast import dumps

from benchmarks.report import write_report
from envs.messages import Message
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Outcome, Rollout, Sample, Task, Turn
from rl.learner.batching import make_batches
from rl.learner.samples import JoinedSamples, make_samples
from rl.runs.saved_rollouts import write_rollouts
from rl.tokens import Tokens

R = TypeVar("R")
ENV_ID = "math/Arithmetic-v0"
GROUP_SIZE = 8
NUM_PROMPT_TOKENS = 256
REPLY_TOKENS = (8192, 1024, 128)
"""Reply tokens of a rollout, one size after the other."""
VOCAB_SIZE = 131_072
CHARACTERS_PER_TOKEN = 4
BYTES_PER_TOKEN = 32
"""More than a pickled step takes."""
ROWS_PER_MICRO_BATCH = 8


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Few rollouts, once; only to see that it runs.")] = False,
) -> None:
    num_rollouts, num_repeats = (2 * GROUP_SIZE, 1) if short else (512, 10)
    gc.disable()
    raw = {num: measured(num_rollouts, num, num_repeats) for num in REPLY_TOKENS}
    summary = {f"{num}_reply_tokens": summarised(figures) for num, figures in raw.items()}
    settings = {"rollouts": num_rollouts, "prompt_tokens": NUM_PROMPT_TOKENS, "repeats": num_repeats}
    write_report(out, summary, settings=settings, raw_ns=raw)


def measured(num_rollouts: int, num_reply_tokens: int, num_repeats: int) -> dict[str, list[float]]:
    """Nanoseconds per token of each part, by repetition."""
    config = experiment(num_reply_tokens)
    groups = [make_group(ordinal, num_reply_tokens) for ordinal in range(num_rollouts // GROUP_SIZE)]
    num_tokens = num_rollouts * (NUM_PROMPT_TOKENS + num_reply_tokens)
    raw: dict[str, list[float]] = {}

    def timed(name: str, part: Callable[[], R]) -> R:
        started = time.perf_counter_ns()
        result = part()
        raw.setdefault(name, []).append((time.perf_counter_ns() - started) / num_tokens)
        return result

    shared = SharedMemory(num_tokens), SharedMemory(num_tokens)
    limit = config.learner.tokens_per_micro_batch
    for _ in range(num_repeats):
        timed("pickle_groups", lambda: shared[0].put(groups))
        loaded: list[Group] = timed("load_groups", shared[0].get)
        samples = timed("samples", lambda groups=loaded: make_samples(groups, config.algorithm_of))
        timed("pickle_samples", lambda samples=samples: shared[1].put(JoinedSamples.join(samples)))
        loaded_samples: list[Sample] = timed("load_samples", lambda: shared[1].get().cut())
        timed("batch", lambda samples=loaded_samples: make_batches(samples, limit, 0, shares_prefixes=True))
        with tempfile.TemporaryFile("w", encoding="utf-8") as file:
            timed("rollout_lines", lambda file=file: write_rollouts(file, 1, "train", groups))
    return raw


class SharedMemory:
    """Moves an object as Ray does: pickled with protocol 5 into memory that is there already, loaded from there.

    Buffers that a pickle keeps out of its stream are copied behind it, and loaded objects are views of the copy.
    """

    def __init__(self, num_tokens: int) -> None:
        self._memory = memoryview(bytearray(BYTES_PER_TOKEN * num_tokens))
        self._ends: list[int] = []

    def put(self, value: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        stream = dumps(value, protocol=5, buffer_callback=buffers.append)
        self._ends, end = [], 0
        for part in (memoryview(stream), *(buffer.raw() for buffer in buffers)):
            self._memory[end : end + part.nbytes] = part
            end += part.nbytes
            self._ends.append(end)

    def get(self) -> Any:
        starts = [0, *self._ends]
        memory = self._memory.toreadonly()
        stream, *buffers = [memory[start:end] for start, end in pairwise(starts)]
        return pickle.loads(stream, buffers=buffers)


def summarised(raw: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The best of each part's repetitions, by stage."""
    best = {name: min(values) for name, values in raw.items()}
    summary = {
        "groups_ns": best["pickle_groups"] + best["load_groups"],
        "samples_ns": best["samples"],
        "to_learner_ns": best["pickle_samples"] + best["load_samples"] + best["batch"],
    }
    return {**summary, "total_ns": sum(summary.values()), "rollout_lines_ns": best["rollout_lines"]}


def experiment(num_reply_tokens: int) -> ExperimentConfig:
    """Rows of the step's length, eight to a micro-batch."""
    tokens_per_row = NUM_PROMPT_TOKENS + num_reply_tokens
    return ExperimentConfig.model_validate(
        {
            "run_dir": tempfile.gettempdir(),
            "seed": 0,
            "policy": {"path": "none", "max_tokens": tokens_per_row},
            "environments": {ENV_ID: {}},
            "learner": {"tokens_per_micro_batch": ROWS_PER_MICRO_BATCH * tokens_per_row},
            "train": {"num_steps": 1},
        }
    )


def make_group(ordinal: int, num_reply_tokens: int) -> Group:
    """Rollouts of one turn, with rewards that differ, so that every one of them is trained."""
    rng = np.random.default_rng(ordinal)
    task = Task(ordinal, ENV_ID, ordinal, "train", "unlimited")
    prompt_ids = rng.integers(VOCAB_SIZE, size=NUM_PROMPT_TOKENS)
    rollouts: list[Rollout] = []
    for member in range(GROUP_SIZE):
        columns = {"logprob": -rng.random(num_reply_tokens), "version": np.zeros(num_reply_tokens)}
        ids, sampled = rng.integers(VOCAB_SIZE, size=num_reply_tokens), np.ones(num_reply_tokens)
        turn = Turn(Tokens.unsampled(prompt_ids), Tokens.make(ids, sampled, columns), "stop", is_start=True)
        messages = (Message("user", text_of(NUM_PROMPT_TOKENS)), Message("assistant", text_of(num_reply_tokens)))
        reward = float(member % 2)
        rollout = Rollout(
            *(task, f"0-{ordinal}", member, (turn,), messages),
            *(reward, {"correct": reward}, Outcome.OK, "", {}, "", 1, 1.0),
        )
        rollouts.append(rollout)
    return Group(f"0-{ordinal}", task, tuple(rollouts))


def text_of(num_tokens: int) -> str:
    """Text about as long as so many tokens."""
    return "word " * (num_tokens * CHARACTERS_PER_TOKEN // 5)


if __name__ == "__main__":
    typer.run(main)
