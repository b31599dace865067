"""Does an environment have the right form: its id, options, messages, tools and description?"""

import pickle
import warnings

import jsonschema
from gymnasium.utils.env_checker import check_env

from envs.check.subject import DEADLINES, Check, Skipped, Subject, play, require
from envs.event_loop import call_within
from envs.messages import Reply
from envs.player import saying
from envs.session import EnvFailure, Session
from envs.text_env import EnvironmentOptionError


def can_be_made_and_opened(subject: Subject) -> None:
    """The environment can be made, and opens a task of each split. If it cannot, nothing else is checked.
    To fix: correct the error; `python -m envs info ID` shows it too."""
    for split in ("train", "heldout"):
        subject.reset(subject.make(), 0, split)


def follows_gymnasium(subject: Subject) -> None:
    """gymnasium's own `check_env` finds no error.
    To fix: read its message; `reset` must call `super().reset(seed=seed)` and return (messages, info)."""
    env = subject.make().env
    if env.is_async:
        raise Skipped("gymnasium's check does not support asynchronous environments")
    reset = env.reset
    env.reset = lambda *, seed=None, options=None: reset(seed=seed, options={**subject.options, **(options or {})})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call_within(lambda: check_env(env, skip_render_check=True), DEADLINES.reset_s)


def an_unknown_option_is_refused(subject: Subject) -> None:
    """An option that the environment does not have raises `EnvironmentOptionError`.
    To fix: read options with `read_options`, and declare each in `OPTIONS`."""
    wrong = Subject(subject.env_id, {**subject.options, "no such option": 1}, 1)
    try:
        wrong.reset(wrong.make(), 0)
    except EnvFailure as failure:
        if isinstance(failure.error, EnvironmentOptionError):
            return
        raise
    finally:
        wrong.close_all()
    require(False, "options={'no such option': 1} was accepted")


def an_opening_is_a_conversation_that_waits_for_a_reply(subject: Subject) -> None:
    """`reset` returns messages with text; a system message can only be first, the last is from the user or a tool.
    To fix: return a tuple of `Message("user", ...)`."""
    session = subject.make()
    for seed in range(subject.num_seeds):
        opening, _ = subject.reset(session, seed)
        for place, message in enumerate(opening):
            require(message.role != "system" or place == 0, f"seed {seed}: a system message is not the first")
        require(opening[-1].role in ("user", "tool"), f"seed {seed}: the last message is the {opening[-1].role}'s")
        require(bool(opening[-1].content.strip()), f"seed {seed}: the last message is empty")


def the_environment_never_speaks_for_the_policy(subject: Subject) -> None:
    """Messages that `step` returns are from the user or a tool, never from the assistant.
    To fix: the policy's reply is added to the conversation for you; return only what follows it."""
    session = subject.make()
    for seed in range(subject.num_seeds):
        subject.reset(session, seed)
        for _ in range(session.env.max_turns):
            messages, _, terminated, truncated, _ = subject.step(session, Reply("hello"))
            wrong = [message.role for message in messages if message.role not in ("user", "tool")]
            require(not wrong, f"seed {seed}: step returned a message of role {wrong[:1]}")
            if terminated or truncated:
                break
            require(bool(messages), f"seed {seed}: the episode goes on, but step returned no message to reply to")


def tools_have_valid_schemas(subject: Subject) -> None:
    """Each tool has a unique name, a description, and parameters that are a JSON Schema object.
    To fix: give every tool method type hints and a docstring, and every other method a name that begins with `_`."""
    session = subject.make()
    subject.reset(session, 0)
    tools = session.env.tools
    if not tools:
        raise Skipped("there are no tools")
    require(len({tool.name for tool in tools}) == len(tools), "two tools have the same name")
    for tool in tools:
        require(
            bool(tool.description.strip()),
            f"tool {tool.name} has no description; if it is not a tool, name it _{tool.name}",
        )
        require(tool.parameters.get("type") == "object", f"tool {tool.name}: parameters must be an object")
        jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))


def is_described(subject: Subject) -> None:
    """The class has a docstring, and it names every option.
    To fix: write what the task is, what the reward consists of, and what each option means."""
    env = subject.make().env
    described = getattr(env, "inner", env)
    doc = type(described).__doc__ or ""  # its own, not an inherited one
    require(bool(doc.strip()), f"{type(described).__name__} has no docstring")
    unnamed = [name for name in env.OPTIONS if name not in doc and name != "row"]
    require(not unnamed, f"the docstring does not name the option {unnamed[:1]}")


def a_pickled_copy_plays_on(subject: Subject) -> None:
    """A pickled copy of an environment after `reset` earns the same, unless there is something to `close`.
    To fix: keep connections, locks and open files out of the instance, or make them when they are needed."""
    session = subject.make()
    subject.reset(session, 0)
    try:
        pickled = pickle.dumps(session.env)
    except TypeError:
        if session.env.has_close:
            raise Skipped("it keeps something open until close") from None
        raise
    with Session(lambda: pickle.loads(pickled), subject.env_id, DEADLINES) as copy:
        require(play(copy, saying("")) == play(session, saying("")), "the copy earned a different reward")


FORM_CHECKS: tuple[Check, ...] = (
    can_be_made_and_opened,
    follows_gymnasium,
    an_unknown_option_is_refused,
    an_opening_is_a_conversation_that_waits_for_a_reply,
    the_environment_never_speaks_for_the_policy,
    tools_have_valid_schemas,
    is_described,
    a_pickled_copy_plays_on,
)
