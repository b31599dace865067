"""Does a text follow an instruction about its form? The 25 verifiable instructions of IFEval, by their ids.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911, table 1. A
text follows *strictly* if it follows as it is, and *loosely* if it follows as it is or without its first line, its last
line, both, or asterisks. There are two readings of an instruction. `sense`, the default, is what a person means by it:
keywords are whole words, signs included; quotes may follow a sentence's final mark; a postscript contains words.
`ifeval` is the literal check of IFEval's code where that differs (`rewards.ifeval`); use it to compare with published
figures. In both readings, languages are those of `rewards.language`, sentences those of `rewards.words`, and the "1."
of a list is a sentence, as in IFEval. Time is linear in the length of the text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.ifeval import LETTER, Relation, compare, json_body
from rewards.language import is_written_in
from rewards.strict_json import is_json
from rewards.words import WORD, count_word, plain, sentences_of, words_of

Reading = Literal["sense", "ifeval"]
PARAGRAPHS = re.compile(r"\s?\*\*\*\s?")
BLANK_LINES = re.compile(r"\n[^\S\n]*+\n\s*+")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]*+\]")
BULLETS = (re.compile(r"^[^\S\n]*+\*[^*].*$", re.MULTILINE), re.compile(r"^[^\S\n]*+-.*$", re.MULTILINE))
HIGHLIGHT = re.compile(r"\*\*[^\n*]++\*\*|(?<!\*)\*[^\n*]++\*(?!\*)")
TIMES = re.compile(r"(?<=[\d)])[ \t]?\*{1,2}[ \t]?(?=[\d(])|(?<=[ \t])\*{1,2}(?=[ \t])")
"""Asterisks that mean multiplication: between numbers or brackets, or between blanks."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its IFEval id and its arguments under IFEval's names."""

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def follows_strictly(text: str, instruction: Instruction, reading: Reading = "sense") -> bool:
    """Whether the text follows as it is. An empty text follows no instruction.

    Raises `ValueError` for an unknown id, and for a language that cannot be recognised.
    """
    if instruction.id not in CHECKS:
        raise ValueError(f"no instruction {instruction.id!r}; ids: {', '.join(CHECKS)}")
    letter = LETTER.get(instruction.id) if reading == "ifeval" else None
    return bool(text.strip()) and bool((letter or CHECKS[instruction.id])(text, **instruction.arguments))


def follows_loosely(text: str, instruction: Instruction, reading: Reading = "sense") -> bool:
    """Whether the text follows in one of the eight variants that remove a preface, a closing line or markup."""
    lines = text.split("\n")
    variants = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = ["\n".join(variant).strip() for variant in variants]
    texts += [each.replace("*", "") for each in texts]
    return any(follows_strictly(each, instruction, reading) for each in texts)


def existence(text: str, keywords: Sequence[str]) -> bool:
    return all(count_word(text, keyword) for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    return compare(count_word(text, keyword), relation, frequency)


def forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(count_word(text, word) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return compare(plain(text).lower().count(plain(letter).lower()), let_relation, let_frequency)


def num_sentences_is(text: str, num_sentences: int, relation: Relation) -> bool:
    return compare(len(sentences_of(text)), relation, num_sentences)


def num_words_is(text: str, num_words: int, relation: Relation) -> bool:
    return compare(len(words_of(text)), relation, num_words)


def num_paragraphs_is(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are separated by `***`; only the first and the last may be empty."""
    parts = PARAGRAPHS.split(text)
    inner = [part.strip() for part in parts[1:-1]]
    return all(inner) and sum(bool(part.strip()) for part in parts) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are separated by blank lines here; words are compared without case and marks."""
    paragraphs = [paragraph for paragraph in BLANK_LINES.split(text) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = WORD.search(plain(paragraphs[nth_paragraph - 1]))
    return word is not None and word[0].lower() == plain(first_word).lower()


def num_placeholders_is(text: str, num_placeholders: int) -> bool:
    return len(PLACEHOLDER.findall(text)) >= num_placeholders


def has_postscript(text: str, postscript_marker: str) -> bool:
    """The marker occurs, in any case and not inside a word, and words follow it."""
    pattern = r"\s?".join(re.escape(letter) for letter in postscript_marker)
    marker = re.search(rf"(?<!\w){pattern}", text, re.IGNORECASE)
    return marker is not None and WORD.search(text, marker.end()) is not None


def num_bullets_is(text: str, num_bullets: int) -> bool:
    return sum(len(bullet.findall(text)) for bullet in BULLETS) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def num_highlights_is(text: str, num_highlights: int) -> bool:
    marked = HIGHLIGHT.findall(TIMES.sub("\u00d7", text))
    return sum(bool(part.strip("* ")) for part in marked) >= num_highlights


def num_sections_is(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def has_title(text: str) -> bool:
    lines = [line for line in text.split("\n") if "<<" in line and ">>" in line]
    return any(line[line.find("<<") : line.rfind(">>")].strip(" <>") for line in lines)


def two_responses(text: str) -> bool:
    """Two different texts, separated by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    inner = [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return plain(text).strip().lower().startswith(plain(prompt_to_repeat).strip().lower())


def ends_with(text: str, end_phrase: str) -> bool:
    return plain(text).strip().strip('"').lower().endswith(plain(end_phrase).strip().lower())


def is_quoted(text: str) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def capital_words(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    return compare(sum(word.isupper() for word in words_of(text)), capital_relation, capital_frequency)


def all_capitals(text: str) -> bool:
    return text.isupper() and is_written_in(text, "en")


def all_lowercase(text: str) -> bool:
    return text.islower() and is_written_in(text, "en")


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": is_written_in,
    "length_constraints:number_sentences": num_sentences_is,
    "length_constraints:number_paragraphs": num_paragraphs_is,
    "length_constraints:number_words": num_words_is,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": num_placeholders_is,
    "detectable_content:postscript": has_postscript,
    "detectable_format:number_bullet_lists": num_bullets_is,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": num_highlights_is,
    "detectable_format:multiple_sections": num_sections_is,
    "detectable_format:json_format": lambda text: is_json(json_body(text)),
    "detectable_format:title": has_title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": ends_with,
    "startend:quotation": is_quoted,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": all_capitals,
    "change_case:english_lowercase": all_lowercase,
    "punctuation:no_comma": lambda text: "," not in text,
}
