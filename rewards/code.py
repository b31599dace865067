"""Which code did the reply give, and are the values it computed the right ones?

Of several fenced blocks one holds the solution: the last that is code of the wanted language and defines something.
A block that only calls what another one defined, or shows what was printed, is no solution. Where no block defines
anything (a program may be a few statements), it is the last block that is tagged as Python; where none is tagged, the
last block without a tag; a block in another language counts only where there is nothing else.
"""

import re
from typing import Any

FENCE = re.compile(r"^[ \t]*(?:>[ \t]*)?(`{3,}|~{3,})[ \t]*([^\n]*)$")
LANGUAGE = re.compile(r"\{?[ \t]*\.?([A-Za-z+#_-]*)")
PYTHON = frozenset({"python", "py", "python2", "python3", "py3", "ipython", "cpython", "pypy", "sage", "code"})
DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+\w", re.MULTILINE)
NAMED_LAMBDA = re.compile(r"^\w+[ \t]*(?::[^=\n]*)?=[ \t]*lambda\b", re.MULTILINE)


def extract_code(text: str) -> str:
    """The fenced block that holds the solution, closed or not; the whole text when there is no fence."""
    blocks = fenced_blocks(text)
    if not blocks:
        return text
    return max(enumerate(blocks), key=lambda numbered: (_rank(*numbered[1]), numbered[0]))[1][1]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language, in lower case, and content of each block between fences of backticks or tildes (CommonMark 4.5).

    A block ends at a bare fence of its own sign that is at least as long as the opening one, or with the text.
    """
    blocks: list[tuple[str, str]] = []
    fence, language, content = "", "", []
    for line in text.splitlines(keepends=True):
        bare, found = line.rstrip("\r\n"), FENCE.match(line.rstrip())
        if not fence:
            if found and not (found[1][0] == "`" and "`" in found[2]):  # else it is code within a line
                fence, language, content = found[1], _language(found[2]), []
        elif found and not found[2] and found[1].startswith(fence):
            blocks.append((language, "".join(content)))
            fence = ""
        elif bare.endswith(fence) and fence[0] == "`":  # the last line of the code closes the block
            blocks.append((language, "".join(content) + bare.removesuffix(fence)))
            fence = ""
        else:
            content.append(line)
    return [*blocks, (language, "".join(content))] if fence else blocks


def _language(info: str) -> str:
    found = LANGUAGE.match(info)
    return found[1].lower() if found else ""


def _rank(language: str, content: str) -> int:
    """How likely a block is the solution."""
    if language in PYTHON or not language:
        defines = DEFINITION.search(content) or NAMED_LAMBDA.search(content)
        return 4 if defines else 3 if language and content.strip() else 2 if content.strip() else 0
    return 1 if content.strip() else 0


def same_value(left: Any, right: Any) -> bool:
    """Equality of plain values that keeps types apart: 1, 1.0 and True differ at any depth, and NaN equals nothing.

    Values are None, numbers, text, bytes, and lists, tuples, sets and dicts of them. Dicts have no order.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, dict):
        keys = {_typed(key): key for key in right}
        return len(left) == len(right) and all(
            _typed(key) in keys and same_value(value, right[keys[_typed(key)]]) for key, value in left.items()
        )
    if isinstance(left, set | frozenset):
        return set(map(_typed, left)) == set(map(_typed, right))
    return left == right


def _typed(value: Any) -> Any:
    """A hashable value with its types, so that equal ones of different types differ."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_typed, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_typed, value))
    return type(value), value


def share_correct(values: list[Any], expected: list[Any]) -> float:
    """Share of the expected values that were computed, in order, in [0, 1]; 0 for another number of values."""
    if len(values) != len(expected) or not expected:
        return 0.0
    return sum(map(same_value, values, expected)) / len(expected)
