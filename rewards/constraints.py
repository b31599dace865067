"""Does a text follow an instruction about its form? Verifiable constraints in the style of IFEval.

Source of the idea: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911.
A word is a run of letters with their marks and apostrophes, straight or typographic. Words are compared without
regard to case and the form of apostrophes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import regex

from rewards.words import plain

WORD = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d]*+(?:'\p{L}[\p{L}\p{M}\u200c\u200d]*+)*+")


@dataclass(frozen=True, slots=True)
class Constraint:
    """One requirement on a text; `value` is a number, a word, a pair of words or None, by the kind (see `CHECKS`)."""

    kind: str
    value: Any = None


def words_of(text: str) -> list[str]:
    """The text's words in lower case, with straight apostrophes."""
    return WORD.findall(plain(text).lower())


def as_word(word: str) -> str:
    return plain(word).lower()


def num_words_is(text: str, count: int) -> bool:
    return len(words_of(text)) == count


def num_lines_is(text: str, count: int) -> bool:
    """Counts lines that are not blank."""
    return sum(bool(line.strip()) for line in text.splitlines()) == count


def uses(text: str, word: str) -> bool:
    return as_word(word) in words_of(text)


def avoids(text: str, word: str) -> bool:
    return not uses(text, word)


def starts_with(text: str, word: str) -> bool:
    return words_of(text)[:1] == [as_word(word)]


def ends_with(text: str, word: str) -> bool:
    return words_of(text)[-1:] == [as_word(word)]


def uses_in_order(text: str, pair: tuple[str, str]) -> bool:
    """Both words occur, and the first occurrence of the first word precedes that of the second."""
    words = words_of(text)
    first, second = map(as_word, pair)
    return first in words and second in words and words.index(first) < words.index(second)


def repeats_no_word(text: str, _: None = None) -> bool:
    words = words_of(text)
    return len(words) == len(set(words))


def all_capitals(text: str, _: None = None) -> bool:
    return text.upper() == text


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words": num_words_is,
    "lines": num_lines_is,
    "use": uses,
    "avoid": avoids,
    "start": starts_with,
    "end": ends_with,
    "order": uses_in_order,
    "distinct": repeats_no_word,
    "capitals": all_capitals,
}


def follows(text: str, constraint: Constraint) -> bool:
    """Whether the text follows the constraint. A text without words follows none.

    Raises `ValueError` for a kind without a check.
    """
    if constraint.kind not in CHECKS:
        raise ValueError(f"no constraint {constraint.kind!r}; kinds: {', '.join(CHECKS)}")
    return bool(words_of(text)) and CHECKS[constraint.kind](text, constraint.value)


def share_followed(text: str, constraints: tuple[Constraint, ...]) -> float:
    """Share of the constraints that the text follows, in [0, 1]."""
    return sum(follows(text, constraint) for constraint in constraints) / len(constraints)
