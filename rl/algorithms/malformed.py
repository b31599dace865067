"""Which replies are malformed: a tool call that stayed text, or think tags where none belong?

As NeMo RL flags messages (NVIDIA-NeMo/RL, environments/nemo_gym.py): the tags of calls in text or reasoning, a think
tag in the text, or one in the reasoning, which begins and ends without them here.
"""

import re

from envs.messages import Message

TAGS = re.compile(r"</?(?:tool_call|function_call|think)>")


def is_malformed(message: Message) -> bool:
    """Whether this message of the policy is."""
    return any(TAGS.search(text) for text in (message.content, message.reasoning))
