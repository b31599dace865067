"""IFEval's instructions: each followed and broken by hand, strict and loose, and requests without conflict."""

from typing import Any

import numpy as np
import pytest

from envs.chat.instructions import DRAWS, draw_row, instructions
from envs.messages import Reply
from envs.text_env import EnvironmentOptionError
from rewards.instructions import CHECKS, Instruction, follows_loosely, follows_strictly
from tests.makers import scored_env

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["sun", "sea"]}, "Sea and SUN.", "sunny sea"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "at least"}, "sun, Sun", "sun suns"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "less than"}, "sun", "sun sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "sunny", "the Sun"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("language:response_language", {"language": "de"}, "Das ist die See und der Wind.", "This is the sea."),
    ("language:response_language", {"language": "ru"}, "Это море.", "Das ist das Meer."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two!", "One, two"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Mr. X came.", "One. Two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo", "one\n***\n\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "don't stop now", "don't stop"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "sea"},
        "one\n\n*Sea*, it is",
        "sea\n\none",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a] and b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text\np.s. more", "P.S.\n"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Text\nP. P. S more", "P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a\nPart 2",
        "Part 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>\ntext"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, "So. The END.", "The end. So."),
    ("startend:quotation", {}, '"text"', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A BC d", "A b"),
    ("change_case:english_capital", {}, "THE SEA", "The sea"),
    ("change_case:english_lowercase", {}, "the sea", "The sea"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_each_instruction_is_followed_or_not(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    instruction = Instruction(name, arguments)
    assert follows_strictly(good, instruction)
    assert not follows_strictly(bad, instruction)
    assert not follows_strictly(" \n", instruction)


def test_all_25_of_ifeval_are_checked_and_drawn() -> None:
    assert len(CHECKS) == 25
    assert {name for name, *_ in CASES} == set(CHECKS) == set(DRAWS)
    with pytest.raises(ValueError, match="no instruction 'rhyme'"):
        follows_strictly("x", Instruction("rhyme"))


def test_a_preface_and_markup_are_forgiven_loosely_only() -> None:
    title = Instruction("startend:quotation")
    assert not follows_strictly('Here it is:\n"text"', title)
    assert follows_loosely('Here it is:\n"text"', title)
    assert follows_loosely('**"text"**', title)
    assert follows_loosely('Sure!\n"text"\nDone.', title)
    assert not follows_loosely("text", title)


def test_every_request_has_a_gold_text_and_combinations_are_free_of_conflict() -> None:
    rng = np.random.default_rng(0)
    seen: set[frozenset[str]] = set()
    for _ in range(500):
        row = draw_row(rng, level=3)
        assert all(follows_strictly(row["gold"], each) for each in row["instructions"])
        seen.add(frozenset(each.id for each in row["instructions"]))
    assert frozenset({"change_case:english_capital", "change_case:english_lowercase"}) not in seen
    assert max(map(len, seen)) == 3
    assert set().union(*seen) == set(DRAWS)


def test_instructions_without_a_common_text_are_refused() -> None:
    ids = ["change_case:english_capital", "change_case:english_lowercase"]
    with pytest.raises(EnvironmentOptionError, match="no text follows 2 of these instructions at once"):
        draw_row(np.random.default_rng(1), level=3, ids=ids)
    with pytest.raises(EnvironmentOptionError, match="there is no instruction 'rhyme'"):
        draw_row(np.random.default_rng(0), ids=["rhyme"])


def test_the_share_that_is_followed_is_paid() -> None:
    env = scored_env(instructions)
    env.row = {
        "prompt": "Write.",
        "instructions": [Instruction("punctuation:no_comma"), Instruction("startend:quotation")],
        "strict": "sense",
    }
    assert env.step(Reply('"one two three four"'))[1] == 1.0
    assert env.step(Reply("one two three four"))[1] == pytest.approx(0.15)
    assert env.step(Reply('"{}"'))[1] == 0.0
    assert env.step(Reply('"Write. one two three four"'))[1] == 0.0


READINGS: list[tuple[str, dict[str, Any], str, bool, bool]] = [
    ("keywords:existence", {"keywords": ["cat"]}, "category", False, True),
    ("keywords:existence", {"keywords": ["C++"]}, "We use C++.", True, True),
    ("keywords:existence", {"keywords": ["don't"]}, "I don\u2019t", True, False),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "at least"}, "sunny sundays", False, True),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "less than"}, "sunny sundays", True, False),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "We use C++.", False, True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "category", True, True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A Cat.", False, False),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "don't stop", False, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "2 * 3 * 4", False, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "2*3*4 and (a) * (b) * c", False, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "x * y * z", False, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "2**3**4", False, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "It is *5*.", True, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "* an *a* and **b**", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Thanks. P.S. A coat.", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Thanks. P.S.\nA coat.", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Thanks.\nP.S.", False, True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Thanks.\nP.P.S. !", False, True),
    ("detectable_content:postscript", {"postscript_marker": "PS:"}, "maps: here", False, True),
    ("detectable_format:json_format", {}, '{"a": NaN}', False, True),
    ("detectable_format:json_format", {}, '[{"a": [-Infinity]}]', False, True),
    ("detectable_format:json_format", {}, '{"a": 1, "a": 2}', True, True),
    ("detectable_format:json_format", {}, "1" * 5000, True, False),
    ("detectable_format:json_format", {}, "[" * 100_000, False, False),
    ("detectable_format:json_format", {}, '```\n{"a": 1e999}\n```', True, True),
]


@pytest.mark.parametrize(("name", "arguments", "text", "sense", "letter"), READINGS)
def test_an_instruction_is_read_by_its_sense_or_by_the_letter(
    name: str, arguments: dict[str, Any], text: str, sense: bool, letter: bool
) -> None:
    assert follows_strictly(text, Instruction(name, arguments)) == sense
    assert follows_strictly(text, Instruction(name, arguments), "ifeval") == letter
    assert follows_loosely(text, Instruction(name, arguments), "ifeval") >= letter


def test_an_environment_reads_as_its_option_says() -> None:
    env = scored_env(instructions)
    env.reset(seed=0, options={"ids": ["keywords:existence"], "strict": "ifeval"})
    keywords = env.row["instructions"][0].arguments["keywords"]
    text = f"a text of {keywords[0]}s and {keywords[1]}s"
    assert env.step(Reply(text))[1] == 1.0
    assert env.step(env.gold_reply())[1] == 1.0
    env.reset(seed=0, options={"ids": ["keywords:existence"]})
    assert env.step(Reply(text))[1] == 0.0
    with pytest.raises(EnvironmentOptionError, match="strict must be one of sense, ifeval, got 'loose'"):
        draw_row(np.random.default_rng(0), strict="loose")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "arguments", "text", "followed"),
    [
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a [b] c] [d", False),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[[a]] [] x]", True),
        ("detectable_format:title", {}, "<<title>", False),
        ("detectable_format:title", {}, "a >> b << c", False),
        ("detectable_format:title", {}, "a <<b>> c", True),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "\n\n  * a\n\n\t- b\n**c**", True),
        ("startend:end_checker", {"end_phrase": "Isn't it?"}, "Good, isn\u2019t it?", True),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Don't stop."}, "Don\u2019t stop. I do not.", True),
    ],
)
def test_borders_of_single_instructions(name: str, arguments: dict[str, Any], text: str, followed: bool) -> None:
    assert follows_strictly(text, Instruction(name, arguments)) == followed
