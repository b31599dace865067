"""Which chat formats can a configuration name? One file each, registered in `CHAT_FORMATS`."""

from rl.chat.format import ChatFormat
from rl.chat.formats.nemotron import NemotronFormat
from rl.chat.formats.template import TemplateFormat

CHAT_FORMATS: dict[str, type[ChatFormat]] = {"nemotron": NemotronFormat, "template": TemplateFormat}
"""By name. A format is made for a loaded tokenizer by its `for_tokenizer`."""


def formats_with_tools() -> str:
    """The formats that have tool calls, for messages: `chat: nemotron`."""
    return _names([name for name, kind in CHAT_FORMATS.items() if kind.has_tools])


def formats_with_thinking() -> str:
    """The formats that have a think block, for messages."""
    return _names([name for name, kind in CHAT_FORMATS.items() if kind.has_thinking])


def _names(names: list[str]) -> str:
    return " or ".join(f"chat: {name}" for name in names)
