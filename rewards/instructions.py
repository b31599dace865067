"""Does a text follow an instruction about its form? The 25 verifiable instructions of IFEval, under their ids.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911, table 1. A
text follows *strictly* as it is; *loosely* when it, or it without its first line, its last line, both, or asterisks,
does. Sentences are told apart by their end marks and languages by their commonest words, without a library.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Relation = Literal["at least", "less than"]
WORD = re.compile(r"\b\w+(?:['\u2019]\w+)*\b")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
ABBREVIATIONS = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|etc|e\.g|i\.e|vs|No)\.", re.IGNORECASE)
PARAGRAPHS = re.compile(r"\s?\*\*\*\s?")
COMMON_WORDS = {
    "en": "the and of to in is that it was for on are with as this",
    "de": "der die und das ist nicht ein eine zu den mit auf sich von es",
    "fr": "le la les et des est un une dans que pour pas sur qui du",
    "es": "el la los las y de que en un una es por con para no",
    "it": "il la che di e un una per non sono con del della è gli",
    "pt": "o a os as e de que em um uma não para com do da",
}
SCRIPTS = {
    "ru": r"[\u0400-\u04ff]",
    "el": r"[\u0370-\u03ff]",
    "ar": r"[\u0600-\u06ff]",
    "hi": r"[\u0900-\u097f]",
    "th": r"[\u0e00-\u0e7f]",
    "ko": r"[\uac00-\ud7af]",
    "ja": r"[\u3040-\u30ff]",
    "zh": r"[\u4e00-\u9fff]",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its IFEval id and its arguments under IFEval's names."""

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def follows_strictly(text: str, instruction: Instruction) -> bool:
    """Whether the text as it is follows. An empty text follows nothing. Raises `ValueError` for an unknown id."""
    if instruction.id not in CHECKS:
        raise ValueError(f"no instruction {instruction.id!r}; ids: {', '.join(CHECKS)}")
    return bool(text.strip()) and bool(CHECKS[instruction.id](text, **instruction.arguments))


def follows_loosely(text: str, instruction: Instruction) -> bool:
    """Whether the text follows in one of the eight variants in which a preface, a close or markup is taken off."""
    lines = text.split("\n")
    variants = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = ["\n".join(variant).strip() for variant in variants]
    return any(follows_strictly(each, instruction) for each in (*texts, *(each.replace("*", "") for each in texts)))


def compare(number: int, relation: Relation, bound: int) -> bool:
    return number >= bound if relation == "at least" else number < bound


def words_of(text: str) -> list[str]:
    return WORD.findall(text)


def sentences_of(text: str) -> list[str]:
    marked = ABBREVIATIONS.sub(lambda short: short[0].replace(".", "\0"), text)
    return [sentence for sentence in SENTENCE_END.split(marked) if WORD.search(sentence)]


def count_keyword(text: str, keyword: str) -> int:
    return len(re.findall(rf"\b{re.escape(keyword)}\b", text, re.IGNORECASE))


def language_of(text: str) -> str:
    """The language whose script or commonest words the text has most of; `en` where nothing speaks for another."""
    letters = sum(character.isalpha() for character in text) or 1
    for language, script in SCRIPTS.items():
        if len(re.findall(script, text)) > letters / 3:
            return language
    found = words_of(text.lower())
    shares = {language: sum(word in common.split() for word in found) for language, common in COMMON_WORDS.items()}
    return max(shares, key=lambda language: shares[language])


def existence(text: str, keywords: Sequence[str]) -> bool:
    return all(count_keyword(text, keyword) for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    return compare(count_keyword(text, keyword), relation, frequency)


def forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(count_keyword(text, word) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def num_sentences_is(text: str, num_sentences: int, relation: Relation) -> bool:
    return compare(len(sentences_of(text)), relation, num_sentences)


def num_words_is(text: str, num_words: int, relation: Relation) -> bool:
    return compare(len(words_of(text)), relation, num_words)


def num_paragraphs_is(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by `***`; an empty one may only stand first or last."""
    parts = PARAGRAPHS.split(text)
    inner = [part.strip() for part in parts[1:-1]]
    return all(inner) and sum(bool(part.strip()) for part in parts) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by blank lines here; words are compared without case and marks."""
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    return words_of(paragraphs[nth_paragraph - 1].lower())[:1] == [first_word.lower()]


def num_placeholders_is(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def has_postscript(text: str, postscript_marker: str) -> bool:
    pattern = r"\s*".join(re.escape(letter) for letter in postscript_marker)
    return re.search(rf"^\s*{pattern}.*\S", text, re.IGNORECASE | re.MULTILINE) is not None


def num_bullets_is(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*]|-).*$", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def num_highlights_is(text: str, num_highlights: int) -> bool:
    marked = re.findall(r"\*\*[^\n*]+\*\*|(?<!\*)\*[^\n*]+\*(?!\*)", text)
    return sum(bool(part.strip("* ")) for part in marked) >= num_highlights


def num_sections_is(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def is_json(text: str) -> bool:
    body = re.sub(r"^```(?:json|JSON)?\s*|\s*```$", "", text.strip())
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str) -> bool:
    return any(title.strip(" <>") for title in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two different texts, divided by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    inner = [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def is_quoted(text: str) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def capital_words(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    return compare(sum(word.isupper() for word in words_of(text)), capital_relation, capital_frequency)


def all_capitals(text: str) -> bool:
    return text.isupper() and language_of(text) == "en"


def all_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": lambda text, language: language_of(text) == language,
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
    "detectable_format:json_format": is_json,
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
