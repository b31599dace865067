"""Can this experiment run? Pre-flight checks find errors before processes are started or GPUs are reserved."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from envs.session import Deadlines, EnvFailure, Session
from rl.chat.chat import fitting_formats, load_chat
from rl.chat.format import ChatError
from rl.chat.formats import CHAT_FORMATS, formats_with_tools
from rl.config.errors import Problem
from rl.config.experiment import ExperimentConfig
from rl.config.read import ConfigError, check_references
from rl.engine.columns import COLUMNS
from rl.tasks.curriculum import Curriculum, CurriculumError


def preflight(config: ExperimentConfig) -> None:
    """Check that files exist, environments are installed, and each environment opens a task of both splits in time.

    Raises `ConfigError`, which lists every problem. Creating and resetting an environment has the deadline
    `rollout.reset_timeout_s`.
    """
    check_references(config)
    problems = []
    for env_id in config.environments:
        problems += _curriculum_problems(config, env_id)
        problems += _opening_problems(config, env_id)
    problems += _column_problems(config)
    if problems:
        raise ConfigError(problems)


def check_policy(policy: Path, config: ExperimentConfig) -> None:
    """Check that the folder holds a policy that can be played: a tokenizer for `policy.chat`, and whole weights.

    Only the headers of the weights are read. Raises `ConfigError` that lists every problem.
    """
    place, problems = config.place("policy"), []
    try:
        load_chat(policy, config.policy.chat)
    except ChatError as error:
        fix = "choose a policy.chat that its tokenizer fits, or give another checkpoint"
        problems.append(Problem(place, "policy", str(error), fix))
    fix = "download or copy the checkpoint again"
    weights = sorted(policy.glob("*.safetensors"))
    if not weights and not list(policy.glob("*.bin")):
        problems.append(Problem(place, "policy.path", f"{policy} holds no weights (*.safetensors)", fix))
    for file in weights:
        try:
            with safe_open(file, "numpy"):
                pass
        except (OSError, SafetensorError) as error:
            problems.append(Problem(place, "policy.path", f"{file} is damaged or cut off: {error}", fix))
    if problems:
        raise ConfigError(problems)


def _column_problems(config: ExperimentConfig) -> list[Problem]:
    missing = [name for name in config.columns if name not in COLUMNS]
    if not missing:
        return []
    wrong = f"an algorithm needs the token columns {', '.join(missing)}, which the engine does not give"
    fix = f"choose another algorithm, or add the column to rl.engine.columns; columns: {', '.join(COLUMNS)}"
    return [Problem(config.place("loss"), "loss", wrong, fix)]


def _curriculum_problems(config: ExperimentConfig, env_id: str) -> list[Problem]:
    curriculum = config.environments[env_id].curriculum
    if curriculum is None:
        return []
    try:
        Curriculum(env_id, curriculum)
    except CurriculumError as error:
        place = config.place("environments", env_id, "curriculum", "profile")
        fix = f"write one with: python -m envs profile ROLLOUTS --out {curriculum.profile}; or remove the curriculum"
        return [Problem(place, f"environments.{env_id}.curriculum.profile", str(error), fix)]
    return []


def _opening_problems(config: ExperimentConfig, env_id: str) -> list[Problem]:
    """Open a task of each split in a new environment, as a worker does."""
    key, options = f"environments.{env_id}", config.environments[env_id].options
    deadlines = Deadlines(config.rollout.reset_timeout_s, config.rollout.step_timeout_s)
    problems = []
    for split in ("train", "heldout"):
        with Session.installed(env_id, deadlines) as session:
            try:
                session.reset(0, {**options, "split": split})
            except EnvFailure as failure:
                fix = f"change the options, or find the cause with: python -m envs check {env_id}"
                if failure.outcome == "env_timeout":
                    fix = "raise rollout.reset_timeout_s, or load expensive data once per process, not in each reset"
                place = config.place("environments", env_id, "options")
                wrong = f"{env_id} cannot open a {split} task with {options}: {failure}"
                problems.append(Problem(place, f"{key}.options", wrong, fix))
                continue
            if split == "train" and session.env.tools and not config.policy.chat_format.has_tools:
                wrong = f"{env_id} has tools, which policy.chat {config.policy.chat} cannot express"
                fix = f"{_ways_to_have_tools(config)}, or remove the environment"
                problems.append(Problem(config.place("environments", env_id), key, wrong, fix))
    return problems


def _ways_to_have_tools(config: ExperimentConfig) -> str:
    """How this policy can use tools, in words."""
    path = config.policy.path
    if path is None:
        return f"build the policy for {formats_with_tools()}"
    try:
        fitting = [name for name in fitting_formats(path) if CHAT_FORMATS[name].has_tools]
    except ChatError as error:
        return str(error)
    if fitting:
        return f"the tokenizer of {path} also fits chat: {' or '.join(fitting)}"
    return f"the tokenizer of {path} fits no chat format with tools; use a policy that fits {formats_with_tools()}"
