"""Whatever a policy writes, judging it takes time that grows with its length and no faster.

Ten times the text may take forty times as long; quadratic work takes a hundred times. Only ratios are compared, and of
processor time.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from envs.adapters.reasoning_gym import is_harmless
from envs.chat.appointment import Appointment
from envs.chat.instructions import instructions
from envs.chat.structured import structured
from envs.messages import Reply, ToolCall
from envs.tool_class import ToolClassEnv, run_now
from rewards.abstention import abstention_reward
from rewards.constraints import CHECKS as CONSTRAINTS
from rewards.constraints import Constraint, follows
from rewards.ifeval import LETTER
from rewards.instructions import CHECKS, Instruction, follows_loosely, follows_strictly
from rewards.judge import (
    JudgeError,
    fenced,
    read_comparison,
    read_rubric_verdict,
    rubric_question,
    says_something,
)
from rewards.language import is_written_in
from rewards.safety import guard_text
from rewards.schema import MAX_CHARACTERS, schema_scores
from rewards.strict_json import is_json, read_json
from rewards.words import count_word, sentences_of, words_of

pytestmark = pytest.mark.slow
HOSTILE = (
    *("!", "[", "{", "<", ">", "(", " ", "\n", "\t", "\0", "a ", "a\n", '"', "'", "*", "**", "&", "#", "`", "-", "_"),
    *("1", "1.", ". ", "a. ", "..a", "...", "No. ", "J. ", '."', "!' ", "P.", "p .", "\n ", "\n\n", " \n", "***"),
    *("* ", "\n*", "\n- ", "- ", "<<", "<< ", ">>", "<a>", "&lt;", "[a", "[]", "[,", "{a: ", '{"a":', "a: ", "? "),
    *("&a ", "*a ", "1:", "\\", "|", "```", "```\n", "a'", "a\u2019", "\u2019", "\u0301", "\u0301\u0316", "e\u0301"),
    *("\u200d", "\u093f", "\u0939\u093f", "\u3002", "\u0964", "\u300d", "\u6f22", "\u3042", "\u0e01", "\u0444"),
    *("\ud800", "\U0001f600", "sun ", "Part 1 "),
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "keywords:existence": {"keywords": ["sun", "C++", "New York", "!"]},
    "keywords:frequency": {"keyword": "a a", "frequency": 2, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["sun", "don't", "*"]},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 3, "relation": "at least"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "sea"},
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "detectable_format:multiple_sections": {"section_spliter": "Part", "num_sections": 2},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say it."},
    "startend:end_checker": {"end_phrase": "The end."},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
}
VALUES: dict[str, Any] = {
    "words": 3,
    "lines": 3,
    "use": "a",
    "avoid": "a",
    "start": "a",
    "end": "a",
    "order": ("a", "b"),
}
ANY = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
XML = {"type": "object", "properties": {"a": {"type": "number"}}}


class Tools:
    """Two tools."""

    def reset(self, rng: Any, split: str) -> str:
        return "Go."

    def take(self, numbers: list[int], name: str = "") -> str:
        return f"{len(numbers)} {len(name)}"

    def score(self, reply: Reply) -> float:
        return 0.0


def call_tool(text: str) -> None:
    env = ToolClassEnv(Tools)
    for arguments in ({"numbers": list(text[: len(text) // 4]), "name": text}, {text: 1}, {"numbers": text}):
        assert len(run_now(env.call(ToolCall("take", arguments)))) < 2_000


def step(env: Any) -> Callable[[str], Any]:
    env.reset(seed=0)
    return lambda text: env.step(Reply(text))


def quietly(function: Callable[..., Any], *arguments: Any) -> Callable[[str], None]:
    def run(text: str) -> None:
        with contextlib.suppress(ValueError, JudgeError):
            function(text, *arguments)

    return run


def strictly(name: str, reading: Any) -> Callable[[str], bool]:
    return lambda text: follows_strictly(text, Instruction(name, ARGUMENTS.get(name, {})), reading)


READERS: dict[str, Callable[[str], Any]] = {
    **{name: strictly(name, "sense") for name in CHECKS},
    **{f"{name} by the letter": strictly(name, "ifeval") for name in LETTER},
    "loosely": lambda text: follows_loosely(text, Instruction("startend:quotation")),
    **{
        f"constraint {kind}": (lambda text, kind=kind: follows(text, Constraint(kind, VALUES.get(kind))))
        for kind in CONSTRAINTS
    },
    "words": words_of,
    "sentences": sentences_of,
    "a word": lambda text: count_word(text, "a b"),
    "language": lambda text: is_written_in(text, "en"),
    "JSON": quietly(read_json),
    "whether JSON": is_json,
    "abstention": lambda text: abstention_reward(text, 0.0),
    "says something": says_something,
    "fenced": fenced,
    "rubric question": lambda text: rubric_question(text, text, {"a": "b"}),
    "rubric verdict": quietly(read_rubric_verdict, ["a"]),
    "comparison": quietly(read_comparison),
    "tool call": call_tool,
    "guard's text": guard_text,
    "reasoning-gym answer": lambda text: is_harmless("n_queens", text),
    "appointment": step(Appointment()),
    "instructions": step(instructions()),
    "structured": step(structured()),
}
DATA: dict[str, Callable[[str], Any]] = {
    **{
        surface: (lambda text, surface=surface: schema_scores(text, ANY, surface))
        for surface in ("json", "yaml", "xml")
    },
    "fenced json": lambda text: schema_scores(f"```json\n{text}", ANY),
    "json string": lambda text: schema_scores(f'{{"a": "{text}"}}', ANY),
    "json array": lambda text: schema_scores(f'{{"a": [{text}]}}', ANY),
    "yaml value": lambda text: schema_scores(f"a: {text}", ANY, "yaml"),
    "yaml flow": lambda text: schema_scores(f"a: [{text}]", ANY, "yaml"),
    "xml element": lambda text: schema_scores(f"<r><a>{text}</a></r>", XML, "xml"),
    "xml attributes": lambda text: schema_scores(f"<r {text}/>", XML, "xml"),
}
FLOOR_S = 0.002
"""Below this a time is noise."""
MAX_GROWTH = 40


def seconds(read: Callable[[str], Any], text: str) -> float:
    """Of this thread's own work, whatever else the machine does."""
    begun_s = time.thread_time()
    read(text)
    return time.thread_time() - begun_s


def growth(read: Callable[[str], Any], short: str, long: str) -> float:
    """How many times longer the long text takes, by the best of some tries."""
    long_s, short_s = seconds(read, long), FLOOR_S
    for _ in range(4):
        if long_s <= MAX_GROWTH * short_s:
            break
        short_s = max(FLOOR_S, min(seconds(read, short) for _ in range(3)))
        long_s = min(long_s, seconds(read, long))
    return long_s / short_s


def grown(read: Callable[[str], Any], length: int) -> dict[str, float]:
    """By what is repeated, the growth from a tenth of the length to all of it, where it is too much."""
    found = {}
    for part in HOSTILE:
        short, long = ((part * size)[: size - 1] + "a" for size in (length // 10, length))
        if (ratio := growth(read, short, long)) > MAX_GROWTH:
            found[part] = ratio
    return found


@pytest.mark.parametrize("name", READERS)
def test_ten_times_the_text_takes_about_ten_times_as_long(name: str) -> None:
    READERS[name]("a b c")  # what is loaded once is loaded
    assert grown(READERS[name], 100_000) == {}


@pytest.mark.parametrize("name", DATA)
def test_data_up_to_its_bound_takes_about_ten_times_as_long_for_ten_times_the_text(name: str) -> None:
    assert grown(DATA[name], MAX_CHARACTERS - 100) == {}


def test_items_that_are_objects_are_compared_in_linear_time() -> None:
    few, many = ('{"a": [' + ",".join(f'{{"{n}":{n}}}' for n in range(size)) + "]}" for size in (150, 1500))
    assert schema_scores(many, ANY)["valid"] == 1.0
    assert growth(lambda text: schema_scores(text, ANY), few, many) < MAX_GROWTH
