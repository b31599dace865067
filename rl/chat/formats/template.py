"""How is a checkpoint's own jinja chat template used as a chat format?

The template renders every prompt. How a policy thinks and calls tools in a reply is read off what the template writes
for an assistant message: the texts around reasoning, content and calls (`ReplyForm`), and the style of the calls
(`rl.chat.calls`). So one format serves Qwen 2.5 and 3, Qwen3-Coder, Qwen 3.5, the published Nemotron 3 checkpoints,
Llama 3, Gemma, Phi and others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.calls import CALL_STYLES, CallStyle
from rl.chat.calls.style import MalformedCall
from rl.chat.format import ChatError, Pieces, Token, plain_text, with_budget
from rl.chat.template_text import TemplateText
from rl.data_types import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

USER = Message("user", "?")
TEXT, REASONING = "polygym-text", "polygym-reasoning"  # contents that no template writes by itself
CALL = ToolCall("polygym_tool", {"key": "value"})


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """What the template writes between the parts of a reply."""

    opening: Pieces
    """What a prompt needs after the template's own opening of a reply."""
    close: Pieces
    """Between reasoning and text; empty without reasoning."""
    end: str
    """From the end of the text on."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How the template writes calls after the text of a reply."""

    style: CallStyle
    before: tuple[str, str]
    """Before the first call: in a reply without text, and after text."""
    between: str
    after: str
    has_text: bool
    """Whether a reply may have text before its calls."""
    only_one: bool


class TemplateFormat:
    """The chat template that a checkpoint brings along.

    `has_tools` if the template writes calls in a style of `CALL_STYLES` whose control tokens the tokenizer has;
    `has_thinking` if it writes reasoning that ends with a control token. The prompt opens the think block, also for
    policies that would open it themselves, and contains an empty one if thinking is off. Reasoning of earlier turns
    stays in the history, where many templates would take it away. Without a think block, gold replies lose their
    reasoning. Raises `ChatError` for a template that does not end a reply with a control token, or that begins a reply
    in another way than its prompts do.
    """

    def __init__(self, text: TemplateText) -> None:
        self._text = text
        self.template = text.template
        self._forms = {False: self._reply_form(thinking=False)}
        end = text.apart(self._forms[False].end)
        if not end or not isinstance(end[0], Token):
            raise ChatError("the chat template does not end an assistant message with a control token")
        self.end_of_turn: Token = end[0]
        thought = self._reply_form(thinking=True)
        ends = [piece for piece in thought.close if isinstance(piece, Token)]
        self.has_thinking = len(ends) == 1 and ends[0] != self.end_of_turn
        self.end_of_thinking: Token | None = ends[0] if self.has_thinking else None
        if self.has_thinking:
            self._forms[True] = thought
        self._calls = {thinking: self._call_form(thinking) for thinking in self._forms}
        self.has_tools = all(self._calls.values())
        calls = [token for form in self._calls.values() if form for token in form.style.tokens]
        self.tokens: tuple[Token, ...] = (self.end_of_turn, *(ends if self.has_thinking else ()), *calls)

    @classmethod
    def for_tokenizer(cls, tokenizer: "PreTrainedTokenizerFast") -> "TemplateFormat":
        return cls(TemplateText.of(tokenizer))

    @classmethod
    def for_new_tokenizer(cls) -> "TemplateFormat":
        raise ChatError("a policy that is built has no chat template of its own")

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Pieces:
        if not self.has_tools and any(message.tool_calls for message in messages):
            raise ChatError("this chat format has no tool calls, and an earlier reply has some")
        return self._prompt(messages, tools, budget)

    def follow_up(self, messages: Sequence[Message], budget: Budget) -> Pieces:
        calls = (CALL,) if messages and messages[0].role == "tool" and self.has_tools else ()
        before = [USER, Message("assistant", TEXT, tool_calls=calls)]
        pieces = self._prompt([*before, *messages], (), budget, whole_from=len(before))
        said = next((i for i, piece in enumerate(pieces) if _is_of_reply(piece)), None)
        if said is None:
            raise ChatError("the chat template leaves out an assistant message")
        return pieces[pieces.index(self.end_of_turn, said) + 1 :]

    def reply(self, reply: Reply, budget: Budget) -> Pieces:
        if reply.reasoning and budget == "off" and self.has_thinking:
            raise ChatError("the reply has reasoning, but its budget is 'off': remove the reasoning first")
        thinking = self._thinks(budget)
        thought: Pieces = (reply.reasoning, *self._forms[thinking].close) if thinking else ()
        return (*thought, reply.text, *self._written_calls(reply, thinking))

    def parse(self, pieces: Pieces, tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        thinking = self._thinks(budget)
        reasoning = ""
        if thinking:
            if self.end_of_thinking not in pieces:
                return Reply("", reasoning=plain_text(pieces))
            reasoning, pieces = self._without_reasoning(pieces)
        form = self._calls[thinking]
        if not tools or form is None:
            return Reply(plain_text(pieces), reasoning)
        try:
            text, calls = form.style.read(pieces, tools)
        except MalformedCall as error:
            return Reply(plain_text(pieces), reasoning, malformed=str(error), malformed_kind=error.kind)
        if calls:
            text = "" if text == form.before[0] else text.removesuffix(form.before[1])
        return Reply(text, reasoning, calls)

    def _thinks(self, budget: Budget) -> bool:
        return self.has_thinking and budget != "off"

    def _prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget, whole_from: int = 0
    ) -> Pieces:
        thinking = self._thinks(budget)
        told = with_budget(messages, budget) if thinking else messages
        pieces = self._text.pieces(told, tools, prompt=True, thinking=thinking, whole_from=whole_from)
        return (*pieces, *self._forms[thinking].opening)

    def _without_reasoning(self, pieces: Pieces) -> tuple[str, Pieces]:
        """Reasoning, and what follows it, without what the template puts between them."""
        close = self._forms[True].close
        at, end = close.index(self.end_of_thinking), pieces.index(self.end_of_thinking)  # type: ignore[arg-type]
        reasoning = plain_text(pieces[:end]).removesuffix(plain_text(close[:at]))
        rest = pieces[end + 1 :]
        if rest and isinstance(rest[0], str):
            same = takewhile(lambda pair: pair[0] == pair[1], zip(rest[0], plain_text(close[at + 1 :]), strict=False))
            rest = (rest[0][sum(1 for _ in same) :], *rest[1:])
        return reasoning, rest

    def _written_calls(self, reply: Reply, thinking: bool) -> Iterable[Token | str]:
        """Raises `ChatError` for calls that the template has no place for."""
        if not reply.tool_calls:
            return
        form = self._calls[thinking]
        if form is None:
            raise ChatError("this chat format has no tool calls")
        if reply.text and not form.has_text:
            raise ChatError("in this chat format a reply with a tool call has no other text")
        if len(reply.tool_calls) > 1 and form.only_one:
            raise ChatError("in this chat format a reply has at most one tool call")
        yield form.before[bool(reply.text)]
        for number, call in enumerate(reply.tool_calls):
            yield from (form.between if number else "", *form.style.write(call))
        yield form.after

    def _reply_form(self, thinking: bool) -> ReplyForm:
        """Read off what the template writes for a reply with reasoning, or with thinking off."""
        written = self._written(Message("assistant", TEXT, REASONING if thinking else ""), thinking)
        opening, told, rest = written.partition(REASONING) if thinking and REASONING in written else ("", "", written)
        before_text, found, end = rest.partition(TEXT)
        if not found:
            raise ChatError("the chat template leaves out the text of an assistant message")
        if not told:
            opening, before_text = before_text, ""
        return ReplyForm(self._text.apart(opening), self._text.apart(before_text), end)

    def _call_form(self, thinking: bool) -> CallForm | None:
        """Read off what the template writes for replies with calls; None for calls in no known style."""
        for style in CALL_STYLES.values():
            call = plain_text(style.write(CALL))
            if not all(self._text.has(token) for token in style.tokens):
                continue
            for num in (2, 1):
                bare, told = (self._written_with_calls(text, num, thinking) for text in ("", TEXT))
                if bare.count(call) == num and told.count(call) == num:
                    parts = told.split(call)
                    has_text = TEXT in parts[0]
                    return CallForm(
                        style,
                        (bare.split(call)[0], parts[0].partition(TEXT)[2] if has_text else ""),
                        parts[1] if num > 1 else "",
                        parts[-1].partition(self.end_of_turn.text)[0],
                        has_text,
                        only_one=num == 1,
                    )
        return None

    def _written_with_calls(self, text: str, num: int, thinking: bool) -> str:
        """What the template writes after the reasoning; empty for a reply that it refuses."""
        said = Message("assistant", text, REASONING if thinking else "", (CALL,) * num)
        form = self._forms[thinking]
        try:
            written = self._written(said, thinking)
        except ChatError:
            return ""
        begin = plain_text(form.opening) + (REASONING + plain_text(form.close) if thinking else "")
        return written.removeprefix(begin)

    def _written(self, message: Message, thinking: bool) -> str:
        """What the template writes for this reply after the opening of a prompt. Raises `ChatError`."""
        prompt = plain_text(self._text.pieces([USER], prompt=True, thinking=thinking))
        whole = plain_text(self._text.pieces([USER, message], thinking=thinking))
        if not whole.startswith(prompt):
            raise ChatError("the chat template begins a reply in another way than its prompts do")
        return whole[len(prompt) :]


def _is_of_reply(piece: Token | str) -> bool:
    return isinstance(piece, str) and (TEXT in piece or CALL.name in piece)
