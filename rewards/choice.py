"""Which option of a multiple-choice question did the reply choose?"""

import re

STATED = re.compile(r"(?i:answer|option|choice)\s*(?i:is)?\s*:?\s*\**\(?([A-Z])\)?(?![\w'])")
"""Letters are capitals: `a` is a word."""
BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?\}?\s*\}")
ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")


def chosen_letter(text: str, letters: str) -> str | None:
    """The letter that the text states, or None where it states none, or several that differ.

    Looked for in this order: `\\boxed{B}`; `Answer: B`; a last line that is a letter alone. `letters` are those there
    are, such as `ABCD`.
    """
    lines = text.strip().splitlines()
    last = ALONE.fullmatch(lines[-1].strip()) if lines else None
    for found in (BOXED.findall(text), STATED.findall(text), [last[1]] if last else []):
        stated = set(found) & set(letters)
        if found:
            return stated.pop() if len(stated) == 1 else None
    return None


def choice_correct(text: str, letter: str, letters: str = "ABCD") -> float:
    """1.0 when the text chooses `letter`, else 0.0."""
    return float(chosen_letter(text, letters) == letter)
