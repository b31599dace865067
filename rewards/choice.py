"""Which option of a multiple-choice question did the reply choose?

The choice is searched for in this order:

1. The last `\\boxed{...}` whose content begins with a letter, such as `\\boxed{B}` or `\\boxed{B. 42}`.
2. The last line with a statement: `Answer: B`, `the answer is (B)`, `the correct option is B`, `I choose B`,
   otherwise `B is correct`.
3. The only option that is named, such as `So option B`. If there is a statement, a mention before it such as `Option A
   is too low` is ignored.
4. A last line that is a single letter or begins with one, such as `(B)` or `B) Paris`, if the reply does not list the
   options.

Markup around a letter is ignored. Several letters (`Answer: A, B`) are not a choice, nor is a letter that no option
has. Letters must be capitals: `a` is a word.
"""

import re

from rewards.final_answer import last_boxed

MARKUP = re.compile(r"\\[A-Za-z]+[ \t]?\{|\\[()\[\],;! ]|\\[A-Za-z]+|[{}$*`_~]|</?answer>")
SPACES = re.compile(r"[ \t\u00a0]+")
LETTER = r"[(\[<\"'“]?([A-Z])(?![A-Za-z0-9]|['\u2019][a-z])[)\]>\"'”]?"
STATED = re.compile(
    r"(?:(?i:\b(?:answer|choice|option|letter|solution)s? ?(?:choice|option|letter)? ?"
    r"(?:is|are|would be|must be|should be|:|=|-))"
    r"|(?i:\b(?:choose|pick|select|go with|going with|opt for)))"
    r"\s?:?\s?(?i:(?:the )?(?:(?:option|choice|letter|answer|definitely|clearly|therefore|indeed|thus) ?){0,2}:?\s?)"
    + LETTER
)
CALLED_RIGHT = re.compile(
    r"\b" + LETTER + r" (?:is|seems|must be) (?i:(?:definitely|clearly|therefore|thus|indeed) )?"
    r"(?i:(?:the )?(?:only )?(?:correct|right|best|answer)\b)"
)
NAMED = re.compile(r"(?i:\b(?:answer|option|choice|letter)) ?" + LETTER)
FIRST = re.compile(LETTER + r"(?:\Z|[.:,;)/&+]|(?= ?(?:,|/|&|\+|-|–|and\b|or\b)))")  # noqa: RUF001
ANOTHER = re.compile(
    r"(?: ?(?:,? ?(?:and|or)\b|[,;/&+]) ?| - |[ .](?=\W?[A-Z]\W?(?:\W|\Z)))"
    + LETTER
    + r"(?! (?:is|was|has|would|does|can|cannot|fails|seems)\b)"
)
PRONOUN = re.compile(r" [a-z]|['\u2019]")


def chosen_letter(text: str, letters: str) -> str | None:
    """The letter that the text chooses, or None if it chooses none or several.

    `letters` are the letters of the options, such as `ABCD`.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        stated = _letters_of_box(plain(boxed), letters)
        if stated:
            return _only(stated, letters)
    text = plain(text)
    for pattern in (STATED, CALLED_RIGHT):
        if by_line := _stated_by_line(text, pattern):
            return _only(by_line[max(by_line)], letters)
    if by_line := _stated_by_line(text, NAMED):
        return _only(set().union(*by_line.values()), letters)
    return _only(_letters_of_last_line(text), letters)


def choice_correct(text: str, letter: str, letters: str = "ABCD") -> float:
    """1.0 if the text chooses `letter`, else 0.0."""
    return float(chosen_letter(text, letters) == letter)


def plain(text: str) -> str:
    """The text without Markdown and LaTeX markup, with single blanks."""
    return re.sub(r" ?\n\s*", "\n", SPACES.sub(" ", MARKUP.sub("", text))).strip()


def _only(stated: set[str], letters: str) -> str | None:
    return next(iter(stated)) if len(stated) == 1 and stated <= set(letters) else None


def _stated_by_line(text: str, pattern: re.Pattern[str]) -> dict[int, set[str]]:
    """The letters stated in each line, by the position at which the line begins."""
    by_line: dict[int, set[str]] = {}
    begin, place = 0, 0
    for found in pattern.finditer(text):
        if found[1] == "I" and PRONOUN.match(text, found.end()):
            continue
        if (last := text.rfind("\n", place, found.start(1))) >= 0:
            begin = last + 1
        place = found.start(1)
        by_line.setdefault(begin, set()).update(found[1], _others(text, found.end()))
    return by_line


def _others(text: str, place: int) -> set[str]:
    """Letters that follow a stated letter as further answers."""
    others: set[str] = set()
    while found := ANOTHER.match(text, place):
        others.add(found[1])
        place = found.end()
    return others


def _letters_of_box(content: str, letters: str) -> set[str]:
    if len(content) > 1 and set(content) <= set(letters):
        return set(content)
    found = FIRST.match(content)
    return {found[1], *_others(content, found.end(1)), *_others(content, found.end())} if found else set()


def _letters_of_last_line(text: str) -> set[str]:
    lines = [line for line in text.split("\n") if line]
    found = FIRST.match(lines[-1]) if lines else None
    if found is None or (found[1] == "I" and PRONOUN.match(lines[-1], found.end())):
        return set()
    alone = not lines[-1][found.end() :].strip(" .:)]")
    first = {line[1] for line in map(FIRST.match, lines) if line}
    if not alone and len(first) > 1:  # a list of the options
        return set()
    return {found[1], *_others(lines[-1], found.end(1)), *_others(lines[-1], found.end())}
