"""Can the policy choose the right one of several answers? Sums, and word problems, with options."""

from fractions import Fraction

import numpy as np

from envs.math.arithmetic import LEVELS, draw_sum
from envs.math.grade_school import draw_easy
from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError, choose_level
from rewards.choice import choice_correct, chosen_letter

LETTERS = "ABCDEFGHIJ"
SOURCES = ("sums", "words")


def draw_row(rng: np.random.Generator, source: str = "sums", level: int = 1, num_options: int = 4) -> Row:
    if source not in SOURCES:
        raise EnvironmentOptionError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if not 2 <= num_options <= len(LETTERS):
        raise EnvironmentOptionError(f"num_options must be 2 to {len(LETTERS)}, got {num_options!r}")
    if source == "sums":
        problem = draw_sum(rng, choose_level(level, LEVELS))
        question, answer, worked = f"{problem.text}=?", Fraction(problem.results[-1]), problem.worked
    else:
        easy = draw_easy(rng)
        question, answer, worked = easy.text, easy.answer, easy.worked
    options = draw_options(rng, answer, num_options)
    letter = LETTERS[options.index(answer)]
    listed = "\n".join(f"{LETTERS[place]}. {option}" for place, option in enumerate(options))
    return {
        "prompt": f"{question}\n{listed}\nEnd with: Answer: LETTER",
        "gold": f"Answer: {letter}",
        "gold_reasoning": worked,
        "letter": letter,
        "letters": LETTERS[:num_options],
        "key": question,
    }


def draw_options(rng: np.random.Generator, answer: Fraction, num: int) -> list[Fraction]:
    """The answer among different numbers near it, at a random place."""
    near = [answer + int(shift) for shift in rng.permutation([*range(-12, 0), *range(1, 13)])[: num - 1]]
    return [[*near, answer][int(place)] for place in rng.permutation(num)]


@scored(draw=draw_row, answer_of=lambda text: chosen_letter(text, LETTERS))
def multiple_choice(reply: Reply, row: Row) -> dict[str, float]:
    """Choose the right option of a question; the prompt asks to end with `Answer: LETTER`.

    The choice is read from the last `\\boxed{B}`, else from the last `Answer: B`, else from a last line that is or
    begins with a letter; several letters are no choice (`rewards.choice`).

    Options: `source` is `sums` or `words`; `level` chooses the sums as in `math/Arithmetic-v0`; `num_options` 2 to 10.
    Reward parts: `correct` 1 if the letter is right.
    """
    return {"correct": choice_correct(reply.text, row["letter"], row["letters"])}
