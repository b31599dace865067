"""Rows are varied as the recipe of Nemotron 3 says: effort, thinking off, cut reasoning, a row a user's turn."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.messages import Message, Reply, ToolCall
from rl.algorithms.shaping.effort import Effort
from rl.chat.chat import Chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.chat.formats.template import TemplateFormat
from rl.config.experiment import ExperimentConfig
from rl.policies import train_tokenizer
from sft.data import Row, token_row, token_rows, training_conversations
from sft.heldout import split_rows
from sft.messages import BadRow
from sft.rows import Conversation, SftDataError, read_row
from sft.variations import repetition, turns_apart, varied, with_effort
from tests import families
from tests.makers import make_config

ASK = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "yo", "thinking": "so it is"}
MARKER = Effort().marker
DIALOGUE = (
    Message("system", "Be brief."),
    Message("user", "one?"),
    Message("assistant", "1", "first"),
    Message("user", "two?"),
    Message("assistant", "", "look", (ToolCall("price", {"n": 2}),)),
    Message("tool", "2", name="price"),
    Message("assistant", "2", "second"),
    Message("user", "three?"),
    Message("assistant", "3", "third"),
)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(["some text"], 384, NemotronFormat()), NemotronFormat())


def conversation(*messages: Message, untrained: Sequence[int] = (), **fields: Any) -> Conversation:
    return Conversation(messages, (), "unlimited", "here, row 1", untrained=frozenset(untrained), **fields)


def stage(
    folder: Path, rows: list[dict[str, Any]], source: dict[str, Any] | None = None, **sft: Any
) -> ExperimentConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(path) if source is None else [{"path": str(path), "weight": 1, **source}]
    return make_config(policy={"build": {}, "max_tokens": 4000}, learner={"tokens_per_micro_batch": 4000},
                       sft={"data": data, **sft})  # fmt: skip


def trained_text(row: Row, chat: Chat) -> str:
    return chat.text([label for label in row.labels if label >= 0])


def test_a_row_or_its_source_states_the_effort_that_reinforcement_learning_knows(tmp_path: Path, chat: Chat) -> None:
    rows = [
        {"messages": [ASK, SAID]},
        {"messages": [ASK, SAID], "effort": "medium"},
        {"prompt": "hi", "completion": "a"},
    ]
    found = training_conversations(stage(tmp_path, rows, {"effort": "efficient"}))
    contents = [one.messages[0].content for one in found]
    assert contents == [f"hi\n\n{MARKER}", "hi\n\n{reasoning effort: medium}", "hi"]  # without reasoning there is none
    assert [one.effort for one in found] == ["efficient", "medium", None]
    row = token_row(found[0], chat, make_config())
    assert f"user\nhi\n\n{MARKER}<|im_end|>" in chat.text(row.input_ids)
    assert trained_text(row, chat) == "so it is\n</think>\nyo<|im_end|>"


def test_effort_stands_where_a_budget_would_and_once() -> None:
    found = with_effort(conversation(*DIALOGUE, untrained=[2]), "efficient")
    places = [place for place, message in enumerate(found.messages) if MARKER in message.content]
    assert places == [3, 7]  # of the first user message only an untrained reply follows
    assert with_effort(found, "efficient") == found
    stated = {"messages": [{**ASK, "content": f"hi {MARKER}"}, SAID]}
    assert read_row(stated, "here", has_thinking=True).effort == "efficient"
    with pytest.raises(SftDataError, match=r"ends with another effort than 'low'"):
        with_effort(read_row({**stated, "effort": "low"}, "here", has_thinking=True), None)


def test_an_effort_that_only_a_message_states_is_not_written_into_others(tmp_path: Path) -> None:
    low = {**ASK, "content": "hi {reasoning effort: low}"}
    rows = [{"messages": [ASK, SAID, {**ASK, "content": f"hi {MARKER}"}, SAID]}, {"messages": [ASK, SAID, low, SAID]}]
    rows.append({"messages": [{**ASK, "content": f"hi {MARKER}"}, SAID, low, SAID]})
    found = training_conversations(stage(tmp_path, rows, no_thinking_share=1.0))
    assert [[message.content for message in one.messages[::2]] for one in found] == [
        [message["content"] for message in row["messages"][::2]] for row in rows
    ]
    assert [one.effort for one in found] == ["efficient", "low", "low"] and {one.budget for one in found} == {
        "unlimited"
    }
    turns = training_conversations(stage(tmp_path, rows, split_turns=True, no_thinking_share=1.0))
    assert [one.effort for one in turns] == [None, "efficient", None, "low", "efficient", "low"]
    assert [one.budget for one in turns] == ["off", "unlimited", "off", "unlimited", "unlimited", "unlimited"]
    with pytest.raises(SftDataError, match=r"row 1: a user message ends with another effort than 'low'"):
        training_conversations(stage(tmp_path, rows, {"effort": "low"}))


@pytest.mark.parametrize(
    ("row", "has_thinking", "words"),
    [
        ({"messages": [ASK, SAID], "effort": 3}, True, "effort must be one word, such as efficient, got 3"),
        ({"messages": [ASK, SAID], "effort": "a b"}, True, "effort must be one word"),
        ({"messages": [ASK, SAID], "effort": "low"}, False, "chat format has no think block"),
        ({"prompt": "a", "completion": "b", "effort": "low"}, True, "no message of the row has any"),
    ],
)
def test_efforts_that_make_no_sense_are_refused(row: dict[str, Any], has_thinking: bool, words: str) -> None:
    with pytest.raises(BadRow, match=words):
        read_row(row, "here", has_thinking=has_thinking)


def test_a_share_of_rows_with_reasoning_is_trained_without_it(tmp_path: Path) -> None:
    rows = [{"messages": [ASK, {**SAID, "thinking": f"so {n}"}]} for n in range(400)]
    found = training_conversations(stage(tmp_path, rows, no_thinking_share=0.25, truncated_share=0.5))
    off = [one for one in found if one.budget == "off"]
    assert 70 < len(off) < 130
    assert not any(message.reasoning for one in off for message in one.messages)
    cut = [one for one in found if one.cut_at is not None]
    assert 110 < len(cut) < 190 and not any(one in off for one in cut)
    assert training_conversations(stage(tmp_path, rows[:50], no_thinking_share=0.25, truncated_share=0.5)) == found[:50]
    assert {one.budget for one in training_conversations(stage(tmp_path, rows))} == {"unlimited"}  # unless it is asked


def test_rows_that_state_an_effort_or_only_read_reasoning_stay_as_they_are() -> None:
    rows = [conversation(*DIALOGUE, effort="low"), conversation(*DIALOGUE[:3], Message("user", "b"),
            Message("assistant", "c"), untrained=[2])]  # fmt: skip
    assert list(varied(rows, 1.0, 1.0, (0,))) == rows


@pytest.mark.parametrize("end", ["masked", "trained"])
def test_the_end_of_cut_reasoning_is_in_the_loss_if_it_is_asked(tmp_path: Path, chat: Chat, end: str) -> None:
    reasoning = " ".join(f"word{n}" for n in range(60))
    config = stage(
        tmp_path, [{"messages": [ASK, {**SAID, "thinking": reasoning}]}], truncated_share=1.0, truncated_end=end
    )
    (found,) = training_conversations(config)
    row = token_row(replace(found, cut_at=0.5), chat, config)
    text, trained = chat.text(row.input_ids), trained_text(row, chat)
    assert "hi\n\n{thinking token budget: " in text and reasoning not in text
    assert text.endswith("\n</think>\nyo<|im_end|>") and trained.endswith("\nyo<|im_end|>")
    assert ("</think>" in trained) == (end == "trained")
    assert len(reasoning) / 3 < len(trained) < len(reasoning)  # not only what rollout.max_reply_tokens (96) would allow
    num = sum(label >= 0 for label in row.labels)
    other = token_row(
        replace(found, cut_at=0.5), chat, stage(tmp_path, [{"messages": [ASK, SAID]}], truncated_share=1.0)
    )
    assert num - sum(label >= 0 for label in other.labels) == (2 if end == "trained" else 0)  # a line break, </think>


WITH_THINKING = [name for name, family in families.FAMILIES.items() if family.thinking]


def chats() -> list[Any]:
    named = [pytest.param(name, id=name) for name in WITH_THINKING]
    return [*named, pytest.param("nemotron", id="nemotron format")]


@pytest.mark.parametrize("name", chats())
def test_rows_of_a_dialogue_are_what_the_published_template_and_reinforcement_learning_write(name: str) -> None:
    tokenizer = families.tokenizer_of("nemotron_3_nano" if name == "nemotron" else name)
    format = NemotronFormat() if name == "nemotron" else TemplateFormat.for_tokenizer(tokenizer)
    chat = Chat(tokenizer, format)
    whole = conversation(*DIALOGUE)
    turns = turns_apart(whole)
    assert [len(one.messages) for one in turns] == [3, 7, 9]
    assert [sorted(one.untrained) for one in turns] == [[], [2], [2, 4, 6]]
    assert [one.source for one in turns] == [f"here, row 1, user message {n}" for n in (1, 2, 3)]
    for one in turns:
        row = token_row(one, chat, make_config())
        # as a task whose opening is the dialogue so far begins and goes on
        places = [n for n, message in enumerate(one.messages) if message.role == "assistant" and n not in one.untrained]
        dialogue = chat.begin(one.messages[: places[0]], (), "unlimited")
        said: list[int] = []
        for place, after in zip(places, [*places[1:], None], strict=True):
            message = one.messages[place]
            ids = dialogue.reply_ids(Reply(message.content, message.reasoning, message.tool_calls))
            said += ids
            dialogue.take(ids)
            if after is not None:
                dialogue.say(one.messages[place + 1 : after])
        assert row.input_ids == dialogue.prompt_ids
        assert [label for label in row.labels if label >= 0] == said
        # as the published template writes what clients send, who keep no earlier reasoning
        written = str(tokenizer.apply_chat_template(as_dicts(one.messages), tokenize=False)).removesuffix("\n")
        text = chat.text(row.input_ids)
        assert text == written or (name == "nemotron" and joined(text) == joined(written))
        # and as it takes reasoning away itself, but for the line break after it, which those of Nano and Super leave
        with_all = str(tokenizer.apply_chat_template(as_dicts(DIALOGUE[: len(one.messages)]), tokenize=False))
        assert joined(text) == joined(with_all.removesuffix("\n"))


def joined(text: str) -> str:
    """Without line breaks around calls, of which the format `nemotron` has fewer, and after an empty think block."""
    for tag in ("</tool_call>", "<think></think>"):
        text = text.replace(f"{tag}\n", tag)
    return text.replace("\n<tool_call>", "<tool_call>")


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"role": one.role, "content": one.content}
        | ({"reasoning_content": one.reasoning} if one.reasoning else {})
        | ({"tool_calls": [{"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}
                           for c in one.tool_calls]} if one.tool_calls else {})
        for one in messages
    ]  # fmt: skip


def test_turns_that_train_nothing_give_no_row_and_others_stay_whole(tmp_path: Path) -> None:
    assert [one.source for one in turns_apart(conversation(*DIALOGUE, untrained=[2, 4, 6]))] == [
        "here, row 1, user message 3"
    ]
    short = conversation(*DIALOGUE[:3])
    assert turns_apart(short) == [short]
    silent = replace(conversation(*(replace(message, reasoning="") for message in DIALOGUE)), budget="off")
    assert turns_apart(silent) == [silent]
    mixed = turns_apart(conversation(*DIALOGUE[:7], Message("user", "three?"), Message("assistant", "3")))
    assert [one.budget for one in mixed] == ["unlimited", "unlimited", "off"]
    silent_end = [*DIALOGUE[:7], Message("user", "three?"), Message("assistant", "3")]
    cut = turns_apart(conversation(*silent_end, untrained=[4, 6], cut_at=0.5))
    assert [(one.budget, one.cut_at) for one in cut] == [("unlimited", 0.5), ("off", None)]
    rows = [{"messages": [ASK, SAID, ASK, SAID], "effort": "efficient"}]
    turns = training_conversations(stage(tmp_path, rows, split_turns=True))
    assert [[MARKER in message.content for message in one.messages[::2]] for one in turns] == [[True], [False, True]]


def test_the_rows_of_a_dialogue_are_trained_together_or_held_out_together(chat: Chat) -> None:
    dialogues = [replace(conversation(Message("user", f"{n}?"), *DIALOGUE[2:]), identity=f"row {n}") for n in range(20)]
    turns = [one for dialogue in dialogues for one in turns_apart(dialogue)]
    rows = token_rows(turns, chat, make_config())
    trained, heldout = split_rows(rows, 0.3, seed=0)
    assert (len(trained), len(heldout)) == (42, 18)
    assert not {row.identity for row in trained} & {row.identity for row in heldout}
    # a dialogue that begins as a held-out one has a row in common with it
    same = turns_apart(replace(dialogues[0], messages=(*dialogues[0].messages[:-1], Message("assistant", "4", "x"))))
    rows = token_rows([*turns, *(replace(one, identity="other") for one in same)], chat, make_config())
    for seed in range(10):
        trained, heldout = split_rows(rows, 0.3, seed)
        assert len({row.identity for row in heldout}) == 6
        assert not {row.input_ids for row in trained} & {row.input_ids for row in heldout}


def test_no_conversation_is_trained_in_one_variation_and_held_out_in_another(tmp_path: Path, chat: Chat) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, SAID, ASK, SAID]} for n in range(30)]
    silent = [{"messages": [{**one, "thinking": None} for one in row["messages"]]} for row in rows[:10]]
    for name, lines in (("a.jsonl", rows * 3), ("b.jsonl", rows + silent)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    data = [
        {"path": str(tmp_path / "a.jsonl"), "weight": 1},
        {"path": str(tmp_path / "b.jsonl"), "weight": 1, "effort": "efficient"},
    ]
    shares = {"no_thinking_share": 0.3, "truncated_share": 0.5, "split_turns": True}
    config = make_config(policy={"build": {}, "max_tokens": 4000}, learner={"tokens_per_micro_batch": 4000},
                         sft={"data": data, **shares})  # fmt: skip
    found = training_conversations(config)
    equal = [one for one in found if one.identity == found[0].identity]
    assert len({(one.budget, one.cut_at, one.effort) for one in equal}) >= 3
    assert {one.budget for one in found if one.part == 0} == {"off", "unlimited"}
    trained, heldout = split_rows(token_rows(found, chat, config), 0.2, seed=0)
    assert {row.part for row in heldout} == {row.part for row in trained} == {0, 1}
    assert not {row.input_ids for row in trained} & {row.input_ids for row in heldout}
    assert not {row.identity for row in trained} & {row.identity for row in heldout}
    assert len({row.identity for row in heldout}) == 8  # of 40


def test_repetition_is_the_share_of_runs_of_words_that_occurred_before(tmp_path: Path) -> None:
    def of(reasoning: str) -> float:
        return repetition(conversation(Message("user", "a"), Message("assistant", "b", reasoning)))

    words = " ".join(f"w{n}" for n in range(16))
    assert of(words) == of("") == of("a few") == 0.0
    assert of(f"{words} {words}") == pytest.approx(
        1 - 16 / 25
    )  # 25 runs of 8 of 32 words; those at 16 to 24 repeat 0 to 8
    assert of("wait " * 100) == pytest.approx(1 - 1 / 93)
    rows = [{"messages": [ASK, {**SAID, "thinking": text}]} for text in (words, "wait " * 100)]
    found = training_conversations(stage(tmp_path, rows, repetition_max=0.5, no_thinking_share=1.0))
    assert [round(one.repetition, 2) for one in found] == [0.0, 0.99]  # also of reasoning that is then removed


@pytest.mark.parametrize(
    ("source", "sft", "key"),
    [({"effort": "low"}, {}, r"sft\.data\.0\.effort"), (None, {"truncated_share": 0.1}, r"sft\.truncated_share")],
)
def test_what_needs_a_think_block_is_refused_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, sft: dict[str, Any], key: str
) -> None:
    monkeypatch.setattr(NemotronFormat, "has_thinking", False)
    with pytest.raises(
        SftDataError, match=f"{key} asks for reasoning, but the policy's chat format has no think block"
    ):
        training_conversations(stage(tmp_path, [{"messages": [ASK, SAID]}], source, **sft))
