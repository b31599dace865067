"""How does a checkpoint's own jinja template render a conversation, with contents that stay plain text?

Contents are put into the rendered text in place of marks, so the template never sees them, and a control token's text
in them stays text. What the template does to contents of a role (strip them, quote them as JSON) is found out once,
and done to each.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from envs.messages import Message, ToolSpec
from rl.chat.format import ChatError, Pieces, Token, json_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Render = Callable[..., str]
"""Renders messages, as OpenAI-like dicts, to text. Raises `ChatError` for messages that the template refuses."""
DATE = datetime(2024, 7, 26)
CLOCK: Mapping[str, Any] = {"date_string": "26 Jul 2024", "strftime_now": DATE.strftime}
"""Arguments of templates that tell the date, the one that Llama's tell without a clock, or ask transformers' clock for
it: a prompt must not depend on the day."""
ROLES = ("system", "user", "assistant", "tool")
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private-use characters, which no template writes
_EDGE = "\n\n\n\u2029"  # white space that tells stripping of line breaks from stripping of all white space


class TemplateText:
    """Renders conversations with one template. `special` are the texts of the tokenizer's control tokens."""

    def __init__(self, template: str, render: Render, special: Iterable[str]) -> None:
        self.template = template
        self._render = render
        self._tokens = frozenset(special)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # without tokens, no match
        self._cleaned = {role: self._cleaning(role) for role in ROLES}

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> "TemplateText":
        """Raises `ChatError` if the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            raise ChatError("the tokenizer has no chat template")

        def render(messages: list[dict[str, Any]], **arguments: Any) -> str:
            try:
                return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments, **CLOCK))  # type: ignore[arg-type]
            except Exception as error:  # a template is a program, and many refuse an order of roles
                roles = ", ".join(message["role"] for message in messages)
                raise ChatError(f"the chat template refuses messages of the roles {roles}: {error}") from None

        special = [token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()]
        return cls(str(tokenizer.chat_template), render, special)

    def pieces(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        prompt: bool = False,
        thinking: bool = True,
        whole_from: int | None = None,
    ) -> Pieces:
        """The conversation; with `prompt`, also the opening of the next reply.

        Raises `ChatError` for messages that the template refuses, for tools that hold a control token, and from the
        message number `whole_from` on for contents that the template leaves out. Reasoning may be left out.
        """
        marked = [self._marked(number, message) for number, message in enumerate(messages)]
        contents = [
            text
            for message in messages
            for text in (self._cleaned.get(message.role, str)(message.content), message.reasoning.strip("\n"))
        ]
        text = self._text(marked, tools, prompt, thinking)
        if whole_from is not None:
            _check_whole(text, messages, whole_from)
        return self._filled(text, contents)

    def has(self, token: Token) -> bool:
        """Whether the tokenizer has this control token."""
        return token.text in self._tokens

    def apart(self, text: str) -> Pieces:
        """Text of the template's own, with its control tokens told apart."""
        return self._filled(text, ())

    def _text(self, messages: list[dict[str, Any]], tools: Sequence[ToolSpec], prompt: bool, thinking: bool) -> str:
        return self._render(
            messages,
            tools=[self._described(tool) for tool in tools] or None,
            add_generation_prompt=prompt,
            enable_thinking=thinking,
        )

    def _filled(self, text: str, contents: Sequence[str]) -> Pieces:
        """Rendered text taken apart into control tokens, template text, and contents in place of their marks."""
        pieces: list[Token | str] = []
        place = 0
        for found in re.finditer(f"{_MARK.pattern}|{self._special.pattern}", text):
            pieces += [text[place : found.start()], contents[int(found[1])] if found[1] else Token(found[0])]
            place = found.end()
        return tuple(piece for piece in (*pieces, text[place:]) if piece != "")

    def _marked(self, number: int, message: Message) -> dict[str, Any]:
        """The message with marks in place of its texts; empty ones stay, as templates look whether there is any."""
        marked: dict[str, Any] = {"role": message.role, "content": _mark(2 * number) if message.content else ""}
        if message.reasoning:
            marked["reasoning_content"] = _mark(2 * number + 1)
        if message.tool_calls:
            marked["tool_calls"] = [
                function_call(call.name, self._json(call.arguments, f"a call of {call.name}"))
                for call in message.tool_calls
            ]
        if message.name:
            marked["name"] = self._json({"name": message.name}, "the name of a message")["name"]
        return marked

    def _described(self, tool: ToolSpec) -> dict[str, Any]:
        described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        return {"type": "function", "function": self._json(described, f"the schema of tool {tool.name}")}

    def _json(self, value: Mapping[str, Any], what: str) -> Any:
        """The value as plain JSON types; the template sees it, so it must hold no control token."""
        text = json_text(dict(value), what, ascii=False)
        if found := self._special.search(text) or _MARK.search(text):
            raise ChatError(f"{what} holds the control token {found[0]}, which the template would write as such")
        return json.loads(text)

    def _cleaning(self, role: str) -> Callable[[str], str]:
        """What the template does to contents of this role."""
        content = f'{_EDGE}{_mark(0)}"{_mark(1)}{_EDGE[::-1]}'
        before: list[dict[str, Any]] = [{"role": "user", "content": "x"}] if role in ("assistant", "tool") else []
        if role == "tool":
            before.append({"role": "assistant", "content": "", "tool_calls": [function_call("x", {})]})
        after = [{"role": "user", "content": "x"}] if role == "system" else []
        try:
            text = self._text([*before, {"role": role, "content": content}, *after], (), False, True)
            left, middle, right = text.partition(_mark(0))[0], text.split(_mark(0))[1], text.split(_mark(1))[1]
        except (ChatError, IndexError):
            return str  # the template cannot say this role; it tells so when it has to
        if middle.startswith('\\"'):
            return lambda text: json.dumps(text, ensure_ascii=False)[1:-1]
        characters = {
            side: "" if kept.endswith(_EDGE) else "\n" if kept.endswith(_EDGE[-1]) else None
            for side, kept in (("left", left), ("right", right[: len(_EDGE)][::-1]))
        }
        return lambda text: text.lstrip(characters["left"]).rstrip(characters["right"])


def _check_whole(text: str, messages: Sequence[Message], start: int) -> None:
    """Raises `ChatError` for contents whose mark is not in the rendered text."""
    written = {int(number) for number in _MARK.findall(text)}
    for number, message in enumerate(messages):
        if number >= start and message.content and 2 * number not in written:
            after = f" after one of role {messages[number - 1].role}" if number else ""
            raise ChatError(
                f"the chat template leaves out a message of role {message.role}{after}, {message.content!r:.60}:"
                " this checkpoint cannot be told it there"
            )


def function_call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as templates take it."""
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _mark(index: int) -> str:
    return f"\ue000{index}\ue001"
