"""Chat formats as a seam: another one is a class and an entry; what a checkpoint cannot do is said with what it can."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from envs.messages import Message, Reply, ToolSpec
from rl.chat.chat import fitting_chats, load_chat
from rl.chat.format import ChatError, Pieces, Token, conversation_text, plain_text
from rl.chat.formats import CHAT_FORMATS, new_format
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig
from rl.data_types import Budget
from rl.policies import train_tokenizer
from rl.preflight import preflight
from tests.makers import make_config
from tests.test_chat import CHATML, adversarial_tokenizer

TALK, END = Token("<talk>"), Token("<end>")


class LineFormat:
    """Each message on a line of its own."""

    has_tools: bool = False
    has_thinking: bool = False
    tokens: tuple[Token, ...] = (TALK, END)
    template: str = "{% for m in messages %}<talk>{{ m['role'] + ': ' + m['content'] }}<end>{% endfor %}<talk>"
    end_of_turn: Token = END
    end_of_thinking: Token | None = None

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> "LineFormat":
        return cls()

    @classmethod
    def for_new_tokenizer(cls) -> "LineFormat":
        return cls()

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Pieces:
        return (*(piece for message in messages for piece in (TALK, f"{message.role}: {message.content}\n")), TALK)

    def follow_up(self, messages: Sequence[Message], budget: Budget) -> Pieces:
        return ("\n", *self.opening(messages, (), budget))

    def reply(self, reply: Reply, budget: Budget) -> Pieces:
        return (reply.text,)

    def parse(self, pieces: Pieces, tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        return Reply(plain_text(pieces))


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder


def with_template(folder: Path) -> Path:
    """Knows all control tokens of the Nemotron format and has a template too."""
    tokenizer = adversarial_tokenizer()
    tokenizer.chat_template = CHATML
    return saved(tokenizer, folder)


def test_a_format_is_a_class_and_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAT_FORMATS, "lines", LineFormat)
    policy = PolicyConfig.model_validate({"build": {}, "chat": "lines"})
    format = new_format(policy.chat)
    text = conversation_text(format, [Message("user", "ask")], (), "unlimited")
    assert text == "<talk>user: ask\n<talk>"
    saved(train_tokenizer([text], 384, format), tmp_path)
    chat = load_chat(tmp_path, policy.chat)
    dialogue = chat.begin([Message("user", "ask")], (), "unlimited")
    assert dialogue.take(dialogue.reply_ids(Reply("answer"))) == Reply("answer")
    dialogue.say([Message("user", "more")])
    assert chat.text(dialogue.prompt_ids) == "<talk>user: ask\n<talk>answer<end>\n<talk>user: more\n<talk>"
    built, budgets = {"build": {}, "chat": "lines"}, {"math/Arithmetic-v0": {"budget": 32}}
    wrong = r"the policy's chat format has no think block"
    with pytest.raises(ConfigError, match=rf"{wrong}(?s:.*){wrong}"):
        preflight(make_config(policy=built, environments=budgets, sft={"truncated_share": 0.5}))


def test_the_formats_that_there_are_are_named_for_an_unknown_one(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not one of template, nemotron, auto"):
        PolicyConfig.model_validate({"path": "x", "chat": "chatml"})
    with pytest.raises(ChatError, match="no chat format 'chatml'; there are template, nemotron, auto"):
        load_chat(tmp_path, "chatml")


def test_a_policy_is_not_built_for_a_format_that_only_checkpoints_have() -> None:
    with pytest.raises(ValidationError, match="build and chat: template do not go together: a policy that is built"):
        PolicyConfig.model_validate({"build": {}, "chat": "template"})


def test_a_checkpoint_that_does_not_fit_is_offered_the_formats_that_do(tmp_path: Path) -> None:
    chatml = saved(train_tokenizer(["text"], 384, NemotronFormat()), tmp_path / "nemotron")
    with pytest.raises(ChatError, match=r"no chat template\. This checkpoint can be used with policy\.chat: nemotron$"):
        load_chat(chatml, "template")
    assert list(fitting_chats(chatml)) == ["nemotron"]
    lines = train_tokenizer(["text"], 384, LineFormat())
    lines.chat_template = "{% for m in messages %}<talk>{{ m['content'] }}<end>{% endfor %}<talk>"
    saved(lines, tmp_path / "lines")
    with pytest.raises(
        ChatError, match=r"no token <\|im_start\|>.* policy\.chat: template \(without tools and thinking"
    ):
        load_chat(tmp_path / "lines", "nemotron")
    assert list(fitting_chats(with_template(tmp_path / "both"))) == ["template", "nemotron"]


def test_a_checkpoint_that_fits_nothing_is_refused_without_a_circle(tmp_path: Path) -> None:
    saved(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))), tmp_path)
    for name in CHAT_FORMATS:
        with pytest.raises(ChatError, match="No other chat format fits this checkpoint either"):
            load_chat(tmp_path, name)


def test_a_broken_tokenizer_file_is_told_in_words(tmp_path: Path) -> None:
    saved(adversarial_tokenizer(), tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}')
    with pytest.raises(ChatError, match="cannot load the tokenizer"):
        load_chat(tmp_path, "nemotron")


@pytest.mark.parametrize(
    ("fits", "words"), [(True, "also fits chat: nemotron"), (False, "whose chat template writes tool calls")]
)
def test_tools_without_tool_calls_are_told_with_what_the_checkpoint_offers(
    tmp_path: Path, fits: bool, words: str
) -> None:
    if fits:
        with_template(tmp_path)
    else:
        tokenizer = train_tokenizer(["text"], 384, LineFormat())
        tokenizer.chat_template = "{% for m in messages %}<talk>{{ m['content'] }}<end>{% endfor %}<talk>"
        saved(tokenizer, tmp_path)
    config = make_config(policy={"path": str(tmp_path), "chat": "template"}, environments={"tools/Store-v0": {}})
    with pytest.raises(ConfigError, match=f"has tools, which the policy's chat format cannot express(?s:.*){words}"):
        preflight(config)


def test_a_template_that_refuses_an_order_of_roles_is_an_error_of_the_chat(tmp_path: Path) -> None:
    tokenizer = adversarial_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    chat = load_chat(saved(tokenizer, tmp_path), "template")
    with pytest.raises(ChatError, match="refuses messages of the roles user, tool: no tools here"):
        chat.begin([Message("user", "x"), Message("tool", "y")], (), "unlimited")


@pytest.mark.parametrize("name", list(CHAT_FORMATS))
def test_half_a_surrogate_pair_anywhere_becomes_a_replacement_character(tmp_path: Path, name: str) -> None:
    chat = load_chat(with_template(tmp_path), name)
    broken, whole = (
        [Message("system", f"s {half}"), Message("user", f"u {half}"), Message("assistant", half, half)]
        for half in ("\ud800", "\ufffd")
    )
    dialogue = chat.begin(broken, (), "unlimited")
    assert chat.begin(broken, (), "unlimited").prompt_ids == chat.begin(whole, (), "unlimited").prompt_ids
    dialogue.take(())
    assert "q \ufffd" in chat.text(dialogue.say([Message("user", "q \udcff")]))
    assert dialogue.take(dialogue.reply_ids(Reply("a \ud83d\ude00 \udc00"))).text == "a \U0001f600 \ufffd"


def test_a_tool_that_json_cannot_describe_is_an_error_of_the_chat(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["properties"] = circle
    chat = load_chat(with_template(tmp_path), "nemotron")
    for schema in (circle, {"default": object()}):
        with pytest.raises(ChatError, match="the schema of tool t cannot be written as JSON"):
            chat.begin([Message("user", "x")], (ToolSpec("t", "", schema),), "off")
