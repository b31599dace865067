"""Can this experiment run at all? Everything that can be known before processes are started or GPUs are held."""

from envs.event_loop import settle
from envs.registry import make
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
                if split == "train" and env.tools and config.policy.chat == "template":
                    problems.append(
                        f"environments.{env_id}: {env_id} has tools, which policy.chat template cannot express; use"
                        " chat: nemotron, or leave the environment out"
                    )
                settle(env.close())
    if problems:
        raise ConfigError("\n".join(problems))
