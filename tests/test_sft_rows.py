"""Rows of a file become conversations as they were meant, or are refused with file, row and reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.chat import Chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.policies import train_tokenizer
from sft.data import token_rows
from sft.rows import Conversation, SftDataError, read_conversations
from tests.makers import make_config

CASES = [json.loads(line) for line in (Path(__file__).parent / "data/cases/sft_rows.jsonl").read_text().splitlines()]
ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CONFIG = make_config(policy={"path": "x", "max_tokens": 4000}, learner={"tokens_per_micro_batch": 4000})


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(["some text"], 384, NemotronFormat()), NemotronFormat())


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(folder: Path, *messages: Any, **row: Any) -> Conversation:
    (conversation,) = read_conversations(write(folder, {"messages": list(messages), **row}))
    return conversation


def as_written(conversation: Conversation) -> dict[str, Any]:
    """In the words of the collected cases."""
    messages = []
    for message in conversation.messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        entry |= {"reasoning": message.reasoning} if message.reasoning else {}
        calls = [[call.name, dict(call.arguments)] for call in message.tool_calls]
        messages.append(entry | ({"tool_calls": calls} if calls else {}))
    tools = [[tool.name, tool.parameters] for tool in conversation.tools]
    return {"messages": messages, "tools": tools, "budget": conversation.budget}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["kind"])
def test_collected_rows_have_one_of_the_right_outcomes(case: dict[str, Any], tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "rows.jsonl"
    if "text" in case:
        path.write_bytes(case["text"].encode("latin-1"))
    elif case.get("via") == "datasets":
        from datasets import Dataset

        path = tmp_path / "folder"
        Dataset.from_list(case["rows"]).save_to_disk(path)
    else:
        write(tmp_path, *case["rows"])
    try:
        conversations = read_conversations(path)
        token_rows(conversations, chat, CONFIG)
    except SftDataError as error:
        patterns = [right.partition(": ")[2] for right in case["right"] if isinstance(right, str)]
        assert any(re.search(pattern, str(error), re.IGNORECASE) for pattern in patterns), error
    else:
        found = as_written(conversations[0])
        rights = [right for right in case["right"] if not isinstance(right, str)]
        assert any(all(found[key] == value for key, value in right.items()) for right in rights), found


@pytest.mark.parametrize(
    ("content", "answer", "reasoning"),
    [
        ("<think>\nr\n</think>\n\nanswer", "answer", "r"),
        ("\n<think>r</think>answer", "answer", "r"),
        ("<think>\n\n</think>\n\nanswer\n", "answer\n", ""),
        ("<think>a\n\nb</think>", "", "a\n\nb"),
        ("no tags", "no tags", ""),
    ],
)
def test_reasoning_in_the_content_is_told_apart(tmp_path: Path, content: str, answer: str, reasoning: str) -> None:
    conversation = only(tmp_path, ASK, {"role": "assistant", "content": content})
    assert conversation.messages[1] == Message("assistant", answer, reasoning)
    assert conversation.budget == ("unlimited" if reasoning else "off")


@pytest.mark.parametrize(
    "message",
    [
        {"content": "well <think>r</think> so"},
        {"content": "<think>r"},
        {"content": "r</think>answer"},
        {"content": "<think>a<think>b</think>c"},
        {"content": "<think>a</think>b</think>"},
        {"content": "<think>a</think>b<think>c</think>d"},
        {"content": "<think>a</think>b", "reasoning_content": "r"},
    ],
)
def test_other_think_tags_are_refused_in_words(tmp_path: Path, message: dict[str, str]) -> None:
    with pytest.raises(SftDataError, match="row 1: an assistant's content has <think> or </think> other than"):
        only(tmp_path, ASK, {"role": "assistant", **message})


def test_tags_are_text_for_users_and_for_formats_without_a_think_block(tmp_path: Path) -> None:
    tagged = {"role": "assistant", "content": "<think>r</think>a"}
    path = write(tmp_path, {"messages": [{"role": "user", "content": "what is <think>?"}, tagged]})
    (conversation,) = read_conversations(path, has_thinking=False)
    assert [message.content for message in conversation.messages] == ["what is <think>?", "<think>r</think>a"]


def test_nulls_that_an_export_filled_in_are_no_arguments_unless_the_tool_takes_null(tmp_path: Path) -> None:
    schema = {"properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "integer"}}}
    calls = [
        {"function": {"name": "f", "arguments": {"a": None, "b": None, "c": None, "d": 1}}},
        {"name": "f", "arguments": '{"b": null}'},
    ]
    tools = [{"name": "f", "parameters": schema}]
    conversation = only(tmp_path, ASK, {"role": "assistant", "content": None, "tool_calls": calls}, tools=tools)
    assert conversation.messages[1].tool_calls == (ToolCall("f", {"a": None, "d": 1}), ToolCall("f", {"b": None}))


def test_tools_calls_and_parameters_may_be_json_text(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": None, "parameters": '{"type": "object"}'}}
    said = {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'}
    for tools in ([json.dumps(tool)], json.dumps([tool]), [tool]):
        conversation = only(tmp_path, ASK, said, tools=tools)
        assert conversation.tools == (ToolSpec("f", "", {"type": "object"}),)
        assert conversation.messages[1].tool_calls == (ToolCall("f", {"x": 1}),)
    assert only(tmp_path, ASK, ANSWER, tools="").tools == ()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tools": "f(x)"}, "tools: text that is not JSON"),
        ({"tools": '{"name": "f"}'}, "tools must be a list, or its JSON text, got dict"),
        ({"tools": {"name": "f"}}, "tools must be a list"),
        ({"tools": ["f"]}, "a tool: text that is not JSON"),
        ({"tools": [3]}, "a tool needs a name, got 3"),
        ({"tools": [{"function": "f"}]}, "a tool needs a name"),
        ({"tools": [{"name": "f", "parameters": [1]}]}, "tool f needs .* parameters as an object"),
        ({"tools": [{"name": "f", "description": 3}]}, "tool f needs a description as text"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": "f()"}]}, "tool_calls: text that is not JSON"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": "f"}]}]}, "a tool call needs a name"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": 3}]}]}, "a tool call needs a name"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [None]}]}, "a tool call needs a name"),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "arguments: text that is not JSON",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
            "arguments as an object",
        ),
        ({"messages": [ASK, {"role": "assistant", "reasoning_content": ["r"]}]}, "reasoning_content must be text"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, ANSWER]}, "role user has"),
        ({"messages": "[]"}, "no list 'messages'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_row(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path, {"messages": [ASK, ANSWER]}, {"messages": [ASK, ANSWER], **row})
    with pytest.raises(SftDataError, match=f"1 of 2 rows are bad; first: .*rows.jsonl, row 2: .*(?:{words})"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": "caf\xe9"}', "row 2: not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "row 2: not UTF-8"),
        (b"\x1f\x8b\x08\x00", "row 2: not UTF-8"),
        (b"[" * 100_000, "row 2: not JSON"),
        (b'{"messages": ' + b"9" * 10_000 + b"}", "row 2: not JSON"),
    ],
)
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps({"messages": [ASK, ANSWER]}).encode() + b"\n" + line + b"\n")
    with pytest.raises(SftDataError, match=f"rows.jsonl, {words}"):
        read_conversations(path)


def test_a_byte_order_mark_and_other_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": [ASK, ANSWER]}).encode() + b"\r\n\r\n")
    assert len(read_conversations(path)) == 1


def test_a_value_that_no_call_can_hold_is_refused_and_not_trained_as_another(tmp_path: Path, chat: Chat) -> None:
    call = {"name": "f", "arguments": {"a": "x\n</parameter>\ny"}}
    conversation = only(
        tmp_path, ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, tools=[{"name": "f"}]
    )
    with pytest.raises(SftDataError, match=r"row 1: a call of f cannot be written: its argument a"):
        token_rows([conversation], chat, CONFIG)


def test_calls_of_a_datasets_folder_are_read_back_by_the_chat_as_they_were_meant(tmp_path: Path, chat: Chat) -> None:
    from datasets import Dataset

    rows = [
        {"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"o": {"x": 1}}}]}]},
        {"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "g", "arguments": {"o": {"y": "2"}, "n": 3}}]}]},
        {"messages": [ASK, ANSWER]},
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    first, second, third = read_conversations(tmp_path / "folder")
    assert first.messages[1].tool_calls == (ToolCall("f", {"o": {"x": 1}}),)
    assert second.messages[1].tool_calls == (ToolCall("g", {"o": {"y": "2"}, "n": 3}),)
    assert third.messages[1] == Message("assistant", "yo")
    tool = ToolSpec("g", "", {"properties": {"o": {"type": "object"}, "n": {"type": "integer"}}})
    said = second.messages[1]
    dialogue = chat.begin([Message("user", "hi")], (tool,), "off")
    reply = Reply(said.content, "", said.tool_calls)
    assert dialogue.take(dialogue.reply_ids(reply)) == reply
