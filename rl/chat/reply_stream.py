"""How is a reply told while it is being sampled, so that its parts add up to the reply that is parsed in the end?

Text is told as soon as no later token can change what it is: the last white space is held back, because a format may
strip it, and nothing is told that may be part of a tool call.
"""

from collections.abc import Iterable, Sequence

from envs.messages import Reply, ToolSpec
from rl.chat.format import ChatFormat
from rl.chat.token_text import Ids, TokenText
from rl.data_types import Budget


class ReplyStream:
    """Reads one reply. `add` tokens, then `finish`; the texts of all answers add up to the text of the whole reply."""

    def __init__(
        self, format: ChatFormat, text: TokenText, stop_ids: Ids, tools: Sequence[ToolSpec], budget: Budget
    ) -> None:
        self._format, self._text, self._stop_ids = format, text, stop_ids
        self._tools = tuple(tools)
        self._budget: Budget = budget
        end = format.end_of_thinking
        self._end_id = text.control_id(end.text) if end is not None else None
        self._thinks = format.has_thinking and budget != "off"
        self._ids: list[int] = []
        self._run = text.run()
        self._held = ""
        """Decoded since the last `add` that told something; told when it cannot change any more."""
        self._told = {"reasoning": "", "text": ""}
        self._may_be_call = False

    def add(self, ids: Iterable[int]) -> Reply:
        """Reasoning and text that became certain with these tokens."""
        reasoning = text = ""
        for id in ids:
            self._ids.append(id)
            if id in self._stop_ids:
                continue  # the last one
            if self._thinks and id == self._end_id:
                self._thinks = False
                reasoning += self._rest("reasoning", self._parsed().reasoning)
                self._held, self._run = "", self._text.run()
                continue
            self._held += self._run.add(id)
            if self._thinks:
                reasoning += self._certain("reasoning")
            else:
                self._may_be_call |= self._begins_call(id)
                text += "" if self._may_be_call else self._certain("text")
        return Reply(text, reasoning)

    def finish(self) -> Reply:
        """What has not been told yet; with the calls, and what was wrong with them."""
        reply = self._parsed()
        reasoning, text = self._rest("reasoning", reply.reasoning), self._rest("text", reply.text)
        return Reply(text, reasoning, reply.tool_calls, reply.malformed, reply.malformed_kind)

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reply up to the end of its reasoning."""
        if not self._format.has_thinking or self._budget == "off":
            return 0
        return self._ids.index(self._end_id) + 1 if self._end_id in self._ids else len(self._ids)

    def _parsed(self) -> Reply:
        ids = self._ids[:-1] if self._ids and self._ids[-1] in self._stop_ids else self._ids
        return self._format.parse(self._text.decode(ids), self._tools, self._budget)

    def _begins_call(self, id: int) -> bool:
        """Calls begin with a control token, or are the whole reply as a JSON object."""
        return bool(self._tools) and (
            self._text.is_control(id) or (not self._told["text"] and self._held.lstrip().startswith("{"))
        )

    def _certain(self, part: str) -> str:
        """What is held, without the white space at its end."""
        certain = self._held.rstrip()
        if not certain:
            return ""
        if part == "text" and not self._told["text"]:
            certain = self._parsed().text.rstrip()  # the format strips what follows the reasoning
        self._held = self._held[len(self._held.rstrip()) :]
        self._told[part] += certain
        return certain

    def _rest(self, part: str, whole: str) -> str:
        """What of this part has not been told."""
        told, self._told[part] = self._told[part], whole
        return whole[len(told) :]
