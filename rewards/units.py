"""Which unit does a written quantity have? A missing unit is accepted; another unit is another quantity."""

import re

NAMES = {
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre",
    "m": "meter metre",
    "kg": "kilogram",
    "g": "gram gm",
    "mg": "milligram",
    "lb": "pound",
    "oz": "ounce",
    "ft": "foot feet",
    "in": "inch inche",
    "mi": "mile",
    "yd": "yard",
    "L": "liter litre l",
    "mL": "milliliter millilitre ml",
    "h": "hour hr",
    "min": "minute",
    "s": "second sec",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "dollar": "usd",
    "cent": "",
    "euro": "eur",
    "degree": "deg",
    "unit": "",
}
BY_NAME = {name: unit for unit, names in NAMES.items() for name in (unit, *names.split())}
COMPOUND = {"mph": "mi/h", "kmh": "km/h", "kmph": "km/h", "kph": "km/h"}
BARE_LETTERS = frozenset({"m", "g", "L", "l", "h", "s"})
"""Alone after a number, these may also be variables."""
NO_UNIT = re.compile(r"\b(?:and|or|if|when|where|for|unless|otherwise|not|mod|base|such|with|all|is|are)\b")
POWER = r"(?: ?\^ ?\{? ?-?\d ?\}?)?"
WRITTEN = re.compile(rf" ?((?:\\text\{{[^{{}}\d]*\}}{POWER} ?/? ?)+)\Z")
DEGREES = re.compile(r" ?\^ ?\{? ?\\circ ?\}? ?(?:\\text\{ ?)?([CF]?) ?\}?\Z")
ANGLE_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
BARE = re.compile(rf"(?<=[\d}})]) ?((?:[A-Za-z]{{1,12}}{POWER}(?: ?/ ?(?=[A-Za-z]))?){{1,2}})\Z")
CURRENCIES = {"\\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}


def split_unit(answer: str, currency_of: str = "", letters: bool = False) -> tuple[str, str]:
    """Value and unit of an answer in plain LaTeX; the unit is empty if there is none.

    `currency_of` is the answer as it was written, with its currency signs. With `letters`, a bare letter such as in
    `12 m` also counts as a unit.
    """
    currency = next((name for sign, name in CURRENCIES.items() if sign in currency_of), "")
    if (found := DEGREES.search(answer)) and found.start() and not ANGLE_FUNCTION.search(answer):
        return answer[: found.start()].strip(), f"degree {found[1]}".strip()
    if (found := WRITTEN.search(answer)) and found.start() and not NO_UNIT.search(found[1].lower()):
        return answer[: found.start()].strip(), _canonical(re.sub(r"\\text\{([^{}]*)\}", r"\1", found[1]))
    if found := BARE.search(answer):
        words = re.findall(r"[A-Za-z]+", found[1])
        if all((_name(word) in NAMES or word in COMPOUND) and (letters or word not in BARE_LETTERS) for word in words):
            return answer[: found.start()].strip(), _canonical(found[1])
    return re.sub(r"[€£¥₹]", "", answer).strip(), currency


def _canonical(unit: str) -> str:
    unit = re.sub(r"\bsquare (\w+)|\bsq\.? ?(\w+)", r"\1\2^2", unit)
    unit = re.sub(r"\bcubic (\w+)|\bcu\.? (\w+)", r"\1\2^3", unit)
    unit = re.sub(r"\bper\b", "/", unit.replace(".", ""))
    unit = re.sub(r"[A-Za-z]+", lambda word: _name(word[0]), unit)
    return COMPOUND.get(plain := re.sub(r"[{} ]", "", unit), plain)


def _name(word: str) -> str:
    """One name for a unit, its plural and its abbreviation; case matters only in short ones."""
    plain = word if len(word) <= 2 else word.lower()
    singular = plain[:-1] if len(plain) > 2 and plain.endswith("s") else plain
    return BY_NAME.get(plain) or BY_NAME.get(singular) or singular
