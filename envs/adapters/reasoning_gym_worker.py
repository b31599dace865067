"""What runs in a worker process of `envs.adapters.reasoning_gym`: the generators, and their scorers in jails.

Some scorers evaluate the answer as Python. So each answer is scored in a fork of this process, which first applies the
sandbox's layers (`envs/sandbox/layers.py`). The fork writes no file, starts no process and reaches no network, and its
changes end with it. Run by path; see `rewards.worker_pool` for the protocol.

`main` is deliberately a copy of the similar one in `verifiers_worker.py`: workers import nothing of ours, since a
worker's Python may belong to another Python environment.
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "sandbox"))
import layers  # pyright: ignore[reportMissingImports]
import system_calls  # pyright: ignore[reportMissingImports]

sys.path.pop(0)

NUM_ENTRIES = 10_000
"""Entries per generator; some generators make all of them at once."""
ANSWER = 3
"""The only descriptor that a jail keeps in addition to the standard ones."""
CPU_S, MEMORY_BYTES = 5, 4 * 1024**3


@functools.cache
def dataset(task: str) -> Any:
    """The generator, built once, since building can take seconds."""
    import reasoning_gym

    return reasoning_gym.create_dataset(task, size=NUM_ENTRIES, seed=0)


def entry(task: str, number: int) -> dict[str, Any]:
    row = dataset(task)[number]
    return {"question": row["question"], "answer": row["answer"]}


def score(task: str, number: int, answer: str) -> float:
    return float(dataset(task).score_answer(answer, dataset(task)[number]))


def score_in_jail(*arguments: Any) -> float:
    """The score of an answer; 0 if the scorer cannot read it. Raises `LayerError` if no jail can be made."""
    task, number, _ = arguments
    dataset(task)[number]  # a failure of the generator is not the answer's fault
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, ANSWER)
        os.write(ANSWER, json.dumps(jailed_score(*arguments)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    result = json.loads(said) if said else 0.0  # killed at a limit
    if isinstance(result, str):
        raise layers.LayerError(result)
    return result


def jailed_score(task: str, number: int, answer: str) -> float | str:
    try:
        layers.die_with_parent()
        nothing = os.open(os.devnull, os.O_RDWR)
        for inherited in (0, 1, 2):  # 1 is the worker's own: what is written there would answer the next question
            os.dup2(nothing, inherited)
        paths = [*sys.path, os.path.dirname(os.__file__), "/lib", "/lib64", "/usr/lib", "/dev/null", "/dev/urandom"]
        found = [path for path in paths if os.path.exists(path)]
        layers.restrict_files([(os.open(path, os.O_PATH), os.path.isdir(path)) for path in found], None)
        os.closerange(ANSWER + 1, os.sysconf("SC_OPEN_MAX"))
        layers.drop_privileges()
        layers.limit_resources(CPU_S, MEMORY_BYTES, 0)
        layers.install_filter(system_calls.call_filter(layers.MACHINE, may_start_threads=False))
    except (OSError, ValueError) as error:
        return str(error)
    try:
        return score(task, number, answer)
    except BaseException:
        return 0.0


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # no thread can start in a jail, and OpenBLAS ends a process that has too few
    from reasoning_gym.factory import DATASETS

    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - some generators print
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            result: Any = {"tasks": lambda: sorted(DATASETS), "entry": entry, "score": score_in_jail}[what](*arguments)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
