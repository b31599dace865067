"""How does the dialogue of one rollout grow as token ids, if ids are only ever appended?

Each step encodes only the new text, so no BPE merge crosses a boundary between turns. The prompt of turn k+1 begins
with the prompt and the reply of turn k, exactly as sampled.
"""

from collections.abc import Sequence

from envs.messages import Message, Reply, ToolSpec
from rl.chat.budget import ThinkingLimit
from rl.chat.format import ChatError, ChatFormat
from rl.chat.token_text import Ids, TokenText
from rl.config.environments import BudgetConfig
from rl.data_types import Budget


class Dialogue:
    """One conversation. Sample from `prompt_ids`, `take` the reply, `say` the next messages, and repeat.

    Tools and budget are those of the whole conversation.
    """

    def __init__(
        self,
        format: ChatFormat,
        text: TokenText,
        stop_ids: Ids,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        budget: Budget,
    ) -> None:
        self._format = format
        self._text = text
        self._stop_ids = stop_ids
        self._tools = tuple(tools)
        self._budget: Budget = budget
        self._is_closed = True
        self._new_ids = text.encode(format.opening(messages, self._tools, budget))
        self._prompt_ids = self._new_ids

    @property
    def prompt_ids(self) -> Ids:
        """All ids so far."""
        return self._prompt_ids

    @property
    def new_ids(self) -> Ids:
        """The ids at the end of `prompt_ids` that came after the last reply; all of them before the first."""
        return self._new_ids

    def take(self, reply_ids: Sequence[int]) -> Reply:
        """Append the sampled reply and parse it.

        Never raises; tool calls that cannot be read are described in `Reply.malformed`.
        """
        self._is_closed = bool(reply_ids) and reply_ids[-1] in self._stop_ids
        self._prompt_ids = (*self._prompt_ids, *reply_ids)
        self._new_ids = ()
        pieces = self._text.decode(reply_ids[:-1] if self._is_closed else reply_ids)
        return self._format.parse(pieces, self._tools, self._budget)

    def say(self, messages: Sequence[Message]) -> Ids:
        """Append the end of a truncated reply, the messages, and the opening of the next reply. Returns the new ids."""
        end = () if self._is_closed else (self._format.end_of_turn,)
        self._new_ids = self._text.encode((*end, *self._format.follow_up(messages, self._budget)))
        self._prompt_ids = (*self._prompt_ids, *self._new_ids)
        return self._new_ids

    def reply_ids(self, reply: Reply) -> Ids:
        """Ids that a policy would sample for this reply, with the stop token. Raises `ChatError` if there are none."""
        return self._text.encode((*self._format.reply(reply, self._budget), self._format.end_of_turn))

    def thinking_limit(self, enforcement: BudgetConfig, room: int) -> ThinkingLimit | None:
        """The limit that the budget sets for a reply of at most `room` tokens; None if nothing is enforced.

        `enforcement.answer_tokens` of the room are reserved for the answer, even if the budget would leave fewer.
        Raises `ChatError` for a budget in tokens if the format has no think block.
        """
        if not isinstance(self._budget, int):
            return None
        if self._format.end_of_thinking is None:
            raise ChatError("a thinking budget needs a chat format with a think block, and this one has none")
        closing_ids = self._text.encode((enforcement.closing_text, self._format.end_of_thinking))
        most = max(1, room - len(closing_ids) - enforcement.answer_tokens)
        num_tokens = min(self._budget, most)
        return ThinkingLimit(
            num_tokens=num_tokens,
            grace_tokens=min(enforcement.grace_tokens, most - num_tokens),
            closing_ids=closing_ids,
            end_id=closing_ids[-1],
            line_end_ids=self._text.line_end_ids,
        )
