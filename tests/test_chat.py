import json
from itertools import groupby
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.calls.style import CALL, CALL_END
from rl.chat.chat import Chat, load_chat
from rl.chat.dialogue import Dialogue
from rl.chat.format import ChatError, conversation_text, plain_text
from rl.chat.formats.nemotron import NEMOTRON_TOKENS, THINK_END, NemotronFormat
from rl.chat.formats.template import TemplateFormat

STORE = ToolSpec(
    "stock",
    "How many are left.",
    {
        "type": "object",
        "properties": {"sku": {"type": "string"}, "least": {"type": "integer"}},
        "required": ["sku", "least"],
    },
)
CONTROLS = [token.text for token in NEMOTRON_TOKENS]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def adversarial_tokenizer() -> PreTrainedTokenizerFast:
    """Merges across every edge: no pre-tokeniser splits, trained on text that is nothing but edges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    edges = [
        "\nab",
        "user\nab",
        "b\n",
        "\n\n",
        "a\n<function=stock>\n<parameter=sku>\nab",
        "assistant\n",
        "im_end|>\n<|im",
    ]
    tokenizer.train_from_iterator(edges * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


TOKENIZER = adversarial_tokenizer()
CHAT = Chat(TOKENIZER, NemotronFormat())


def template_chat(template: str = CHATML) -> Chat:
    tokenizer = adversarial_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, TemplateFormat.for_tokenizer(tokenizer))


TEMPLATE_CHAT = template_chat()


def read_back(dialogue: Dialogue, reply: Reply) -> Reply:
    return dialogue.take(dialogue.reply_ids(reply))


def prompt_text(chat: Chat, *arguments: Any) -> str:
    return chat.text(chat.begin(*arguments).prompt_ids)


texts = st.lists(st.sampled_from(["a", "b", "ab", "\n", "\n\n", " ", "7", "é", "user", "</parameter>", *CONTROLS])).map(
    "".join
)
values = texts.filter(lambda text: "</parameter>" not in text)
calls = st.builds(
    lambda sku, least: ToolCall("stock", {"sku": sku, "least": least}), values, st.integers(-1000, 1000)
) | st.just(ToolCall("other", {}))
replies = st.builds(Reply, texts, texts, st.lists(calls, max_size=2).map(tuple))
followers = st.lists(st.builds(Message, st.sampled_from(["user", "tool"]), texts), min_size=1, max_size=3)
budgets = st.sampled_from(["off", "unlimited", 7])


@given(texts, st.lists(st.tuples(replies, st.booleans(), followers), max_size=4), budgets, st.booleans())
@settings(max_examples=200)
def test_every_prompt_begins_with_the_prompt_and_the_reply_before_it(content, turns, budget, in_template):
    chat, tools = (TEMPLATE_CHAT, ()) if in_template else (CHAT, (STORE,))
    messages = [Message("user", content)]
    dialogue = chat.begin(messages, tools, budget)
    prompt, expected = dialogue.prompt_ids, chat.text(dialogue.prompt_ids)
    assert dialogue.new_ids == prompt
    for reply, closed, more in turns:
        if in_template:
            reply, more = Reply(reply.text), [Message("user", message.content) for message in more]
        reply = reply if budget != "off" else Reply(reply.text, "", reply.tool_calls)
        reply_ids = dialogue.reply_ids(reply)
        cut_ids = reply_ids if closed else reply_ids[:-1]
        dialogue.take(cut_ids)
        assert dialogue.prompt_ids == (*prompt, *cut_ids)
        new_ids = dialogue.say(more)
        assert dialogue.new_ids == new_ids
        assert dialogue.prompt_ids == (*prompt, *cut_ids, *new_ids)
        assert dialogue.prompt_ids[: len(prompt) + len(reply_ids)] == (*prompt, *reply_ids)
        expected += chat.text(reply_ids) + chat.text(new_ids if closed else new_ids[1:])
        assert chat.text(dialogue.prompt_ids) == expected
        prompt = dialogue.prompt_ids


@given(replies)
@settings(max_examples=300)
def test_a_reply_survives_encoding_and_parsing(reply):
    assert read_back(CHAT.begin((), (STORE,), "unlimited"), reply) == reply


@given(texts)
@settings(max_examples=100)
def test_a_reply_without_thinking_survives(text):
    assert read_back(CHAT.begin((), (STORE,), "off"), Reply(text)) == Reply(text)
    assert read_back(TEMPLATE_CHAT.begin([Message("user", "a")], (), "off"), Reply(text)) == Reply(text)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40), budgets)
@settings(max_examples=300)
def test_any_ids_are_taken_as_they_are_and_read_as_a_reply(ids, budget):
    dialogue = CHAT.begin((), (STORE,), budget)
    prompt = dialogue.prompt_ids
    reply = dialogue.take(ids)
    assert dialogue.prompt_ids == (*prompt, *ids)
    assert not (reply.malformed and reply.tool_calls)
    assert budget != "off" or reply.reasoning == ""


@given(texts)
@settings(max_examples=100)
def test_contents_never_become_control_tokens(content):
    control_ids = {TOKENIZER.get_vocab()[text] for text in CONTROLS}

    def num_controls(chat: Chat, text: str) -> int:
        return sum(id in control_ids for id in chat.begin([Message("user", text)], (), "off").prompt_ids)

    for chat in (CHAT, TEMPLATE_CHAT):
        assert num_controls(chat, content) == num_controls(chat, "a")


def test_the_prompt_opens_the_think_block_or_gives_an_empty_one():
    messages = [Message("system", "Be brief."), Message("user", "2 + 2 = ?")]
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2 = ?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(CHAT, messages, (), "unlimited") == head + "<think>\n"
    assert prompt_text(CHAT, messages, (), "off") == head + "<think></think>"


def test_a_reply_with_calls_reads_as_the_nemotron_template_writes_it():
    reply = Reply("I look.", "Stock first.", (ToolCall("stock", {"sku": "A7", "least": 3}),))
    assert CHAT.text(CHAT.begin((), (STORE,), "unlimited").reply_ids(reply)) == (
        "Stock first.\n</think>\nI look.\n<tool_call>\n<function=stock>\n<parameter=sku>\nA7\n</parameter>\n"
        "<parameter=least>\n3\n</parameter>\n</function>\n</tool_call><|im_end|>"
    )


def test_tools_stand_in_the_system_message_and_results_come_back_in_one_user_turn():
    prompt = prompt_text(CHAT, [Message("user", "Go")], (STORE,), "off")
    assert prompt.startswith(
        "<|im_start|>system\n# Tools\n<tools>\n"
        "<function><name>stock</name><description>How many are left.</description>"
        '<parameters>{"sku":"string","least":"integer"}</parameters></function>\n</tools><|im_end|>\n<|im_start|>user\n'
    )
    results = [Message("tool", "3", name="stock"), Message("tool", "4", name="stock")]
    assert CHAT.text(CHAT.begin((), (STORE,), "off").say(results)) == (
        "\n<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>"
    )


def test_a_schema_that_says_more_than_types_is_shown_whole():
    schema = {"type": "object", "properties": {"sku": {"type": "string", "enum": ["A", "B"]}}, "required": ["sku"]}
    prompt = prompt_text(CHAT, [Message("user", "Go")], (ToolSpec("t", "", schema),), "off")
    assert json.dumps(schema, separators=(",", ":")) in prompt


def test_earlier_reasoning_stays_in_the_history():
    messages = [Message("user", "a"), Message("assistant", "b", reasoning="why"), Message("user", "c")]
    assert "<think>\nwhy\n</think>\nb<|im_end|>" in prompt_text(CHAT, messages, (), "unlimited")


def test_a_reply_that_never_stops_thinking_is_all_reasoning():
    dialogue = CHAT.begin((), (), "unlimited")
    assert dialogue.take(dialogue.reply_ids(Reply("", "hm"))[:1]) == Reply("", reasoning="h")
    assert NemotronFormat().parse(("hm ", CALL, "x"), (STORE,), "unlimited") == Reply("", reasoning="hm <tool_call>x")


def test_tool_markup_is_text_where_there_are_no_tools():
    pieces = (CALL, "\n<function=stock>\n</function>\n", CALL_END)
    assert NemotronFormat().parse(pieces, (), "off") == Reply(plain_text(pieces))


GOOD = "\n<function=stock>\n<parameter=sku>\nA\n</parameter>\n</function>\n"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((CALL, GOOD), "not closed"),
        ((GOOD, CALL_END), "closes no tool call"),
        ((CALL, GOOD, CALL_END, "and so on"), "text after a tool call"),
        ((CALL, "stock(A)", CALL_END), "does not read <function=NAME>"),
        ((CALL, "\n<function=stock>\nsku: A\n</function>\n", CALL_END), "arguments do not read"),
        ((CALL, GOOD, CALL, GOOD, CALL_END), "inside a tool call"),
        ((CALL, GOOD.replace("</function>", "<parameter=sku>\nB\n</parameter>\n</function>"), CALL_END), "given twice"),
    ],
)
def test_a_malformed_call_is_told_and_leaves_no_calls(pieces, message):
    reply = NemotronFormat().parse(("\n", THINK_END, "\nsee ", *pieces), (STORE,), "unlimited")
    assert message in reply.malformed
    assert reply.tool_calls == ()
    assert reply.text == "see " + plain_text(pieces)


def test_arguments_take_the_type_of_the_schema_and_stay_text_where_they_do_not_fit():
    def least(value: str) -> object:
        body = f"\n<function=stock>\n<parameter=least>\n{value}\n</parameter>\n</function>\n"
        return NemotronFormat().parse((CALL, body, CALL_END), (STORE,), "off").tool_calls[0].arguments["least"]

    assert [least("3"), least("three"), least("true"), least("3.5")] == [3, "three", "true", "3.5"]


def test_a_conversation_is_what_rollouts_see_and_masks_exactly_the_replies():
    messages = (
        Message("user", "a"),
        Message("assistant", "", "r", (ToolCall("stock", {"sku": "A", "least": 1}),)),
        Message("tool", "4", name="stock"),
        Message("assistant", "four", "s"),
    )
    ids, mask = CHAT.conversation(messages, (STORE,), "unlimited")
    pieces = groupby(zip(mask, ids, strict=True), key=itemgetter(0))
    assert [(is_sampled, CHAT.text([id for _, id in piece])) for is_sampled, piece in pieces] == [
        (
            False,
            "<|im_start|>system\n# Tools\n<tools>\n"
            "<function><name>stock</name><description>How many are left.</description>"
            '<parameters>{"sku":"string","least":"integer"}</parameters></function>\n</tools><|im_end|>\n'
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n",
        ),
        (
            True,
            "r\n</think>\n<tool_call>\n<function=stock>\n<parameter=sku>\nA\n</parameter>\n"
            "<parameter=least>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>",
        ),
        (
            False,
            "\n<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n",
        ),
        (True, "s\n</think>\nfour<|im_end|>"),
    ]
    assert CHAT.text(ids) + "\n" + "<|im_start|>assistant\n<think>\n" == conversation_text(
        NemotronFormat(), messages, (STORE,), "unlimited"
    )


@pytest.mark.parametrize(
    "roles", [(), ("user",), ("assistant",), ("user", "assistant", "assistant"), ("user", "assistant", "user")]
)
def test_a_conversation_in_another_order_is_refused(roles):
    with pytest.raises(ChatError, match="assistant"):
        CHAT.conversation([Message(role, "x") for role in roles], (), "unlimited")


def test_reasoning_under_budget_off_is_refused():
    with pytest.raises(ChatError, match="budget is 'off'"):
        CHAT.begin((), (), "off").reply_ids(Reply("a", "b"))


def test_a_template_without_tool_calls_refuses_tools():
    with pytest.raises(ChatError, match=r"this chat format has no tool calls \(stock cannot be offered"):
        TEMPLATE_CHAT.begin([Message("user", "x")], (STORE,), "off")


def test_a_template_that_does_not_end_a_message_with_a_special_token_is_refused():
    with pytest.raises(ChatError, match="does not end an assistant message"):
        template_chat("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")


def test_a_template_prompt_is_what_the_template_writes():
    dialogue = TEMPLATE_CHAT.begin([Message("user", "a")], (), "unlimited")
    assert TEMPLATE_CHAT.text(dialogue.prompt_ids) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    dialogue.take(())  # a reply that was cut off
    assert (
        TEMPLATE_CHAT.text(dialogue.say([Message("user", "b")]))
        == "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_tokenizer_without_the_control_tokens_is_refused_by_name(tmp_path):
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ChatError, match=r"no token <\|im_start\|>"):
        load_chat(tmp_path, "nemotron")
    with pytest.raises(ChatError, match="no chat template"):
        load_chat(tmp_path, "template")


def test_a_tokenizer_that_changes_text_is_refused():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.add_special_tokens(CONTROLS)
    with pytest.raises(ChatError, match="changes plain text"):
        Chat(PreTrainedTokenizerFast(tokenizer_object=tokenizer), NemotronFormat())


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ChatError, match="cannot load the tokenizer"):
        load_chat(tmp_path, "nemotron")


def test_a_tool_with_half_a_surrogate_pair_in_its_words_is_described() -> None:
    tool = ToolSpec("t\ud800", "d\udfff", {"properties": {"\ud800": {"type": "string"}}})
    assert "<name>t\ufffd</name><description>d\ufffd</description>" in prompt_text(
        CHAT, [Message("user", "x")], (tool,), "off"
    )


def test_a_message_with_a_call_that_could_not_be_said_is_shown_all_the_same() -> None:
    called = Message("assistant", "", "", (ToolCall("stock", {"sku": "a\n</parameter>\nb"}),))
    assert "a\n</parameter>\nb" in prompt_text(CHAT, [Message("user", "x"), called], (STORE,), "off")
