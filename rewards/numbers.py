"""Is the number in a reply the right one? Numbers are read from text exactly, without a symbolic library.

A comma separates thousands only between a first group of one to three digits and groups of exactly three; otherwise it
makes a list, which is not a number. A percentage equals its hundredth. Its sign may be omitted, in the answer or in the
expected number, if the expected number is 1 or more: both 50 and 50 % answer "what per cent", while 0.5 % for a share
of 1/2 is wrong.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.final_answer import final_answer, value_runs
from rewards.latex import plain_latex

MAX_CHARACTERS = 400
MAX_DIGITS = 40
MAX_EXPONENT = 300
WHOLE = r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+"
NUMBER = re.compile(
    rf"(?P<sign>[-+]? ?)\(?(?:(?P<mixed>{WHOLE})(?: |(?=\\)))??"
    rf"(?:\\frac ?\{{ ?(?P<sign2>-?) ?(?P<above>{WHOLE}) ?\}} ?\{{ ?(?P<below>{WHOLE}) ?\}}"
    rf"|(?P<over>{WHOLE}) ?/ ?(?P<under>{WHOLE})"
    rf"|(?P<whole>{WHOLE})?(?:\.(?P<decimals>\d*)(?:\\(?:overline|bar|dot) ?\{{(?P<period>\d+)\}})?)?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4})| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{? ?(?P<power>[-+]?\d{1,4}) ?\}?)?)"
    r"\)?(?P<percent> ?(?:\\?%|\\text\{ ?percent ?\}|percent))?(?: ?\^ ?\{? ?\\circ ?\}?)?"
)
NAME = re.compile(r"(?:_\{?\w{1,4}+\}?+|\([\w, ]{0,8}+\)|[^\d=<>,_()])++")
MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number (a percentage is divided by 100), and whether it was written with a percent sign."""

    value: Fraction
    percent: bool

    def equals(self, other: "Quantity") -> bool:
        """Whether this answer equals the expected quantity `other`, by the rules of the module's docstring."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        written = other.value * 100 if other.percent else other.value
        return abs(written) >= 1 and written == (self.value * 100 if self.percent else self.value)


def parse_number(text: str) -> Fraction | None:
    """The number that the text consists of, such as `-3`, `1,200`, `$4.50`, `3/4`, `2 1/2` or `1.5e3`; else None.

    A closing full stop, blanks, currency, bold and LaTeX styling are ignored. None for a percentage.
    """
    quantity = parse_quantity(text)
    return None if quantity is None or quantity.percent else quantity.value


def parse_quantity(text: str) -> Quantity | None:
    """The number or percentage that the text consists of; None for anything else, and above `MAX_DIGITS` digits."""
    if len(text) > MAX_CHARACTERS:
        return None
    found = NUMBER.fullmatch(re.sub(r"[$€£¥₹]", "", plain_latex(text)).strip())
    parts = {} if found is None else {name: part for name, part in found.groupdict().items() if part is not None}
    value = _value({name: re.sub(r"[ ,]", "", part) for name, part in parts.items()})
    return None if value is None else Quantity(value / 100 if "percent" in parts else value, "percent" in parts)


def _value(parts: dict[str, str]) -> Fraction | None:
    digits = "".join(parts.get(name, "") for name in ("whole", "decimals", "period"))
    sizes = [len(part) for part in parts.values()]
    if not parts or max(sizes) > MAX_DIGITS or not (digits or "above" in parts or "over" in parts):
        return None
    if digits:
        if "mixed" in parts:  # `2 3` is two numbers
            return None
        value = _decimal(parts)
        exponent = int(parts.get("exponent") or parts.get("power") or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        value *= Fraction(10) ** exponent
    else:
        below = int(parts.get("below") or parts.get("under") or 0)
        if not below:
            return None
        value = Fraction(int(parts.get("above") or parts.get("over") or 0), below)
        value = -value if parts.get("sign2") == "-" else value
        value += int(parts.get("mixed", 0))
    return -value if parts.get("sign") == "-" else value


def _decimal(parts: dict[str, str]) -> Fraction:
    whole, decimals, period = parts.get("whole") or "0", parts.get("decimals", ""), parts.get("period", "")
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals)) if period else value


def named_value(answer: str) -> str:
    """The answer without a leading name, such as `x =`."""
    name, sign, value = answer.replace("\\approx", "=", 1).partition("=")
    return value if sign and len(name) <= MAX_NAME and NAME.fullmatch(name) else answer


def number_correct(text: str, expected: int | Fraction) -> float:
    """1.0 if the final answer of `text` equals `expected` exactly, else 0.0."""
    given = _answered(text)
    return float(given is not None and given.equals(Quantity(Fraction(expected), False)))


def answered_number(text: str) -> str | None:
    """The final answer of `text` as a fraction in lowest terms, `1/2` for `0.5` too; None if it is no number."""
    given = _answered(text)
    return None if given is None else str(given.value)


def _answered(text: str) -> Quantity | None:
    answer = named_value(final_answer(text))
    return parse_quantity(answer) or _only_quantity(answer)


def _only_quantity(answer: str) -> Quantity | None:
    """The only number in an answer in words, such as `42 dollars`."""
    runs = value_runs(answer) if len(answer) <= MAX_CHARACTERS else []
    return parse_quantity(runs[0]) if len(runs) == 1 else None
