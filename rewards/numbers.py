"""Is the number in a reply the right one? Reading numbers from text, exactly and without a symbolic library."""

import re
from fractions import Fraction

NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\$?\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
FINAL_LINE = re.compile(r"^####[ \t]*(.*?)[ \t]*$", re.MULTILINE)


def parse_number(text: str) -> Fraction | None:
    """The number that the text consists of, such as `-3`, `1,200`, `$4.50` or `3/4`; None when it is something else.

    A closing full stop and blanks around the number are ignored.
    """
    plain = text.strip().removesuffix(".").replace("\u2212", "-").replace("$", "").replace(",", "")
    if not re.fullmatch(r"-?\d{1,40}(\.\d{1,40})?(/[1-9]\d{0,40})?", plain) or ("." in plain and "/" in plain):
        return None
    return Fraction(plain)


def final_answer(text: str) -> str:
    """The part of a worked answer that states the result.

    Looked for in this order: the last `#### ...` line (the format of GSM8K, Cobbe et al. 2021, arXiv:2110.14168), the
    last `\\boxed{...}`, the last number. Empty when there is none of them.
    """
    if lines := FINAL_LINE.findall(text):
        return lines[-1]
    if (boxed := last_boxed(text)) is not None:
        return boxed
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}`, braces within it matched; None when there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None


def number_correct(text: str, expected: int | Fraction) -> float:
    """1.0 when the final answer of `text` equals `expected` exactly, else 0.0."""
    return float(parse_number(final_answer(text)) == Fraction(expected))
