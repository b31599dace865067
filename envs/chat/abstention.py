"""Does the policy know what it does not know? Sums, some of which lack a number; abstaining earns half."""

import numpy as np

from envs.math.arithmetic import LEVELS, draw_sum
from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import choose_level
from rewards.abstention import abstention_reward
from rewards.numbers import number_correct

UNKNOWN = "I don't know"


def draw_row(rng: np.random.Generator, level: int = 3, unknown_share: float = 0.3) -> Row:
    problem = draw_sum(rng, choose_level(level, LEVELS))
    text = problem.text
    is_known = bool(rng.random() >= unknown_share)
    if not is_known:
        text = f"x{text[text.index(problem.steps[0][0]) :]}" if "(" not in text else f"x+{text}"
    return {
        "prompt": f"{text}=? If it cannot be known, say: {UNKNOWN}",
        "gold": problem.results[-1] if is_known else UNKNOWN,
        "gold_reasoning": problem.worked if is_known else "x is not given",
        "is_known": is_known,
        "key": text,  # not the sum before a number was replaced: that may be in the other split
    }


@scored(draw=draw_row)
def abstention(reply: Reply, row: Row) -> dict[str, float]:
    """Compute a sum, or say "I don't know": some sums contain an x whose value is not given.

    Options: `level` selects the sums as in `math/Arithmetic-v0`; `unknown_share` is the share that cannot be known.
    Reward parts: `answer` 1 if it is right, 0.5 for abstaining if the sum can be known, 0 for a wrong answer; if it
    cannot be known, abstaining is right.
    """
    if not row["is_known"]:
        return {"answer": float(abstention_reward(reply.text, 0.0, UNKNOWN) == 0.5)}
    return {"answer": abstention_reward(reply.text, number_correct(reply.text, row["gold"]), UNKNOWN)}
