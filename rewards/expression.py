"""What is the value of a written expression, and which numbers does it use? Exact, without evaluating it as code."""

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

MAX_CHARACTERS = 200
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})  # noqa: RUF001 - how people write them


def read_expression(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value and the integers used, in order; None for anything but numbers, + - * / and brackets."""
    if len(text) > MAX_CHARACTERS:
        return None
    numbers: list[int] = []
    try:
        tree = ast.parse(text.translate(SIGNS).strip(), mode="eval")
        return _value(tree.body, numbers), numbers
    except (SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Raises `ValueError` for any other expression, `ZeroDivisionError` for a division by zero."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and (combine := OPERATORS.get(type(node.op))):
        return combine(_value(node.left, numbers), _value(node.right, numbers))
    raise ValueError(f"{type(node).__name__} is not part of an expression")
