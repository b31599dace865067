"""Do the rows hold think tags that are trained as plain text, because the chat format has no think block?

Then the policy learns to write the tags letter by letter: no budget can end such thinking, and no reward sees it apart.
"""

from collections.abc import Iterable
from pathlib import Path

from rl.chat.chat import Chat, fitting_chats
from sft.messages import THINK, THINK_END
from sft.rows import Conversation


def plain_thinking(conversations: Iterable[Conversation], chat: Chat, policy: Path | None) -> str:
    """A warning that names the first row, and what to do; empty if all is well.

    With a think block the reader splits tags off, or refuses the row. `policy` is the checkpoint's folder.
    """
    if chat.has_thinking:
        return ""
    found = [conversation.source for conversation in conversations if _has_tags(conversation)]
    if not found:
        return ""
    more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
    fixes = ["remove the thinking from the rows", "take a checkpoint whose chat template writes reasoning"]
    others = fitting_chats(policy) if policy is not None else {}
    if thinking := [name for name, other in others.items() if other.has_thinking]:
        fixes.append(f"set policy.chat: {' or '.join(thinking)}, which has a think block and fits this tokenizer")
    return (
        f"warning: {found[0]}{more}: {THINK} in an assistant's content is trained as plain text, because the policy's"
        f" chat format has no think block\n    fix: {'; or '.join(fixes)}"
    )


def _has_tags(conversation: Conversation) -> bool:
    return any(tag in reply.content for reply in conversation.trained.values() for tag in (THINK, THINK_END))
