"""Which code did the reply give, and are the values that it computed the right ones?

One of several fenced blocks holds the solution: the last Python block that defines the wanted function or, if no name
is given, anything. A block that only calls what another block defined, or shows printed output, is not the solution.
Earlier blocks that define what the solution uses are put before it. If no block defines anything (a program may be a
few statements), the solution is the last block tagged as Python; if none is tagged, the last block without a tag. A
block in another language counts only if there is no other block.
"""

import re
from typing import Any

FENCE = re.compile(r"^([ \t]*)(?:>[ \t]*)?(`{3,}|~{3,})[ \t]*([^\n]*)$")
LANGUAGE = re.compile(r"\{?[ \t]*\.?([A-Za-z+#_-]*)")
PYTHON = frozenset({"python", "py", "python2", "python3", "py3", "ipython", "cpython", "pypy", "sage", "code"})
DEFINES = 4
DEFINITION = re.compile(
    r"^(?:(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|(\w+)[ \t]*(?::[^=\n]*)?=[ \t]*lambda\b)", re.MULTILINE
)


def extract_code(text: str, name: str = "") -> str:
    """The fenced block that holds the solution, closed or not; the whole text if there is no fence.

    `name` is the wanted function, if there is one.
    """
    blocks = fenced_blocks(text)
    if not blocks:
        return text
    ranks = [_rank(language, content, name) for language, content in blocks]
    place = max(range(len(blocks)), key=lambda number: (ranks[number], number))
    solution = blocks[place][1]
    if ranks[place] < DEFINES:
        return solution
    parts, defined, used = [solution], _defined(solution), _used(solution)
    for number in reversed(range(place)):
        if ranks[number] >= DEFINES and (_defined(blocks[number][1]) - defined) & used:
            parts.append(blocks[number][1].rstrip() + "\n")
            defined |= _defined(blocks[number][1])
            used |= _used(blocks[number][1])
    return "".join(reversed(parts))


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language, in lower case, and content of each block between fences of backticks or tildes (CommonMark 4.5).

    A block ends at a bare fence of the same character that is at least as long as the opening one, or with the text.
    """
    blocks: list[tuple[str, str]] = []
    indent, fence, language, content = "", "", "", []
    for line in text.splitlines(keepends=True):
        bare, found = line.rstrip("\r\n"), FENCE.match(line.rstrip())
        if not fence:
            if found and not (found[2][0] == "`" and "`" in found[3]):  # else it is inline code
                indent, fence, language, content = found[1], found[2], _language(found[3]), []
        elif found and not found[3] and found[2].startswith(fence):
            blocks.append((language, "".join(content)))
            fence = ""
        elif found and found[2].startswith(fence) and _language(found[3]) in PYTHON:  # the previous one was left open
            blocks.append((language, "".join(content)))
            indent, fence, language, content = found[1], found[2], _language(found[3]), []
        elif bare.endswith(fence) and fence[0] == "`":  # the last line of the code closes the block
            blocks.append((language, "".join(content) + bare.removesuffix(fence)))
            fence = ""
        else:
            content.append(line.removeprefix(indent))
    return [*blocks, (language, "".join(content))] if fence else blocks


def _language(info: str) -> str:
    found = LANGUAGE.match(info)
    return found[1].lower() if found else ""


def _rank(language: str, content: str, name: str) -> int:
    """How likely a block is the solution; `DEFINES` or more if it defines something."""
    if not content.strip():
        return 0
    if language and language not in PYTHON:
        return 1
    if defined := _defined(content):
        return DEFINES + (name in defined)
    return 3 if language else 2


def _defined(content: str) -> set[str]:
    return {found[1] or found[2] for found in DEFINITION.finditer(content)}


def _used(content: str) -> set[str]:
    return set(re.findall(r"\w+", content))


def same_value(left: Any, right: Any) -> bool:
    """Equality of plain values and their types: 1, 1.0 and True differ at any depth, and NaN equals nothing.

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
    """A hashable value with its types, so that equal values of different types differ."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_typed, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_typed, value))
    return type(value), value


def share_correct(values: list[Any], expected: list[Any]) -> float:
    """Share of the expected values that were computed, in order, in [0, 1]; 0 if the number of values differs."""
    if len(values) != len(expected) or not expected:
        return 0.0
    return sum(map(same_value, values, expected)) / len(expected)
