"""Can this experiment run? Pre-flight checks find errors before processes are started or GPUs are reserved."""

import importlib.util
import itertools
from collections.abc import Sequence

from envs.messages import Message, ToolSpec
from envs.session import Deadlines, EnvFailure, Session
from rl.algorithms.shaping.signs import sign_problems
from rl.chat.chat import Chat, fitting_chats, load_chat
from rl.chat.format import ChatError, ChatFormat
from rl.chat.formats import new_format
from rl.config.environments import environment_fix
from rl.config.errors import Problem
from rl.config.experiment import ExperimentConfig
from rl.config.read import ConfigError, check_references
from rl.engine.columns import COLUMNS
from rl.rollouts.judge import announce
from rl.tasks.arms import CurriculumError, arms_of


def preflight(config: ExperimentConfig) -> None:
    """Check that files exist, environments are installed, and each environment opens a task of both splits in time.

    Raises `ConfigError`, which lists every problem. Creating and resetting an environment has the deadline
    `rollout.reset_timeout_s`.
    """
    check_references(config)
    announce(config)
    chat = _chat(config)
    problems = _thinking_problems(config) if chat and not chat.has_thinking else []
    for env_id in config.environments:
        problems += _curriculum_problems(config, env_id)
        problems += _opening_problems(config, env_id, chat)
    problems += _column_problems(config) + _transport_problems(config)
    if problems:
        raise ConfigError(problems)


def check_sinks(config: ExperimentConfig) -> None:
    """Check that the packages of the sinks are installed. Raises `ConfigError` that names each missing one."""
    problems = []
    for sink in config.tracking:
        if sink.package and not is_installed(sink.package):
            wrong = f"the sink {sink.sink} needs the package {sink.package}, which is not installed"
            fix = f"install the pinned one with: make trackers; or: pip install {sink.package}; or remove the sink"
            problems.append(Problem(config.place("tracking"), "tracking", wrong, fix))
    if problems:
        raise ConfigError(problems)


def is_installed(package: str) -> bool:
    """Whether a package is installed, without importing it.

    A folder of that name, which trackers like to leave in the working directory, is none.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _chat(config: ExperimentConfig) -> Chat | ChatFormat | None:
    """What says whether the policy can think and call tools; None for a checkpoint that `check_policy` refuses."""
    if config.policy.path is None:
        return new_format(config.policy.chat)
    try:
        return load_chat(config.policy.path, config.policy.chat)
    except ChatError:
        return None


def _thinking_problems(config: ExperimentConfig) -> list[Problem]:
    """What asks for a thinking budget, which this policy cannot have."""
    asking: list[tuple[str, ...]] = [
        ("environments", env_id, "budget")
        for env_id, environment in config.environments.items()
        if set(environment.budget) != {"unlimited"}
    ]
    if config.sft is not None:
        asking += config.sft.keys_of_thinking
    wrong = (
        "the policy's chat format has no think block, so a thinking budget cannot be enforced, nor an effort asked for"
    )
    fix = "remove the key, or train a policy whose chat template writes reasoning that ends with a control token"
    return [Problem(config.place(*keys), ".".join(keys), wrong, fix) for keys in asking]


def _column_problems(config: ExperimentConfig) -> list[Problem]:
    missing = [name for name in config.columns if name not in COLUMNS]
    if not missing:
        return []
    wrong = f"an algorithm needs the token columns {', '.join(missing)}, which the engine does not give"
    fix = f"choose another algorithm, or add the column to rl.engine.columns; columns: {', '.join(COLUMNS)}"
    return [Problem(config.place("loss"), "loss", wrong, fix)]


def _transport_problems(config: ExperimentConfig) -> list[Problem]:
    """Why weights cannot travel between ranks and engines with these GPUs. Whether the GPUs exist is checked later."""
    learner, rollout = config.learner, config.rollout
    ranks, engines = learner.num_ranks * (learner.gpus,), rollout.num_workers * (rollout.gpus_per_worker,)
    if not (fault := config.weights.fault(ranks, engines)):
        return []
    keys = f"learner.gpus is {learner.gpus:g} and rollout.gpus_per_worker {rollout.gpus_per_worker:g}"
    wrong = f"the transport {config.weights.name} cannot be used where {keys}: {fault}"
    fix = "change what ranks and engines reserve, or choose weights: object_store"
    return [Problem(config.place("weights"), "weights.transport", wrong, fix)]


def _curriculum_problems(config: ExperimentConfig, env_id: str) -> list[Problem]:
    curriculum = config.environments[env_id].curriculum
    if curriculum is None:
        return []
    try:
        arms_of(env_id, config.environments[env_id])
    except CurriculumError as error:
        place = config.place("environments", env_id, "curriculum", "profile")
        fix = f"write one with: python -m envs profile ROLLOUTS --out {curriculum.profile}; or remove the curriculum"
        return [Problem(place, f"environments.{env_id}.curriculum.profile", str(error), fix)]
    return []


def _opening_problems(config: ExperimentConfig, env_id: str, chat: Chat | ChatFormat | None) -> list[Problem]:
    """Open a task of each split, with all options, in a new environment, as a worker does, and begin its dialogue."""
    environment, problems = config.environments[env_id], []
    keys = ("environments", env_id, *environment.options_key)
    deadlines = Deadlines(config.rollout.reset_timeout_s, config.rollout.step_timeout_s)
    for options, split in itertools.product(environment.every_options, ("train", "heldout")):
        with Session.installed(env_id, deadlines) as session:
            try:
                opening, _ = session.reset(0, {**options, "split": split})
            except EnvFailure as failure:
                fix = f"change the options, or find the cause with: python -m envs check {env_id}"
                if failure.outcome == "env_timeout":
                    fix = environment_fix(env_id, failure)
                wrong = f"{env_id} cannot open a {split} task with {options}: {failure}"
                problems.append(Problem(config.place(*keys), ".".join(keys), wrong, fix))
                continue
            place, (lowest, _) = config.place("environments", env_id, "shaping"), session.env.reward_range
            if wrong := sign_problems(env_id, environment.shaping, lowest, place):
                return wrong
            if session.env.tools and chat is not None and not chat.has_tools:
                wrong = f"{env_id} has tools, which the policy's chat format cannot express"
                fix = f"{_ways_to_have_tools(config)}, or remove the environment"
                return [Problem(config.place(*keys[:2]), ".".join(keys[:2]), wrong, fix)]
            if isinstance(chat, Chat) and (wrong := _prompt_problems(config, env_id, chat, opening, session.env.tools)):
                return wrong
    return problems


def _prompt_problems(
    config: ExperimentConfig, env_id: str, chat: Chat, opening: Sequence[Message], tools: Sequence[ToolSpec]
) -> list[Problem]:
    """What is wrong with the prompt of a task: the chat cannot express it, or it leaves no room for a reply."""
    key, longest = f"environments.{env_id}", config.policy.max_tokens
    budgets = config.environments[env_id].budget
    try:
        num_tokens = len(chat.begin(opening, tools, next(iter(budgets)) if chat.has_thinking else "off").prompt_ids)
    except ChatError as error:
        fix = "change the environment's prompts or tools, or train a policy with another chat template"
        return [Problem(config.place("environments", env_id), key, f"a task of {env_id} cannot be told: {error}", fix)]
    if num_tokens < longest:
        return []
    wrong = f"a prompt of {env_id} has {num_tokens} tokens, and {longest} must hold prompts and replies together"
    fix = "raise policy.max_tokens, or make the prompts shorter"
    return [Problem(config.place("policy", "max_tokens"), "policy.max_tokens", wrong, fix)]


def _ways_to_have_tools(config: ExperimentConfig) -> str:
    """How this policy can use tools, in words."""
    path = config.policy.path
    if path is not None and (fitting := [name for name, chat in fitting_chats(path).items() if chat.has_tools]):
        return f"the tokenizer of {path} also fits chat: {' or '.join(fitting)}"
    return "use a policy whose chat template writes tool calls in a style of rl.chat.calls (docs/your_checkpoint.md)"
