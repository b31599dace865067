"""What is told of a reply while it is sampled adds up to the reply that is parsed in the end."""

import random

import pytest

from envs.messages import Message, Reply, ToolCall
from rl.chat.chat import Chat
from rl.chat.format import ChatError
from rl.chat.formats.nemotron import NemotronFormat
from rl.data_types import Budget
from tests.families import FAMILIES
from tests.test_chat import adversarial_tokenizer
from tests.test_template_format import TOOL, chat_of, converse, draw_reply

NAMES = [*FAMILIES, "nemotron"]


def chat_named(name: str) -> Chat:
    return Chat(adversarial_tokenizer(), NemotronFormat()) if name == "nemotron" else chat_of(name)


def told_in_parts(chat: Chat, ids: list[int], budget: Budget, *, tools: bool) -> tuple[Reply, list[Reply]]:
    """The sum of all parts, and the parts but the last."""
    stream = chat.reply_stream((TOOL,) if tools else (), budget)
    parts = [stream.add([id]) for id in ids]
    end = stream.finish()
    text = "".join(part.text for part in (*parts, end))
    reasoning = "".join(part.reasoning for part in (*parts, end))
    return Reply(text, reasoning, end.tool_calls, end.malformed, end.malformed_kind), parts


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_reply(name: str) -> None:
    chat, rng = chat_named(name), random.Random(name)
    family = FAMILIES.get(name, FAMILIES["nemotron_3_nano"])
    budgets: list[Budget] = ["off", "unlimited"]
    for trial in range(60):
        budget = budgets[trial % 2]
        reply = draw_reply(rng, family, thinks=chat.has_thinking and budget != "off", last=trial % 3 == 0)
        ids = list(chat.begin([Message("user", "?")], (), budget).reply_ids(reply))
        assert told_in_parts(chat, ids, budget, tools=chat.has_tools)[0] == reply


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_what_is_parsed_from_any_tokens(name: str) -> None:
    """Half of a character, control tokens at any place, calls that are never closed, no end."""
    chat, rng = chat_named(name), random.Random(name)
    budgets: list[Budget] = ["off", "unlimited"]
    written = list(chat.begin([Message("user", "?")], (), "unlimited").reply_ids(Reply("so", "")))
    for trial in range(150):
        budget, tools = budgets[trial % 2], chat.has_tools and trial % 3 > 0
        ids = [rng.choice([rng.randrange(chat.num_tokens), rng.choice(written)]) for _ in range(rng.randint(0, 40))]
        ids = [id for id in ids if id not in chat.stop_ids]
        dialogue = chat.begin([Message("user", "?")], (TOOL,) if tools else (), budget)
        assert told_in_parts(chat, ids, budget, tools=tools)[0] == dialogue.take(ids)


@pytest.mark.parametrize("name", ["qwen3", "nemotron", "llama3_1"])
def test_text_is_told_at_once_and_a_call_never_as_text(name: str) -> None:
    chat = chat_named(name)
    dialogue = chat.begin([Message("user", "?")], (TOOL,), "unlimited")
    thought = "so it is" if chat.has_thinking else ""
    ids = list(dialogue.reply_ids(Reply("one two three four", thought)))
    _, parts = told_in_parts(chat, ids, "unlimited", tools=True)
    assert "".join(part.text for part in parts) == "one two three four"
    assert "".join(part.reasoning for part in parts) == thought
    call = Reply("", thought, (ToolCall("price", {"item": "a", "n": 2}),))
    _, parts = told_in_parts(chat, list(dialogue.reply_ids(call)), "unlimited", tools=True)
    assert [part.text for part in parts if part.text] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_is_continued_with_the_ids_of_its_rollout(name: str) -> None:
    rng, chat = random.Random(name), chat_of(name)
    tools = (TOOL,) if FAMILIES[name].tools else ()
    for _ in range(10):
        messages, ids = converse(name, rng, "unlimited")
        said = chat.continued([*messages, Message("user", "more")], tools, "unlimited")
        assert said.prompt_ids[: len(ids)] == ids
        assert len(said.prompt_ids) > len(ids)
        with pytest.raises(ChatError, match="must not be the assistant's"):
            chat.continued(messages, tools, "unlimited")
