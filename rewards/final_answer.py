"""Which part of a worked answer states the result?

The result is searched for in this order:

1. The last line `#### ...` (the format of GSM8K, Cobbe et al. 2021, arXiv:2110.14168) that begins with a value. A line
   that begins with a word is as likely a Markdown heading: it counts after the boxes, if it holds a number.
2. The last `\\boxed{...}` or `\\fbox{...}` that is closed and not empty; of nested boxes the outermost. Adjacent boxes,
   with only a comma, "and" or "or" between them, are one list, so that two answers do not count as one of them. Earlier
   boxes are steps: a policy that revises its answer boxes it again. Math-Verify also joins boxes across words, which
   makes a list of a step and the result. A box that is cut off by the end of the text counts if no other is closed.
3. The last value in the text: mathematics between dollar signs, `\\(...\\)` or `\\[...\\]`, or a run of numbers. A run
   is never cut: `1/3`, `2^10`, `3:4`, `5-10`, `2, 3`, `3 out of 4`, `2x + 1` and `sqrt(2)` are each one run, and
   never just its last number. An equals sign separates runs: the value is what follows the last one.

Every search reads the text once. The last value is searched for in the last 8,000 characters.
"""

import re

from rewards.latex import plain_signs

MARKED_LINE = re.compile(r"^[ \t]*####(?!#)(.*)$", re.MULTILINE)
WORD_FIRST = re.compile(r"[^\\\w]*[A-Za-z]{2,}")
BOX_PARTS = re.compile(r"\\(?:boxed|fbox)\s*(\{)|\\(?:boxed|fbox)\s*(\d+)|\\.|[{}]", re.DOTALL)
BETWEEN_BOXES = re.compile(r"(?=[^{]*(?:[,;]|and|or))(?:[\s$,;&]|\\[,;()\[\] ]|\\text\{[ \t]*|\}|\bx=|\band\b|\bor\b)*")
MAX_BETWEEN_BOXES = 40

NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:[eE][-+]?\d+(?!\w))?|(?<![\w.])\.\d+(?:[eE][-+]?\d+(?!\w))?")
MAX_GAP = 24
MAX_TAIL = 8_000
LETTERS = r"[^\W\d_]"
COMMAND = r"\\(?!times|cdot|div|quad|left|right)[a-zA-Z]+(?:\{[^{}\n]{0,16}\})?"
AFTER = rf"(?:[)\]}}°]|\^\\circ|\^\{{\\circ\}}|{LETTERS}|{COMMAND})*(?:[ \t]?\\?%|[ \t]percent\b)?"
OPERATOR = (
    r"\*\*|[-+*/^×÷·±]|[<>≤≥]=?(?:[ \t]?[A-Za-z][ \t]?[<>≤≥]=?)?|\\times|\\cdot|\\div|\\pm|x(?=[ \t])"  # noqa: RUF001 - as people write them
    r"|,?[ \t](?:and|or)(?=[ \t])|(?:to|of|out of|times|plus|minus|divided by|over)(?=[ \t])|,(?=[ \t])|(?=[(\[{√\\])"
)
BEFORE = rf"(?:[-+±]|[A-Za-z]{{0,6}}[(\[{{]|√|\\[a-zA-Z]+\{{?|{LETTERS}|\$)*"
GAP = re.compile(rf"!*{AFTER}!*(?::| : |[ \t]?(?:{OPERATOR})[ \t]?{BEFORE})")
ATTACHED = re.compile(rf"{LETTERS}+|_\{{?|{LETTERS}*\^\{{?")
PREFIX = re.compile(
    r"(?:(?:(?<![\w)])[A-Za-z]|(?<![\w)])[A-Za-z]\^\{?\d\}?)[ \t]?[-+*/^][ \t]?)?"
    r"(?:(?<![\w)])[A-Za-z][ \t]?[<>≤≥]=?[ \t]?)?(?:\b(?:minus|negative)[ \t]|(?<![\w)])[-+±][ \t]?)?\$?"
    r"(?:\\[a-zA-Z]+\{|[A-Za-z]{0,6}(?:_\{?\d+\}?)?[(\[{]|√){0,4}[-+±]?\$?\Z"
)
SUFFIX = re.compile(rf"{AFTER}(?:[ \t]?[-+*/^][ \t]?[A-Za-z](?!\w))?")
BULLET = re.compile(r"^[ \t]*[-+*][ \t]", re.MULTILINE)
MATHEMATICS = re.compile(
    r"\$\$([^$]{1,400})\$\$|(?<![\\\w])\$([^$\n]{1,400})\$(?!\d)|\\\(([^\n]{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL
)
WORDS = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")


def final_answer(text: str) -> str:
    """The part that states the result, by the rules of the module's docstring; empty if there is none."""
    lines = [(found[1].strip(), found.end()) for found in MARKED_LINE.finditer(text)]
    for line, _ in reversed(lines):
        if line and not WORD_FIRST.match(line):
            return _within(line)
    if (boxed := last_boxed(text)) is not None:
        return boxed
    for line, end in reversed(lines):
        if line and (value := last_value(line)):
            return value
        if line:
            return last_value(text[end:]) or line  # text before a heading does not belong to it
    return last_value(text)


def _within(line: str) -> str:
    """The answer in a marked line: its box, or the whole line."""
    boxed = last_boxed(line)
    return line if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    """The content of the last box, or of the last adjacent boxes; None if there is none."""
    boxes, cut_off = _boxes(text)
    boxes = [box for box in boxes if box[2].strip()]
    if not boxes:
        return cut_off
    start, _, content = boxes[-1]
    contents = [content]
    for earlier_start, end, earlier in reversed(boxes[:-1]):
        if start - end > MAX_BETWEEN_BOXES or not BETWEEN_BOXES.fullmatch(text[end:start]):
            break
        start = earlier_start
        if earlier not in contents:
            contents.append(earlier)
    return ", ".join(reversed(contents))


def _boxes(text: str) -> tuple[list[tuple[int, int, str]], str | None]:
    """Start, end and content of each outermost closed box, and the content of a box that is never closed."""
    boxes: list[tuple[int, int, str]] = []
    braces: list[tuple[int, int] | None] = []  # of each open brace: where its box and its content begin
    num_open = 0
    for found in BOX_PARTS.finditer(text):
        if found[1] or found[0] == "{":
            braces.append((found.start(), found.end()) if found[1] else None)
            num_open += bool(found[1])
        elif found[2] and not num_open:
            boxes.append((found.start(), found.end(), found[2]))
        elif found[0] == "}" and braces and (opened := braces.pop()):
            num_open -= 1
            if not num_open:
                boxes.append((opened[0], found.end(), text[opened[1] : found.start()]))
    cut_off = next((text[opened[1] :] for opened in braces if opened), None)
    return boxes, cut_off


def last_value(text: str) -> str:
    """The last mathematics or run of numbers in the text; empty if there is none."""
    text = plain_signs(text[-MAX_TAIL:])
    end, value = -1, ""
    for found in MATHEMATICS.finditer(text):
        content = found[found.lastindex or 0]
        if re.search(r"[\d\\]", content) and not WORDS.search(content):
            content = content if "\\ne" in content else content.rpartition("=")[2]
            is_list = value and BETWEEN_BOXES.fullmatch(text[end : found.start()][:MAX_BETWEEN_BOXES])
            end, value = found.end(), f"{value}, {content}" if is_list else content
    numbers = list(NUMBER.finditer(text, max(end, 0)))
    runs = _runs(text, numbers)
    return _extended(text, *runs[-1]) if runs else value.strip()


def value_runs(text: str) -> list[str]:
    """All runs of numbers in a text without delimited mathematics."""
    return [_extended(text, *run) for run in _runs(text, list(NUMBER.finditer(text)))]


def _runs(text: str, numbers: list[re.Match[str]]) -> list[tuple[int, int]]:
    """Start and end of each run."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        start, end = number.span()
        if runs and _joined(text, runs[-1][1], start, end):
            runs[-1] = (runs[-1][0], end)
        elif not re.match(r"[^\W\d]", text[start - 1 : start]):  # `x1` is a name
            runs.append((start, end))
    return runs


def _joined(text: str, end: int, start: int, next_end: int) -> bool:
    """Whether two numbers are one value, judging by the text between them."""
    gap = text[end:start]
    if len(gap) > MAX_GAP or "\n" in gap:
        return False
    if gap.isspace():
        is_fraction = re.match(r"/[ \t]?\d", text[next_end : next_end + 3])  # 2 1/2
        is_thousands = next_end - start == 3 and re.search(r"(?<!\d)\d{1,3}\Z", text[max(0, end - 4) : end])
        return len(gap) == 1 and bool(is_fraction or is_thousands)
    return GAP.fullmatch(gap) is not None or ATTACHED.fullmatch(gap) is not None


def _extended(text: str, start: int, end: int) -> str:
    """A run with its sign, brackets, function and unit, without unmatched brackets."""
    before = text[max(0, start - MAX_GAP) : start]
    found = next((PREFIX.match(before, place) for place in range(len(before) + 1) if PREFIX.match(before, place)), None)
    prefix = before[found.start() :] if found else ""
    line_start = text.rfind("\n", max(0, start - MAX_GAP), start) + 1 or max(0, start - MAX_GAP)
    is_bullet = BULLET.fullmatch(text[line_start : start - len(prefix)] + prefix[:2])
    if is_bullet and len(BULLET.findall(text)) > 1:  # else it is a sign
        prefix = prefix[2:]
    prefix = re.sub(r"(?:minus|negative)[ \t]", "-", prefix)
    suffix = SUFFIX.match(text[end : end + MAX_GAP])
    return balanced(prefix + text[start:end] + (suffix[0] if suffix else "")).replace("$", "").strip()


def balanced(run: str) -> str:
    """The run without its unmatched brackets."""
    partners, opened, unmatched = {")": "(", "]": "[", "}": "{"}, [], set()
    for place, sign in enumerate(run):
        if sign in "([{":
            opened.append(place)
        elif sign in partners:
            if opened:
                opened.pop()
            else:
                unmatched.add(place)
    unmatched.update(opened)
    return "".join(sign for place, sign in enumerate(run) if place not in unmatched)
