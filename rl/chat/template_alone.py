"""How is a conversation told to a model whose replies have no form, as a guard's? By its chat template alone.

Llama Guard's template writes a question around the conversation, which may end with the reply to be judged. Such a
model is served and asked, never trained.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.chat_completions import openai_messages
from envs.messages import Message
from rl.chat.chat import Chat, load_chat, load_tokenizer
from rl.chat.format import ChatError
from rl.chat.formats import AUTO
from rl.chat.template_text import CLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Told = Mapping[str, Any]
"""A message in OpenAI's words."""
PROBE = [Message("user", "Is water wet?"), Message("assistant", "Certainly it is.")]


def _in_parts(message: Told) -> Told:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


CONTENTS: Sequence[Callable[[Told], Told]] = (dict, _in_parts)
"""Templates write a message's content, or go through its parts; vLLM tells them apart by their code."""


class TemplateAlone:
    """Renders conversations of users and assistants, without tools, thinking and budgets."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Raises `ChatError` if there is no template, or it does not write what the messages say."""
        self._tokenizer = tokenizer
        for self._content in CONTENTS if tokenizer.chat_template else ():
            try:
                text = tokenizer.decode(self._ids(PROBE))
            except ChatError:
                continue
            if all(message.content in text for message in PROBE):
                return
        raise ChatError("the tokenizer has no chat template that renders a conversation")

    def num_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Raises `ChatError` for messages that the template refuses."""
        return len(self._ids(messages))

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        told = [dict(self._content(message)) for message in openai_messages(messages)]
        try:
            return self._tokenizer.apply_chat_template(told, add_generation_prompt=True, return_dict=False, **CLOCK)  # type: ignore[return-value]
        except Exception as error:  # a template may raise anything
            raise ChatError(f"the chat template refuses the messages: {error}") from error


def load_served_chat(folder: Path, format: str) -> Chat | TemplateAlone:
    """The chat format; with `auto` the template alone where no format fits. Raises `ChatError`."""
    try:
        return load_chat(folder, format)
    except ChatError:
        if format != AUTO:
            raise
        try:
            return TemplateAlone(load_tokenizer(folder))
        except ChatError:
            pass
        raise
