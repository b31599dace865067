"""Is the price right, and is the answer short? An own reward function over own rows."""

import json
from collections.abc import Mapping
from pathlib import Path

from envs.messages import Reply
from envs.scored import scored
from rewards.numbers import number_correct

ASKED = "Answer in one short sentence."
MAX_WORDS = 20


def questions(file: str = "experiments/own_reward/questions.jsonl") -> list[dict[str, str]]:
    """Rows with `prompt` and `gold`, from lines with `question` and `answer`."""
    lines = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return [{"prompt": f"{line['question']} {ASKED}", "gold": line["answer"]} for line in lines]


@scored(rows=questions)
def prices(reply: Reply, row: Mapping[str, str]) -> dict[str, float]:
    """Say what some things cost, in few words. Option: `file`, whose lines have `question` and `answer`."""
    right = number_correct(reply.text, int(row["gold"]))
    return {"right": 0.8 * right, "short": 0.2 * right * (len(reply.text.split()) <= MAX_WORDS)}
