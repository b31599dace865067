"""What was recognised in the policy's chat template, and how does a prompt of the experiment look?"""

from collections.abc import Iterator

from envs.errors import cut
from envs.messages import Message, ToolCall, ToolSpec
from envs.session import Deadlines, Session
from rl.chat.calls import CALL_STYLES
from rl.chat.chat import load_chat
from rl.chat.format import ChatError, conversation_text, plain_text
from rl.chat.formats import new_format
from rl.config.experiment import ExperimentConfig
from rl.doctor.findings import Finding

MAX_PROMPT_CHARACTERS = 1500
CALL = ToolCall("look_up", {"word": "tree"})
TOOL = ToolSpec("look_up", "Look up a word.", {"type": "object", "properties": {"word": {"type": "string"}}})
CALLING = (Message("user", "What is a tree?"), Message("assistant", "", tool_calls=(CALL,)))


def prompt_findings(config: ExperimentConfig) -> Iterator[Finding]:
    """Raises `ChatError`, and `EnvFailure` if the first environment does not open."""
    env_id, environment = next(iter(config.environments.items()))
    deadlines = Deadlines(config.rollout.reset_timeout_s, config.rollout.step_timeout_s)
    with Session.installed(env_id, deadlines) as session:
        messages, _ = session.reset(0, {**environment.every_options[0], "split": "train"})
        tools = session.env.tools
    budget = next(iter(environment.budget))
    if config.policy.path is None:
        format = new_format(config.policy.chat)
        has = (format.has_tools, format.has_thinking)
        prompt = plain_text(format.opening(messages, tools if format.has_tools else (), budget))
        calling = conversation_text(format, CALLING, [TOOL], "off") if format.has_tools else ""
    else:
        chat = load_chat(config.policy.path, config.policy.chat)
        has = (chat.has_tools, chat.has_thinking)
        prompt = chat.text(chat.begin(messages, tools if chat.has_tools else (), budget).prompt_ids)
        calling = chat.text(chat.conversation(CALLING, [TOOL], "off")[0]) if chat.has_tools else ""
    words = [
        f"{'has' if it_has else 'has no'} {what}" for it_has, what in zip(has, ("tools", "think block"), strict=True)
    ]
    if calling:
        words.append(f"writes calls in the style {_style(calling)}")
    found = f"{', '.join(words)}; a prompt of {env_id}:\n{cut(prompt, MAX_PROMPT_CHARACTERS)}"
    yield Finding("chat template", "ok", found)


def _style(text: str) -> str:
    """The name of the style in which the text holds `CALL`."""
    for name, style in CALL_STYLES.items():
        if plain_text(style.write(CALL)) in text:
            return name
    raise ChatError(f"the call is in no known style: {text}")
