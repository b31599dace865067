"""Which chat formats can a configuration name? One file each, registered in `CHAT_FORMATS`."""

from collections import ChainMap
from collections.abc import Mapping

from rl.chat.format import ChatError, ChatFormat
from rl.chat.formats.nemotron import NemotronFormat
from rl.chat.formats.template import TemplateFormat

CHAT_FORMATS: dict[str, type[ChatFormat]] = {"template": TemplateFormat, "nemotron": NemotronFormat}
"""By name, in the order in which `auto` tries them. A format is made for a loaded tokenizer by its `for_tokenizer`."""
AUTO = "auto"
"""The first format that fits the checkpoint's tokenizer."""
CHAT_NAMES: Mapping[str, object] = ChainMap({AUTO: None}, CHAT_FORMATS)  # type: ignore[arg-type]
"""What `policy.chat` may be."""


def new_format(name: str) -> ChatFormat:
    """The format of a policy that is built. Raises `ChatError` for a format that only a checkpoint can define."""
    if name != AUTO:
        return CHAT_FORMATS[name].for_new_tokenizer()
    for kind in CHAT_FORMATS.values():
        try:
            return kind.for_new_tokenizer()
        except ChatError:
            continue
    raise ChatError("no chat format can be built")
