"""How is each of IFEval's instructions drawn, stated, and followed by a text? One function per instruction."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

KEYWORDS = ("river", "music", "window", "paper", "silver", "morning", "stone", "bridge")
LETTERS = "zqxjk"
POSTSCRIPTS = ("P.S.", "P.P.S")
ENDINGS = ("Is there anything else I can help with?", "Any other questions?")
DE = "Das ist ein kurzer Text und er ist nicht lang. Es ist die Zeit mit dem Wind auf der See."
FR = "Le texte est court et il est dans la langue de la ville. Les gens sont sur la place pour un temps."
LANGUAGES = {"de": ("German", DE), "fr": ("French", FR)}

Draw = tuple[dict[str, Any], str, Callable[[str], str]]
"""Arguments of an instruction, the sentence that states it, and a function that changes a text to follow it."""


def sentence_of(words: str) -> str:
    return words[0].upper() + words[1:]


def draw_existence(rng: np.random.Generator, prompt: str) -> Draw:
    words = [str(word) for word in rng.choice(KEYWORDS, size=2, replace=False)]
    told = f"Include the words {words[0]} and {words[1]}."
    return {"keywords": words}, told, lambda text: f"{text} The {words[0]} and the {words[1]} are part of it."


def draw_frequency(rng: np.random.Generator, prompt: str) -> Draw:
    word, number = str(rng.choice(KEYWORDS)), int(rng.integers(2, 5))
    told = f"Use the word {word} at least {number} times."
    added = " ".join([f"There is a {word}."] * number)
    return {"keyword": word, "frequency": number, "relation": "at least"}, told, lambda text: f"{text} {added}"


def draw_forbidden(rng: np.random.Generator, prompt: str) -> Draw:
    words = [str(word) for word in rng.choice(KEYWORDS, size=2, replace=False)]
    return {"forbidden_words": words}, f"Do not use the words {words[0]} and {words[1]}.", lambda text: text


def draw_letters(rng: np.random.Generator, prompt: str) -> Draw:
    letter, number = str(rng.choice(list(LETTERS))), int(rng.integers(2, 6))
    arguments = {"letter": letter, "let_frequency": number, "let_relation": "at least"}
    return arguments, f"Use the letter {letter} at least {number} times.", lambda text: f"{text} {letter * number}."


def draw_language(rng: np.random.Generator, prompt: str) -> Draw:
    language = str(rng.choice(list(LANGUAGES)))
    name, text_in_it = LANGUAGES[language]
    return {"language": language}, f"Write in {name}; no other language is allowed.", lambda text: text_in_it


def draw_num_sentences(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(2, 8))
    if rng.random() < 0.5:
        told = f"Write at least {number} sentences."
        added = " ".join(["It goes on."] * number)
        return {"num_sentences": number, "relation": "at least"}, told, lambda text: f"{text} {added}"
    told = f"Write fewer than {number} sentences."
    return {"num_sentences": number, "relation": "less than"}, told, lambda text: text.split(". ")[0].rstrip(".") + "."


def draw_num_words(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(15, 40))
    if rng.random() < 0.5:
        added = " ".join(["It is so and will be so."] * (number // 6 + 1))
        arguments = {"num_words": number, "relation": "at least"}
        return arguments, f"Answer with at least {number} words.", lambda text: f"{text} {added}"
    return {"num_words": number, "relation": "less than"}, f"Answer with less than {number} words.", lambda text: text


def draw_paragraphs(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(2, 5))
    told = f"Write {number} paragraphs, divided by the markdown divider: ***"
    added = "".join(f"\n***\nPart {place} is short." for place in range(2, number + 1))
    return {"num_paragraphs": number}, told, lambda text: text + added


def draw_first_word(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(2, 5))
    nth, word = int(rng.integers(1, number + 1)), str(rng.choice(KEYWORDS))
    told = f"Write {number} paragraphs with two line breaks between them; paragraph {nth} starts with the word {word}."

    def follow(text: str) -> str:
        paragraphs = [text, *(f"Part {place} is short." for place in range(2, number + 1))]
        paragraphs[nth - 1] = f"{sentence_of(word)} is a word. {paragraphs[nth - 1]}"
        return "\n\n".join(paragraphs)

    return {"num_paragraphs": number, "nth_paragraph": nth, "first_word": word}, told, follow


def draw_placeholders(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(1, 4))
    told = f"Use at least {number} placeholders in square brackets, such as [address]."
    added = " ".join(f"Ask [name {place}]." for place in range(1, number + 1))
    return {"num_placeholders": number}, told, lambda text: f"{text} {added}"


def draw_postscript(rng: np.random.Generator, prompt: str) -> Draw:
    marker = str(rng.choice(POSTSCRIPTS))
    told = f"At the end add a postscript that starts with {marker}"
    return {"postscript_marker": marker}, told, lambda text: f"{text}\n{marker} one more thing."


def draw_bullets(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(2, 6))
    told = f"Have exactly {number} bullet points, such as: * a point"
    added = "".join(f"\n* point {place}" for place in range(1, number + 1))
    return {"num_bullets": number}, told, lambda text: text + added


def draw_constrained(rng: np.random.Generator, prompt: str) -> Draw:
    told = "Answer with one of: My answer is yes. / My answer is no. / My answer is maybe."
    return {}, told, lambda text: "My answer is maybe."


def draw_highlights(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(1, 4))
    told = f"Highlight at least {number} parts with markdown, such as *highlighted part*."
    added = " ".join(f"*part {place}*" for place in range(1, number + 1))
    return {"num_highlights": number}, told, lambda text: f"{text} {added}"


def draw_sections(rng: np.random.Generator, prompt: str) -> Draw:
    number, name = int(rng.integers(2, 5)), str(rng.choice(["Section", "Part", "Day"]))
    told = f"Have {number} sections, each beginning with {name} and its number."
    added = "".join(f"\n{name} {place}\nThis is it." for place in range(1, number + 1))
    return {"section_spliter": name, "num_sections": number}, told, lambda text: text + added


def draw_json(rng: np.random.Generator, prompt: str) -> Draw:
    return {}, "Give the whole output in JSON.", lambda text: json.dumps({"text": text})


def draw_title(rng: np.random.Generator, prompt: str) -> Draw:
    return {}, "Give it a title in double angular brackets, such as <<title>>.", lambda text: f"<<A title>>\n{text}"


def draw_two(rng: np.random.Generator, prompt: str) -> Draw:
    told = "Give two different responses, divided by 6 asterisks: ******"
    return {}, told, lambda text: f"{text}\n******\nOr so."


def draw_repeat(rng: np.random.Generator, prompt: str) -> Draw:
    told = "First repeat the first sentence of this request word for word, then answer."
    return {"prompt_to_repeat": prompt}, told, lambda text: f"{prompt} {text}"


def draw_ending(rng: np.random.Generator, prompt: str) -> Draw:
    ending = str(rng.choice(ENDINGS))
    return {"end_phrase": ending}, f"Finish with exactly this phrase: {ending}", lambda text: f"{text}\n{ending}"


def draw_quotation(rng: np.random.Generator, prompt: str) -> Draw:
    return {}, "Wrap the whole response in double quotation marks.", lambda text: f'"{text}"'


def draw_capital_words(rng: np.random.Generator, prompt: str) -> Draw:
    number = int(rng.integers(2, 5))
    arguments = {"capital_frequency": number, "capital_relation": "at least"}
    told = f"Have at least {number} words in capital letters."
    return arguments, told, lambda text: f"{text} {' '.join(['YES'] * number)}."


def draw_capitals(rng: np.random.Generator, prompt: str) -> Draw:
    return {}, "Write in English and in capital letters only.", str.upper


def draw_lowercase(rng: np.random.Generator, prompt: str) -> Draw:
    return {}, "Write in English and in lowercase letters only.", str.lower


def draw_no_comma(rng: np.random.Generator, prompt: str) -> Draw:
    return {}, "Use no commas.", lambda text: text.replace(",", "")


DRAWS: dict[str, Callable[[np.random.Generator, str], Draw]] = {
    "detectable_format:constrained_response": draw_constrained,
    "language:response_language": draw_language,
    "length_constraints:number_sentences": draw_num_sentences,
    "keywords:existence": draw_existence,
    "keywords:frequency": draw_frequency,
    "keywords:forbidden_words": draw_forbidden,
    "keywords:letter_frequency": draw_letters,
    "detectable_content:number_placeholders": draw_placeholders,
    "detectable_format:number_highlighted_sections": draw_highlights,
    "change_case:capital_word_frequency": draw_capital_words,
    "length_constraints:number_words": draw_num_words,
    "length_constraints:nth_paragraph_first_word": draw_first_word,
    "detectable_format:number_bullet_lists": draw_bullets,
    "detectable_format:multiple_sections": draw_sections,
    "length_constraints:number_paragraphs": draw_paragraphs,
    "combination:two_responses": draw_two,
    "detectable_format:title": draw_title,
    "combination:repeat_prompt": draw_repeat,
    "detectable_content:postscript": draw_postscript,
    "startend:end_checker": draw_ending,
    "punctuation:no_comma": draw_no_comma,
    "change_case:english_capital": draw_capitals,
    "change_case:english_lowercase": draw_lowercase,
    "detectable_format:json_format": draw_json,
    "startend:quotation": draw_quotation,
}
"""In the order in which a text is changed to follow them: first those that add words, last those that wrap the text."""
