"""Rows of a file become conversations as they were meant, or are refused with file, row and reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.messages import Message, ToolCall, ToolSpec
from rl.chat.chat import Chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.policies import train_tokenizer
from sft.data import token_rows
from sft.messages import BadRow
from sft.rows import FORMS, Conversation, SftDataError, read_row
from tests.conversations import conversations_of
from tests.makers import make_config

CASES = [json.loads(line) for line in (Path(__file__).parent / "data/cases/sft_rows.jsonl").read_text().splitlines()]
ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CALL = {"name": "f", "arguments": {"x": 1}}
CONFIG = make_config(policy={"path": "x", "max_tokens": 4000}, learner={"tokens_per_micro_batch": 4000})


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(["some text"], 384, NemotronFormat()), NemotronFormat())


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(folder: Path, *messages: Any, **row: Any) -> Conversation:
    (conversation,) = conversations_of(write(folder, {"messages": list(messages), **row}))
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
        conversations = conversations_of(path)
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
    ("message", "words"),
    [
        ({"content": "well <think>r</think> so"}, "does not begin it"),
        ({"content": "r</think>answer"}, "does not begin it"),
        ({"content": "<think>r"}, "no </think> closes"),
        ({"content": "<think>a<think>b</think>c"}, "several"),
        ({"content": "<think>a</think>b</think>"}, "several"),
        ({"content": "<think>a</think>b<think>c</think>d"}, "several"),
        ({"content": "<think>a</think>b", "reasoning_content": "r"}, "as a field too"),
        ({"content": "<think>a</think>b", "thinking": "a"}, "as a field too"),
        ({"content": "b", "thinking": "a", "reasoning": "c"}, "reasoning and thinking are different texts"),
        ({"content": "b", "thinking": {"text": "a"}}, "thinking must be text, got dict"),
    ],
)
def test_ambiguous_thinking_is_refused_in_words(tmp_path: Path, message: dict[str, str], words: str) -> None:
    with pytest.raises(SftDataError, match=rf"row 1: messages\[1\]: .*{words}"):
        only(tmp_path, ASK, {"role": "assistant", **message})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_may_be_a_field(tmp_path: Path, key: str) -> None:
    said = {"role": "assistant", "content": "a", "reasoning_content": None, key: "r"}
    assert only(tmp_path, ASK, said).messages[1] == Message("assistant", "a", "r")
    both = {"role": "assistant", "content": "a", "reasoning_content": "r", "reasoning": "r"}
    assert only(tmp_path, ASK, both).messages[1] == Message("assistant", "a", "r")


def test_tags_are_text_for_users_and_for_formats_without_a_think_block(tmp_path: Path) -> None:
    tagged = {"role": "assistant", "content": "<think>r</think>a"}
    path = write(tmp_path, {"messages": [{"role": "user", "content": "what is <think>?"}, tagged]})
    (conversation,) = conversations_of(path, has_thinking=False)
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


def test_nulls_that_an_export_filled_in_are_no_part_of_a_schema(tmp_path: Path) -> None:
    filled = {
        "type": "object",
        "required": None,
        "properties": {
            "a": {"type": "string", "enum": ["x", None], "default": None, "items": None},
            "b": None,
            "default": {"anyOf": [{"const": None}, {"type": "integer", "minimum": None}]},
            "enum": None,
        },
    }
    parameters = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "enum": ["x", None], "default": None},
            "default": {"anyOf": [{"const": None}, {"type": "integer"}]},
        },
    }
    for parameters_given in (filled, json.dumps(filled)):
        conversation = only(tmp_path, ASK, ANSWER, tools=[{"name": "f", "parameters": parameters_given}])
        assert conversation.tools == (ToolSpec("f", "", parameters),)


@pytest.mark.parametrize("key", ["arguments", "args", "parameters", "input"])
@pytest.mark.parametrize("is_inside", [True, False])
def test_arguments_may_have_the_names_that_others_give_them(tmp_path: Path, key: str, is_inside: bool) -> None:
    for value in ({"x": 1}, '{"x": 1}'):
        call = {"function": {"name": "f", key: value}} if is_inside else {"function": {"name": "f"}, key: value}
        calls = [call, {"name": "f", "arguments": None, key: value}]
        conversation = only(tmp_path, ASK, {"role": "assistant", "content": None, "tool_calls": calls})
        assert conversation.messages[1].tool_calls == (ToolCall("f", {"x": 1}),) * 2


@pytest.mark.parametrize("key", ["parameters", "input_schema", "inputSchema"])
def test_parameters_may_have_the_names_that_others_give_them(tmp_path: Path, key: str) -> None:
    schema = {"type": "object"}
    tools = [
        {"name": "f", key: schema},
        {"function": {"name": "f", key: schema}},
        {"name": "f", key: '{"type":"object"}'},
    ]
    assert only(tmp_path, ASK, ANSWER, tools=tools).tools == (ToolSpec("f", "", schema),) * 3


@pytest.mark.parametrize("value", [CALL, json.dumps(CALL), {**CALL, "arguments": '{"x": 1}'}])
def test_a_call_may_be_one_as_it_was_before_there_were_lists(tmp_path: Path, value: Any) -> None:
    said = {"role": "assistant", "content": None, "function_call": value}
    conversation = only(tmp_path, ASK, said, {"role": "function", "name": "f", "content": "3"}, ANSWER)
    assert conversation.messages[1] == Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}),))
    assert conversation.messages[2] == Message("tool", "3", name="f")


def test_a_text_that_is_empty_in_so_many_words_stays_so(tmp_path: Path) -> None:
    empty = {"role": "assistant", "content": "", "model": "m"}
    result = {"role": "tool", "content": None, "tool_call_id": "c1"}
    called = {"role": "assistant", "tool_calls": [{"id": "c1", **CALL}]}
    conversation = only(tmp_path, ASK, called, result, empty)
    assert conversation.messages[2:] == (Message("tool", "", name="f"), Message("assistant", ""))


def test_reasoning_of_a_field_has_no_line_breaks_around_it_unless_it_was_sampled(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "a", "reasoning_content": "\n r \n\n", "thinking": " r \n"}
    assert only(tmp_path, ASK, said).messages[1] == Message("assistant", "a", " r ")
    sampled = {"role": "assistant", "content": "a", "reasoning": "\nr\n"}
    conversation = only(tmp_path, ASK, sampled, env_id="math/Arithmetic-v0", seed=1, reward=1.0)
    assert conversation.messages[1].reasoning == "\nr\n"


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
        ({"messages": "[]"}, "messages must be a list of messages, got str"),
        ({"messages": []}, "messages must be a list of messages, got an empty list"),
        ({"messages": None}, "a row must have one of these forms, got an object with messages:"),
        ({"messages": [ASK, "yo"]}, r"messages\[1\]: a message must be an object, got str"),
        ({"messages": [ASK, {"role": ["user"], "content": "x"}]}, r"messages\[1\]: a message's role must be one of"),
        ({"messages": [ASK, {"role": "bot", "content": "x"}]}, "role must be one of .* got 'bot'"),
        ({"messages": [ASK]}, "messages: no assistant message to train on"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, "no assistant message to train on"),
        ({"messages": [ASK, {**ANSWER, "weight": "0"}]}, "weight must be 0 .* or 1 .* got '0'"),
        ({"messages": [ASK, {**ANSWER, "content": 3}]}, "content must be text, got int"),
        ({"messages": [ASK, {**ANSWER, "content": ["yo"]}]}, "a part of a content must be"),
        ({"messages": [{**ASK, "content": [{"type": "image_url", "image_url": "u"}]}, ANSWER]}, "cannot be trained"),
        ({"messages": [{"role": "user", "value": "hi"}, ANSWER]}, "role user has no content, only role, value: rename"),
        ({"messages": [ASK, {"role": "assistant", "text": "yo"}]}, "role assistant has no .* only role, text: rename"),
        ({"messages": [ASK, {"role": "assistant", "content": None, "parts": ["yo"]}]}, "only role, parts"),
        ({"messages": [ASK, {"role": "assistant"}]}, "role assistant has no content, reasoning_content or tool_calls"),
        ({"messages": [ASK, {"role": "assistant", "calls": [{"name": "f"}]}]}, "only role, calls"),
        (
            {"messages": [ASK, ANSWER, {"role": "tool", "output": "3"}, ANSWER]},
            "role tool has no content, only role, o",
        ),
        (
            {"messages": None, "conversations": [{"from": "gpt", "value": "a", "content": "b"}]},
            "value and content are different",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [CALL], "function_call": CALL}]},
            "tool_calls and a function_call",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "f", "kwargs": {"x": 1}}]}]},
            "arguments must stand under arguments",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{**CALL, "args": {"x": 2}}]}]},
            "f has arguments and args that differ",
        ),
        (
            {"tools": [{"name": "f", "parameters": {"type": "object"}, "input_schema": {"type": "null"}}]},
            "f has parameters and input_schema that differ",
        ),
        ({"task": {"env_id": "a", "seed": 1}}, "a saved rollout.* rollouts: in a list of sft.data.* from-rollouts"),
        ({"prompt": "p", "completion": "c"}, r"several forms \(messages, prompt with completion\)"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_row(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path, {"messages": [ASK, ANSWER]}, {"messages": [ASK, ANSWER], **row})
    with pytest.raises(SftDataError, match=f"1 of 2 rows are bad; first: .*rows.jsonl, row 2: .*(?:{words})"):
        conversations_of(path)


def test_a_value_that_no_call_can_hold_is_refused_and_not_trained_as_another(tmp_path: Path, chat: Chat) -> None:
    call = {"name": "f", "arguments": {"a": "x\n</parameter>\ny"}}
    conversation = only(
        tmp_path, ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, tools=[{"name": "f"}]
    )
    with pytest.raises(SftDataError, match=r"row 1: a call of f cannot be written: its argument a"):
        token_rows([conversation], chat, CONFIG)


def test_openai_and_sharegpt_and_prompt_with_completion_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "developer", "content": "s"}, ASK, ANSWER]},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "yo"},
            ]
        },
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "yo"}], "system": "s"},
        {"conversations": [{"role": "system", "content": "s"}, ASK, ANSWER], "messages": None},
        {"conversations": [{"from": "human", "content": "hi"}, {"from": "gpt", "content": "yo"}], "system": "s"},
        {"prompt": [{"role": "system", "content": "s"}, ASK], "completion": [ANSWER]},
        {"prompt": [{"role": "system", "content": "s"}, ASK], "completion": "yo", "messages": None},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "s"}]}, ASK, ANSWER], "prompt": "hi"},
    ]
    found = {conversation.messages for conversation in conversations_of(write(tmp_path, *rows))}
    assert found == {(Message("system", "s"), Message("user", "hi"), Message("assistant", "yo"))}
    (texts,) = conversations_of(write(tmp_path, {"prompt": "hi", "completion": "yo"}))
    assert texts.messages == (Message("user", "hi"), Message("assistant", "yo"))


def test_calls_and_results_of_sharegpt_are_read(tmp_path: Path) -> None:
    said = [
        {"from": "human", "value": "how many?"},
        {"from": "function_call", "value": '{"name": "stock", "arguments": {"sku": "A7"}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "<think>3</think>Three."},
    ]
    tools = '[{"name": "stock", "description": "d", "parameters": {"type": "object"}}]'
    (conversation,) = conversations_of(write(tmp_path, {"conversations": said, "tools": tools}))
    assert conversation.messages == (
        Message("user", "how many?"),
        Message("assistant", "", tool_calls=(ToolCall("stock", {"sku": "A7"}),)),
        Message("tool", "3"),
        Message("assistant", "Three.", "3"),
    )
    assert conversation.tools == (ToolSpec("stock", "d", {"type": "object"}),)


def test_a_result_has_the_name_of_the_call_whose_id_it_names(tmp_path: Path) -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": f"f{n}", "arguments": "{}"}} for n in range(2)]
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in ("c1", "c0", "c9")]
    conversation = only(tmp_path, ASK, {"role": "assistant", "tool_calls": calls}, *results, ANSWER)
    assert [message.name for message in conversation.messages[2:5]] == ["f1", "f0", ""]


def test_parts_of_a_content_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "<think>r</think>"}, {"type": "text", "text": "yo", "image_url": None}]
    assert only(tmp_path, ASK, {"role": "assistant", "content": parts}).messages[1] == Message("assistant", "yo", "r")


def trained(conversation: Conversation, chat: Chat) -> str:
    (row,) = token_rows([conversation], chat, CONFIG)
    return chat.text([label for label in row.labels if label >= 0])


def test_replies_of_a_prompt_and_of_weight_0_are_read_but_not_trained(tmp_path: Path, chat: Chat) -> None:
    first = {"role": "assistant", "content": "one"}
    said = (ASK, first, ASK, {"role": "assistant", "content": "two"}, ASK)
    assert trained(only(tmp_path, *said), chat) == "one<|im_end|>two<|im_end|>"
    assert trained(only(tmp_path, ASK, {**first, "weight": 0}, *said[2:]), chat) == "two<|im_end|>"
    assert trained(only(tmp_path, ASK, {**first, "weight": 1}, *said[2:]), chat) == "one<|im_end|>two<|im_end|>"
    (completed,) = conversations_of(write(tmp_path, {"prompt": said[:3], "completion": said[3:]}))
    assert trained(completed, chat) == "two<|im_end|>"


def test_a_row_without_a_form_is_told_the_forms_and_each_example_is_one(tmp_path: Path) -> None:
    with pytest.raises(SftDataError) as error:
        conversations_of(write(tmp_path, {"text": "x", "prompt": "y"}))
    assert "row 1: a row must have one of these forms, got an object with text, prompt:" in str(error.value)
    for example in FORMS.values():
        assert example in str(error.value)
        messages = read_row(json.loads(example), "here", has_thinking=True).messages
        assert messages == (Message("user", "2 + 2?"), Message("assistant", "4"))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WORDS = st.sampled_from(
    [
        "user",
        "gpt",
        "function_call",
        "tool",
        "system",
        "<think>r</think>a",
        "<think>",
        "{}",
        "[1]",
        '{"name": "f"}',
        "text",
    ]
)
KEYS = st.sampled_from(
    [
        *("messages", "prompt", "completion", "conversations", "system", "tools", "role", "content", "from", "value"),
        *("tool_calls", "function", "name", "arguments", "parameters", "reasoning", "thinking", "weight", "id"),
        *("tool_call_id", "type", "text", "description", "properties"),
    ]
)
JSON = st.recursive(
    SCALARS | WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | JSON},
    optional=dict.fromkeys(("content", "tool_calls", "thinking", "name", "tool_call_id", "weight"), JSON),
)
ROW = st.fixed_dictionaries({"messages": st.lists(MESSAGE, min_size=1, max_size=4)}, optional={"tools": JSON})


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(row=JSON | ROW)
def test_no_json_value_raises_anything_but_the_stages_own_errors(row: Any, chat: Chat) -> None:
    try:
        conversation = read_row(row, "here", has_thinking=True)
    except BadRow:
        return
    try:
        token_rows([conversation], chat, CONFIG)
    except SftDataError:
        return


@pytest.mark.parametrize("deep", ["messages", "tools", "tool_calls"])
def test_values_that_are_nested_deeply_raise_nothing_else(tmp_path: Path, deep: str, chat: Chat) -> None:
    nested: Any = {"x": 1}
    for _ in range(200):
        nested = {"x": [nested]}
    row: dict[str, Any] = {"messages": [ASK, ANSWER]}
    if deep == "messages":
        row["messages"] = [nested]
    elif deep == "tools":
        row["tools"] = [{"name": "f", "parameters": nested}]
    else:
        row["messages"][1] = {**ANSWER, "tool_calls": [{"name": "f", "arguments": nested}]}
    try:
        token_rows(conversations_of(write(tmp_path, row)), chat, CONFIG)
    except SftDataError as error:
        assert "row 1: " in str(error)
