"""A checkpoint's own template as chat format: the published templates of many families say the same.

The templates are those that TRL ships. Each conversation is built turn by turn, as in a rollout, and compared with
what the family's template renders for the whole of it: text and ids. TRL's training variants keep the reasoning of
earlier turns, as rollouts do.
"""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.chat import Chat, load_chat
from rl.chat.format import ChatError
from rl.chat.formats.template import TemplateFormat
from rl.config.errors import ConfigError
from rl.data_types import Budget
from rl.preflight import preflight
from tests import families
from tests.families import FAMILIES, Family, template_of
from tests.makers import make_config

WITH_TOOLS = [name for name, family in FAMILIES.items() if family.tools]
WITH_THINKING = [name for name, family in FAMILIES.items() if family.thinking]
SCHEMA = {"type": "object", "properties": {"item": {"type": "string"}, "n": {"type": "integer"}}, "required": ["item"]}
TOOL = ToolSpec("price", "What an item costs.", SCHEMA)


tokenizer_of = cache(families.tokenizer_of)


@cache
def chat_of(name: str) -> Chat:
    return Chat(tokenizer_of(name), TemplateFormat.for_tokenizer(tokenizer_of(name)))


def draw_text(rng: random.Random) -> str:
    """No white space at the ends, which some templates strip."""
    words = ["a", 'say "hi"', "7", "\n", "é 👍", "{x}", "<b>", "user", "\\n", "it's"]
    return " ".join(["so", *rng.choices(words, k=rng.randint(0, 5)), "on"])


def draw_reply(rng: random.Random, family: Family, *, thinks: bool, last: bool) -> Reply:
    reasoning = draw_text(rng) if thinks else ""
    num = 0 if last or not family.tools else rng.randint(0, 1 if family.only_one_call else 2)
    calls = tuple(ToolCall("price", {"item": draw_text(rng), "n": rng.randint(0, 9)}) for _ in range(num))
    has_text = not calls or (rng.random() < 0.5 and not family.only_one_call)
    return Reply(draw_text(rng) if has_text else "", reasoning, calls)


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    dicts = []
    for message in messages:
        said: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            said["reasoning_content"] = message.reasoning
        if message.tool_calls:
            said["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.tool_calls
            ]
        dicts.append(said)
    return dicts


def converse(name: str, rng: random.Random, budget: Budget) -> tuple[list[Message], tuple[int, ...]]:
    """A random conversation, and its ids as a rollout builds them."""
    family, chat = FAMILIES[name], chat_of(name)
    tools = (TOOL,) if family.tools else ()
    messages = [Message("user", draw_text(rng))]
    if rng.random() < 0.5 and name != "gemma":  # it has no system role
        messages.insert(0, Message("system", draw_text(rng)))
    dialogue = chat.begin(messages, tools, budget)
    for turns_left in reversed(range(rng.randint(1, 4))):
        reply = draw_reply(rng, family, thinks=family.thinking and budget != "off", last=turns_left == 0)
        assert dialogue.take(dialogue.reply_ids(reply)) == reply
        messages.append(reply.as_message())
        if turns_left:
            results = [Message("tool", draw_text(rng), name="price") for _ in reply.tool_calls]
            more = results or [Message("user", draw_text(rng))]
            dialogue.say(more)
            messages += more
    return messages, dialogue.prompt_ids


@pytest.mark.parametrize("budget", ["unlimited", "off"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_reads_as_the_familys_template_renders_it(name: str, budget: Budget) -> None:
    family, tokenizer, rng = FAMILIES[name], tokenizer_of(name), random.Random(f"{name} {budget}")
    template = template_of(family.whole or name)
    for _ in range(25):
        messages, ids = converse(name, rng, budget)
        arguments: dict[str, Any] = {"enable_thinking": budget != "off", "truncate_history_thinking": False}
        arguments |= {"date_string": "26 Jul 2024", "tools": as_tools() if family.tools else None}
        rendered = tokenizer.apply_chat_template(
            as_dicts(messages), chat_template=template, tokenize=False, **arguments
        )
        assert isinstance(rendered, str)
        ours = chat_of(name).text(ids)
        assert rendered[: len(ours)] == ours
        assert len(rendered) - len(ours) < 15  # what follows the end of a turn
        whole = tokenizer.encode(rendered, add_special_tokens=False)
        assert tuple(whole[: len(ids)]) == ids


def as_tools() -> list[dict[str, Any]]:
    described = {"name": TOOL.name, "description": TOOL.description, "parameters": dict(TOOL.parameters)}
    return [{"type": "function", "function": described}]


@pytest.mark.parametrize("budget", ["unlimited", "off"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_opening_with_a_history_says_all_of_it(name: str, budget: Budget) -> None:
    chat, rng = chat_of(name), random.Random(name)
    for _ in range(25):
        messages, _ = converse(name, rng, budget)
        text = chat.text(chat.begin(messages[:-1], (TOOL,) if chat.has_tools else (), budget).prompt_ids)
        for message in messages[:-1]:
            assert message.content in text or message.role == "tool"  # Llama's are JSON
            assert all(call.name in text for call in message.tool_calls)


ASKED = ToolCall("price", {"item": "pen"})
LEFT_OUT = {
    "phi3": [Message("user", "x"), Message("assistant", "y"), Message("tool", "3")],
    "gemma3": [Message("system", "be brief")],  # which it writes before the user's first message
    "llama3_1": [Message("user", "x"), Message("assistant", "I look.", tool_calls=(ASKED,)), Message("tool", "3")],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_template_leaves_out_of_a_prompt_is_refused(name: str) -> None:
    with pytest.raises(ChatError, match="the chat template leaves out a message of role"):
        chat_of(name).begin(LEFT_OUT[name], (), "unlimited")


def test_what_a_template_leaves_out_of_a_later_prompt_is_refused() -> None:
    dialogue = chat_of("phi3").begin([Message("user", "x")], (), "unlimited")
    dialogue.take(dialogue.reply_ids(Reply("y")))
    with pytest.raises(ChatError, match="leaves out a message of role tool after one of role assistant, '3'"):
        dialogue.say([Message("tool", "3")])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITH_TOOLS])
def test_calls_of_earlier_replies_are_refused_where_a_template_has_none(name: str) -> None:
    messages = [Message("user", "x"), Message("assistant", "y", tool_calls=(ASKED,)), Message("user", "z")]
    with pytest.raises(ChatError, match="no tool calls, and an earlier reply has some"):
        chat_of(name).begin(messages, (), "unlimited")


def test_a_prompt_does_not_depend_on_the_day() -> None:
    tokenizer = families.tokenizer_of("qwen3")
    clock = "{{ date_string }} {{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }}."
    tokenizer.chat_template = clock + template_of("qwen3")
    chat = Chat(tokenizer, TemplateFormat.for_tokenizer(tokenizer))
    text = chat.text(chat.begin([Message("user", "x")], (), "off").prompt_ids)
    assert text.startswith("26 Jul 2024 2024-07-26 26 Jul 2024.<|im_start|>user\nx")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_can_do_is_read_off_its_template(name: str) -> None:
    chat, family = chat_of(name), FAMILIES[name]
    assert (chat.has_tools, chat.has_thinking) == (family.tools, family.thinking)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_never_become_control_tokens(name: str) -> None:
    """A forged turn in what a user, a tool or the policy's own history says stays text, wherever it stands."""
    chat, forged = chat_of(name), "".join(FAMILIES[name].tokens) + "\ue0000\ue001"
    dialogue = chat.begin([Message("user", forged)], (), "unlimited")
    plain = chat.begin([Message("user", "x")], (), "unlimited")
    controls = tokenizer_of(name).all_special_ids
    assert [id for id in dialogue.prompt_ids if id in controls] == [id for id in plain.prompt_ids if id in controls]
    assert forged in chat.text(dialogue.prompt_ids)
    dialogue.take(dialogue.reply_ids(Reply(forged)))
    new_ids = dialogue.say([Message("user", forged)])
    assert forged in chat.text(new_ids)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_tool_described_with_a_control_token_is_refused(name: str) -> None:
    described = ToolSpec("price", f"ends {FAMILIES[name].tokens[1]}", SCHEMA)
    with pytest.raises(ChatError, match="the schema of tool price holds the control token"):
        chat_of(name).begin([Message("user", "x")], (described,), "unlimited")


@pytest.mark.parametrize("name", ["qwen3", "llama3_2"])
def test_a_mark_in_what_the_template_sees_is_refused(name: str) -> None:
    described = ToolSpec("price", "\ue0007\ue001", SCHEMA)
    with pytest.raises(ChatError, match="holds the control token"):
        chat_of(name).begin([Message("user", "x")], (described,), "unlimited")
    dialogue = chat_of(name).begin([Message("user", "x")], (TOOL,), "unlimited")
    dialogue.take(())
    with pytest.raises(ChatError, match="the name of a message holds the control token"):
        dialogue.say([Message("tool", "3", name=FAMILIES[name].tokens[1])])


def test_a_template_for_a_tokenizer_without_control_tokens_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    tokenizer.chat_template = template_of("qwen3")
    with pytest.raises(ChatError, match="does not end an assistant message with a control token"):
        TemplateFormat.for_tokenizer(tokenizer)


@pytest.mark.parametrize("name", WITH_THINKING)
def test_a_budget_is_told_enforced_and_the_block_may_be_shut(name: str) -> None:
    chat = chat_of(name)
    told = chat.text(chat.begin([Message("user", "x")], (), 32).prompt_ids)
    assert "x\n\n{thinking token budget: 32}<|im_end|>" in told
    assert told.endswith("<think>\n")
    assert "</think>" in chat.text(chat.begin([Message("user", "x")], (), "off").prompt_ids)
    open_block = chat.begin([Message("user", "x")], (), "unlimited")
    assert open_block.take(open_block.reply_ids(Reply("", "r"))[:1]) == Reply("", reasoning="r")


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"name": "price", "KEY": {"item": 1}', "is not JSON"),
        ('{"name": "price"}', "does not read"),
        ('{"name": "price", "KEY": "x"}', "must be an object"),
        ('{"name": 1, "KEY": {}}', "does not read"),
        ('{"name": "price", "KEY": {"a": 1, "a": 2}}', "names a key twice"),
        ('{"name": "price", "KEY": ' + "[" * 100_000, "more than 64 levels"),
    ],
)
def test_json_that_is_no_call_is_malformed(name: str, body: str, words: str) -> None:
    chat, llama = chat_of(name), name == "llama3_1"
    body = body.replace("KEY", "parameters" if llama else "arguments")
    text = chat.begin([Message("user", "x")], (TOOL,), "unlimited")
    ids = encoded(name, body if llama else f"<tool_call>\n{body}\n</tool_call>")
    assert words in text.take(ids).malformed


def encoded(name: str, part: str) -> list[int]:
    return tokenizer_of(name).encode(part, add_special_tokens=False)


def test_llama_calls_with_or_without_its_tag_and_answers_in_json() -> None:
    chat = chat_of("llama3_1")
    call = '{"name": "price", "parameters": {"item": "pen"}}'
    for said in (call, f"<|python_tag|>{call}", f" {call}\n"):
        taken = chat.begin([Message("user", "x")], (TOOL,), "unlimited").take(encoded("llama3_1", said))
        assert taken == Reply("", tool_calls=(ToolCall("price", {"item": "pen"}),))
    for said in ('{"total": 3}', "it is {3}", "{"):
        assert chat.begin([Message("user", "x")], (TOOL,), "unlimited").take(encoded("llama3_1", said)) == Reply(said)
    dialogue = chat.begin([Message("user", "x")], (TOOL,), "unlimited")
    with pytest.raises(ChatError, match="at most one tool call"):
        dialogue.reply_ids(Reply("", tool_calls=(ToolCall("price", {}),) * 2))
    with pytest.raises(ChatError, match="no other text"):
        dialogue.reply_ids(Reply("so", tool_calls=(ToolCall("price", {}),)))


def test_all_end_tokens_of_a_checkpoint_end_a_reply(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama3_1")
    tokenizer.save_pretrained(tmp_path)
    eot, eom, eos = map(tokenizer.backend_tokenizer.token_to_id, ("<|eot_id|>", "<|eom_id|>", str(tokenizer.eos_token)))
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{eom}, {eot}]}}')
    assert set(load_chat(tmp_path, "auto").stop_ids) == {eot, eom, eos}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ChatError, match=r"generation_config\.json is damaged"):
        load_chat(tmp_path, "auto")


def test_a_budget_for_a_template_that_does_not_think_is_refused_before_the_run(tmp_path: Path) -> None:
    tokenizer_of("llama3").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not load_chat(tmp_path, "auto").has_thinking
    with pytest.raises(ConfigError, match="no think block, so a thinking budget cannot be enforced"):
        preflight(make_config(policy={"path": tmp_path}, environments={"math/Arithmetic-v0": {"budget": 32}}))
    data = [{"path": str(tmp_path), "weight": 1, "effort": "efficient"}]
    with pytest.raises(ConfigError, match=r"sft\.data\.0\.effort: .*no think block"):
        preflight(make_config(policy={"path": tmp_path}, sft={"data": data}))
    with pytest.raises(ConfigError, match="has tools, which the policy's chat format cannot express"):
        preflight(make_config(policy={"path": tmp_path}, environments={"tools/Store-v0": {}}))
