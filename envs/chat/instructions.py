"""Can the policy follow instructions about the form of its text? One to three of IFEval's at once, without conflict."""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from envs.chat.instruction_draws import DRAWS
from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError, choose_level
from rewards.instructions import Instruction, Reading, follows_strictly
from rewards.rubric import Rubric
from rewards.words import words_of

RUBRIC = Rubric({"share": 0.3, "all": 0.7})
LEVELS = {1: (1, 1), 2: (1, 2), 3: (2, 3)}
READINGS = get_args(Reading)
MAX_DRAWS = 200
MIN_WORDS = 4
TOPICS = ("the sea", "a small garden", "old trains", "bread", "winter", "a village school", "maps", "honey bees")
SENTENCES = (
    *("This is a short text about {topic}.", "Many people like it.", "It has a long history.", "Some of it is known."),
    *("There is more to say.", "We can look at it in two ways.", "It was not always so.", "The rest is open."),
)


def draw_row(rng: np.random.Generator, level: int = 1, ids: Sequence[str] = (), strict: Reading = "sense") -> Row:
    """A request with instructions that one text can all follow; combinations without such a text are drawn again."""
    if strict not in READINGS:
        raise EnvironmentOptionError(f"strict must be one of {', '.join(READINGS)}, got {strict!r}")
    fewest, most = choose_level(level, LEVELS)
    allowed = list(ids) or list(DRAWS)
    if unknown := sorted(set(allowed) - set(DRAWS)):
        raise EnvironmentOptionError(f"there is no instruction {unknown[0]!r}; ids: {', '.join(DRAWS)}")
    number = 0
    for _ in range(MAX_DRAWS):
        topic = str(rng.choice(TOPICS))
        request = f"Write a short text about {topic}."
        number = min(len(allowed), int(rng.integers(fewest, most + 1)))
        chosen = {str(name) for name in rng.choice(allowed, size=number, replace=False)}
        draws = {name: draw(rng, request) for name, draw in DRAWS.items() if name in chosen}
        text = " ".join(SENTENCES[place] for place in (0, *rng.permutation(range(1, len(SENTENCES)))[:2]))
        text = text.format(topic=topic)
        for _, _, follow in draws.values():
            text = follow(text)
        instructions = [Instruction(name, arguments) for name, (arguments, _, _) in draws.items()]
        if all(follows_strictly(text, instruction, strict) for instruction in instructions):
            told = " ".join([request, *(told for _, told, _ in draws.values())])
            return {"prompt": told, "gold": text, "instructions": instructions, "strict": strict}
    raise EnvironmentOptionError(f"no text follows {number} of these instructions at once: {', '.join(allowed)}")


@scored(draw=draw_row)
def instructions(reply: Reply, row: Row) -> dict[str, float]:
    """Write a short text that follows instructions about its form, of the 25 kinds of IFEval (`rewards.instructions`).

    Options: `level` 1 one instruction, 2 one or two, 3 two or three at once; `ids` keeps only the instructions with
    these IFEval ids, such as `punctuation:no_comma`; `strict` is how they are interpreted: `sense` as a person would
    (keywords are whole words), `ifeval` exactly as IFEval's code does (keywords are parts of words; see
    `rewards.ifeval`).
    Reward parts: `share` 0.3 times the share followed strictly, `all` 0.7 if all are. A reply with fewer than four
    words, or with a copy of the request, follows none.
    """
    if len(words_of(reply.text)) < MIN_WORDS or row["prompt"] in reply.text:
        return RUBRIC({"share": 0.0, "all": 0.0})
    followed = [follows_strictly(reply.text, each, row["strict"]) for each in row["instructions"]]
    share = sum(followed) / len(followed)
    return RUBRIC({"share": share, "all": float(share == 1.0)})
