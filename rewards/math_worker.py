"""What runs in a worker process of `rewards.math_answer`: are two pieces of plain LaTeX equal? One pair per line.

latex2sympy (the parser of https://github.com/huggingface/Math-Verify) reads each side as a whole or not at all; a side
that it cannot read equals nothing. Math-Verify's own comparison is not used: it treats numbers as equal that differ by
less than 1e-15 or in the seventh decimal, however small they are. Here:

- Numbers and expressions are equal if their values at several points agree to 45 of 60 digits, relative to their size.
  Decimals count as exact fractions, but a decimal with six or more places is accepted for an irrational number.
- Equations and inequalities are equal if one is a multiple of the other. `x = 5` equals `5` if everything else in the
  chain of equations agrees.
- Lists in braces or without brackets have no order; lists in round or square brackets have one.

This file is run by path as `python -P math_worker.py`, and must not import our code.
"""

import hashlib
import json
import math
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

LIMIT_S = 2.0  # of CPU time; right answers take 0.1 to 0.8 s, the most on slow CPUs
MAX_MEMORY_BYTES = 4 << 30
MAX_EXPONENT = 20_000
MAX_FACTORIAL = 3_000
MAX_TERMS = 10_000
DIGITS, RELATIVE, RELATIVE_DECIMAL = 60, sympy.Float("1e-45"), sympy.Float("1e-6")
POINTS = (sympy.Rational(13, 17), sympy.Rational(-22, 13), sympy.Rational(31, 11), sympy.Rational(7, 29))
BRACKETS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle"}
NAMED_LIST = re.compile(r"\s*([A-Za-z](?:_\{?\w+\}?)?|\([A-Za-z, ]+\))\s*(?:=|\\in\b)\s*")
FLIPPED = {sympy.Lt: sympy.Gt, sympy.Gt: sympy.Lt, sympy.Le: sympy.Ge, sympy.Ge: sympy.Le}


class Unreadable(Exception):
    """Not mathematics, or too large to compare."""


class TookTooLong(BaseException):
    """Not an `Exception`, because sympy catches those in many places and continues."""


def same(given: str, gold: str) -> bool:
    """Whether both are equal: first as lists, then as expressions."""
    (given_name, given), (gold_name, gold) = named(given.strip()), named(gold.strip())
    if given_name and gold_name and given_name != gold_name:
        return False
    gold_items, given_items = items(gold), items(given)
    if given_items is None and gold_items is None:
        return same_expression(read(given), read(gold))
    if (given_items is None or gold_items is None) and re.search(r"\\pm|\\cup|\\in|[<>]", given + gold):
        return same_expression(read(given), read(gold))
    if given_items is None or gold_items is None:
        only = (gold_items or given_items or ("", []))[1]
        bracket = (gold_items or given_items or ("", []))[0]
        other = given if given_items is None else gold
        return len(only) == 1 and bracket == "\\{" and other != "\\emptyset" and same(only[0], other)
    (given_bracket, given_parts), (gold_bracket, gold_parts) = given_items, gold_items
    kinds = {given_bracket, gold_bracket}
    if "" not in kinds and kinds not in ({given_bracket}, {"(", "\\langle"}):
        return False
    if len(given_parts) != len(gold_parts):
        return False
    if kinds <= {"", "\\{"}:
        return in_any_order(given_parts, gold_parts, same)
    return all(map(same, given_parts, gold_parts))


def in_any_order(given: Sequence[Any], gold: Sequence[Any], equal: Callable[[Any, Any], bool]) -> bool:
    """Whether each given part equals a different gold part, and no gold part is left."""
    left = list(gold)
    for part in given:
        match = next((place for place, other in enumerate(left) if equal(part, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def named(text: str) -> tuple[str, str]:
    """The name of a list such as `n = 1, 2`, empty if there is none, and the rest."""
    found = NAMED_LIST.match(text) if "," in text and text.count("=") <= 1 else None
    return (found[1].replace(" ", ""), text[found.end() :]) if found else ("", text)


def items(text: str) -> tuple[str, list[str]] | None:
    """Bracket (both, if they differ) and parts of a list; None if the text is not a list."""
    parts = split(text)
    if len(parts) > 1:
        return "", parts
    for opening, closing in BRACKETS.items():
        if text.startswith(opening) and (end := text[-1:] if text[-1:] in ")]" else closing) and text.endswith(end):
            inside = split(text[len(opening) : len(text) - len(end)])
            if len(inside) > 1 or (opening == "\\{" and inside != [""]):
                return opening if end == closing else opening + end, inside
    return None


def split(text: str) -> list[str]:
    """The text split at commas and semicolons outside of brackets; the whole text if brackets do not match."""
    depth, parts, begin = 0, [], 0
    for found in re.finditer(r"\\left|\\right|\\langle|\\rangle|\\begin|\\end|[\[({\])},;]", text):
        if found[0] in ("[", "(", "{", "\\langle", "\\begin"):
            depth += 1
        elif found[0] in ("]", ")", "}", "\\rangle", "\\end"):
            depth -= 1
            if depth < 0:
                return [text]
        elif depth == 0 and found[0] in (",", ";") and not _in_number(text, found.start()):
            parts.append(text[begin : found.start()].strip())
            begin = found.end()
    return [*parts, text[begin:].strip()] if depth == 0 else [text]


def _in_number(text: str, place: int) -> bool:
    """Whether a comma separates thousands: in an item of the form 1,234 without a blank after the comma."""
    before = re.search(r"(?<![\d,])[1-9]\d{0,2}(?:,\d{3})*\Z", text[max(0, place - 24) : place])
    return before is not None and re.match(r",\d{3}(?!\d)", text[place : place + 5]) is not None


def read(text: str) -> Any:
    """The whole text as a sympy object. Raises `Unreadable`."""
    if re.search(r"\\binom *\{\d{5}|\d{400}", text):
        raise Unreadable("too large")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    try:
        value = latex2sympy(
            text,
            is_real=None,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception as error:
        raise Unreadable(text) from error
    if value is None or not isinstance(value, sympy.Basic | sympy.MatrixBase):
        raise Unreadable(text)
    for part in value.flat() if isinstance(value, sympy.MatrixBase) else [value]:
        if part.has(sympy.zoo, sympy.nan):
            raise Unreadable(text)
        check_size(part)
    return value


def check_size(expression: Any) -> None:
    """Raises `Unreadable` for powers and factorials that would take too long to compute."""
    for node in sympy.preorder_traversal(expression):
        if isinstance(node, sympy.Pow) and abs(rough(node.exp)) > MAX_EXPONENT:
            raise Unreadable("too large")
        if isinstance(node, sympy.factorial | sympy.binomial) and abs(rough(node.args[0])) > MAX_FACTORIAL:
            raise Unreadable("too large")
        if isinstance(node, sympy.Sum | sympy.Product) and any(
            rough(limit[2] - limit[1]) > MAX_TERMS for limit in node.limits
        ):
            raise Unreadable("too large")


def rough(node: Any) -> float:
    """Approximate size of a number, without computing it; 0 if it has none. Raises `Unreadable` above 1e300."""
    try:
        if isinstance(node, sympy.Number):
            return 0.0 if node.is_infinite else float(node)
        if isinstance(node, sympy.Add):
            return sum(map(rough, node.args))
        if isinstance(node, sympy.Mul):
            return math.prod(map(rough, node.args))
        if isinstance(node, sympy.Pow):
            return abs(rough(node.base)) ** rough(node.exp)
        if isinstance(node, sympy.factorial):
            return float(min(rough(node.args[0]), 170.0)) ** min(rough(node.args[0]), 170.0)
    except ZeroDivisionError:
        return 0.0
    except OverflowError as error:
        raise Unreadable("too large") from error
    return 0.0


def same_expression(given: Any, gold: Any) -> bool:
    if is_equation(given) and not is_equation(gold):
        given = equation_value(given)
    elif is_equation(gold) and not is_equation(given) and is_name(relations(gold)[0].lhs):
        gold = equation_value(gold)
    if isinstance(given, sympy.Set) != isinstance(gold, sympy.Set):
        given, gold = as_set(given), as_set(gold)
    if isinstance(given, sympy.Set) and isinstance(gold, sympy.Set):
        return same_set(given, gold)
    if relations(given) or relations(gold):
        return same_relations(relations(given), relations(gold))
    if isinstance(given, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(gold, sympy.MatrixBase | sympy.MatrixExpr):
        return same_matrix(given, gold)
    if isinstance(given, sympy.Tuple) or isinstance(gold, sympy.Tuple):
        same_length = type(given) is type(gold) and len(given.args) == len(gold.args)
        return same_length and all(map(same_expression, given.args, gold.args))
    return same_scalar(given, gold)


def relations(value: Any) -> list[Any]:
    """The relations of a chain such as `1 < x < 2`, in order; none for other values."""
    if isinstance(value, Relational):
        return [value]
    if isinstance(value, sympy.And):
        return list(getattr(value, "_unsorted_args", value.args))
    return []


def is_equation(value: Any) -> bool:
    return bool(relations(value)) and all(isinstance(relation, sympy.Eq) for relation in relations(value))


def is_name(value: Any) -> bool:
    return isinstance(value, sympy.Symbol | AppliedUndef)


def is_wanted(side: Any) -> bool:
    """Whether an equation with this side says what its value is, as `m + n = 13` does and `x + 3 = 5` does not."""
    plain = side.replace(lambda node: isinstance(node, AppliedUndef), lambda node: sympy.Symbol(str(node)))
    return all(abs(number) == 1 for number in plain.atoms(sympy.Number))


def equation_value(equation: Any) -> Any:
    """The right side of `x = 5` or of a chain whose other sides equal it. Raises `Unreadable` for a false chain, and
    for an equation that is still to be solved.
    """
    chain = relations(equation)
    sides = [chain[0].lhs, *(relation.rhs for relation in chain)]
    value = sides[0] if is_name(sides[-1]) and not is_name(sides[0]) else sides[-1]  # `5 = x`
    for side in sides:
        if not side.free_symbols and not same_expression(side, value):
            raise Unreadable("a false equation")
        if len(sides) == 2 and side.free_symbols and side is not value and not is_wanted(side):
            raise Unreadable("an equation to be solved")
    return value


def as_set(value: Any) -> Any:
    """The set of one number, or of the solutions of inequalities in one unknown; otherwise the value unchanged."""
    if isinstance(value, sympy.Set):
        return value
    if chain := relations(value):
        names = sorted(value.free_symbols, key=str)
        if len(names) != 1 or is_equation(value):
            return value
        values: Any = sympy.And(*chain).subs(names[0], sympy.Symbol("x", real=True))
        return values.as_set()
    return sympy.FiniteSet(value)


def same_set(given: Any, gold: Any) -> bool:
    if isinstance(given, sympy.FiniteSet) and isinstance(gold, sympy.FiniteSet):
        return in_any_order(given.args, gold.args, same_expression)
    if isinstance(given, sympy.Interval) and isinstance(gold, sympy.Interval):
        ends = given.left_open == gold.left_open and given.right_open == gold.right_open
        return bool(ends) and same_expression(given.start, gold.start) and same_expression(given.end, gold.end)
    given, gold = exact(given), exact(gold)
    return given == gold or given.symmetric_difference(gold).is_empty is True


def same_relations(given: list[Any], gold: list[Any]) -> bool:
    if len(given) != len(gold):
        return False
    turned = [relation.reversed for relation in reversed(given)]
    return all(map(same_relation, given, gold)) or all(map(same_relation, turned, gold))


def same_relation(given: Any, gold: Any) -> bool:
    """Whether `given` is a multiple of `gold`, by a positive factor if both are inequalities in the same direction."""
    if isinstance(given.rhs, sympy.Set | sympy.Tuple) or isinstance(gold.rhs, sympy.Set | sympy.Tuple):
        return same_expression(given.lhs, gold.lhs) and same_expression(given.rhs, gold.rhs)
    ratios = []
    differences = [exact(gold.lhs - gold.rhs), exact(given.lhs - given.rhs)]
    for point in range(len(POINTS)):
        values = [value_at(difference, point) for difference in differences]
        if values[0] is None or values[1] is None or not values[0] or not values[1]:
            return False
        ratios.append(values[1] / values[0])
    if any(abs(ratio - ratios[0]) > abs(ratios[0]) * RELATIVE for ratio in ratios):
        return False
    if type(given) is type(gold):
        return isinstance(gold, sympy.Eq | sympy.Ne) or sympy.re(ratios[0]) > 0
    return FLIPPED.get(type(gold)) is type(given) and sympy.re(ratios[0]) < 0


def same_matrix(given: Any, gold: Any) -> bool:
    given, gold = given.doit(), gold.doit()
    if not isinstance(given, sympy.MatrixBase) or not isinstance(gold, sympy.MatrixBase):
        return given == gold
    return given.shape == gold.shape and all(map(same_expression, given.flat(), gold.flat()))


def same_scalar(given: Any, gold: Any) -> bool:
    decimals = [part.has(sympy.Float) for part in (given, gold)]
    places = max((len(str(number).partition(".")[2]) for number in (given + gold).atoms(sympy.Float)), default=0)
    given, gold = exact(given), exact(gold)
    if given == gold:
        return True
    if given.is_infinite or gold.is_infinite:
        return False
    if given.is_Rational and gold.is_Rational:
        return False
    irrational = not (given.is_rational or gold.is_rational) or given.is_rational != gold.is_rational
    tolerance = RELATIVE_DECIMAL if irrational and decimals[0] != decimals[1] and places >= 6 else RELATIVE
    num_compared = 0
    for point in range(len(POINTS)):
        left, right = value_at(given, point), value_at(gold, point)
        if left is None or right is None:
            continue
        num_compared += 1
        if abs(left - right) > max(abs(left), abs(right)) * tolerance:
            near = min(abs(left), abs(right)) < sympy.Float("1e-40")  # perhaps 0, which digits cannot show
            return bool(near and (given - gold).equals(0) and given.is_zero is not False and gold.is_zero is not False)
    return num_compared > 0


def exact(value: Any) -> Any:
    """The computed value, with decimals as fractions and i as the imaginary unit."""
    value = value.doit().replace(lambda node: isinstance(node, sympy.Float), lambda node: sympy.Rational(str(node)))
    value = value.replace(lambda node: isinstance(node, AppliedUndef), lambda node: sympy.Symbol(str(node)))
    return value.subs(sympy.Symbol("i"), sympy.I).doit()


def value_at(expression: Any, point: int) -> Any:
    """The value with each symbol replaced by a fraction of its own, to 60 digits; None if there is none."""
    places = {name: POINTS[point] + fraction_of(str(name), point) for name in expression.free_symbols}
    value = sympy.N(expression.subs(places), DIGITS)
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    return value if all(part.is_Number for part in value.as_real_imag()) else None


def fraction_of(name: str, point: int) -> Any:
    """Between 0 and 1, and in no simple relation to those of other names: `x + z` is not `2y` at every point."""
    digest = hashlib.sha256(f"{point}:{name}".encode()).digest()
    return sympy.Rational(int.from_bytes(digest[:6], "big") % 9967, 9973)


def stop(*_: object) -> None:
    raise TookTooLong


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGVTALRM, stop)  # counts only this process's time, so load cannot make answers wrong
    same("\\frac{x}{2} + \\sqrt{3}", "3!")  # the first use builds the parser's tables
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
            verdict = same(*json.loads(line))
        except (Exception, TookTooLong):  # whatever failed, it is not the expected value
            verdict = False
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
