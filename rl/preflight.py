"""Can this experiment run at all? Everything that can be known before processes are started or GPUs are held."""

from envs.event_loop import settle
from envs.registry import make
from rl.chat.chat import fitting_formats
from rl.chat.format import ChatError
from rl.chat.formats import CHAT_FORMATS, formats_with_tools
from rl.config.experiment import ExperimentConfig
from rl.config.read import ConfigError, check_references
from rl.tasks.curriculum import Curriculum, CurriculumError


def preflight(config: ExperimentConfig) -> None:
    """Raises `ConfigError` for missing files, unknown environments, and environments that cannot open a task."""
    check_references(config)
    problems = []
    for env_id, environment in config.environments.items():
        if environment.curriculum is not None:
            try:
                Curriculum(env_id, environment.curriculum)
            except CurriculumError as error:
                problems.append(f"environments.{env_id}.curriculum.profile: {error}")
        for split in ("train", "heldout"):
            try:
                env = make(env_id)
                settle(env.reset(seed=0, options={**environment.options, "split": split}))
            except Exception as error:
                problems.append(
                    f"environments.{env_id}.options: {env_id} cannot open a {split} task with"
                    f" {environment.options}: {type(error).__name__}: {error}"
                )
            else:
                if split == "train" and env.tools and not config.policy.chat_format.has_tools:
                    problems.append(
                        f"environments.{env_id}: {env_id} has tools, which policy.chat {config.policy.chat} cannot"
                        f" express; {_ways_to_have_tools(config)}, or leave the environment out"
                    )
                settle(env.close())
    if problems:
        raise ConfigError("\n".join(problems))


def _ways_to_have_tools(config: ExperimentConfig) -> str:
    """What this policy offers to somebody who needs tools."""
    path = config.policy.path
    if path is None:
        return f"build the policy for {formats_with_tools()}"
    try:
        fitting = [name for name in fitting_formats(path) if CHAT_FORMATS[name].has_tools]
    except ChatError as error:
        return str(error)
    if fitting:
        return f"the tokenizer of {path} also fits chat: {' or '.join(fitting)}"
    return f"the tokenizer of {path} fits no chat format with tools; take a policy that fits {formats_with_tools()}"
