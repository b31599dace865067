"""What is checked before a run starts anything? `rl train --dry-run` does this and no more."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from envs.messages import Message
from envs.sandbox import require_level
from envs.session import Deadlines, Session
from rl.chat.chat import Chat
from rl.chat.format import ChatError
from rl.chat.formats import AUTO
from rl.chat.template_alone import TemplateAlone, load_served_chat
from rl.cluster.address import ClusterError
from rl.cluster.cluster import check_cluster
from rl.cluster.shared_memory import NUM_VERSIONS
from rl.config.checkpoint_files import CheckpointFileError, max_context, read_config
from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.plan.memory import FLOAT32, published_bytes, tokens_per_step
from rl.plan.policy import checkpoint_shapes
from rl.policy_checks import check_policy, check_teachers, rate_warning
from rl.preflight import check_sinks, preflight
from rl.rollouts.judge import announce
from rl.runs.folder import RunFolder
from rl.runs.newest import checkpoint_served

TOKEN_BYTES = 26
"""Of a token in the object store: id, whether it was sampled, logprob and version, in a worker's groups and again in
the samples of the step. Experts that are replayed come on top."""
STORE_SLACK = 1.1
"""For indexes, alignment and what the store cannot use between its objects. Assumed."""


def check(config: ExperimentConfig) -> None:
    """All that `train` checks before it starts anything. Raises `ConfigError`."""
    try:
        for check_one in CHECKS.values():
            check_one(config)
    except ClusterError as error:  # nothing has begun yet: the keys do not suit the machine
        raise ConfigError(str(error)) from None
    if config.policy.path is not None:
        print_choices(config, config.policy.path)


def check_checkpoint(config: ExperimentConfig) -> None:
    """Check the files of the policy and of its teachers. Raises `ConfigError`."""
    if config.policy.path is not None:
        check_policy(config.policy.path, config)
    check_teachers(config.policy.path, config)


def _check_stages(config: ExperimentConfig) -> None:
    """Stages on preference pairs are commands of their own; a run that left them out in silence would mislead."""
    commands = {"dpo": "dpo", "reward_model": "reward-model"}
    if problems := [
        Problem(
            config.place(name),
            name,
            "reinforcement learning does not run this stage",
            f"move the section to a file of its own, and run: python -m sft {command} FILE",
        )
        for name, command in commands.items()
        if getattr(config, name) is not None
    ]:
        raise ConfigError(problems)


def check_judge(config: ExperimentConfig) -> None:
    """Check that the judge is there, and has room for what it is asked. Raises `ConfigError`."""
    if config.judge is None:
        return
    announce(config)
    folder, most = config.judge.path, config.judge.max_tokens
    if not (folder / "config.json").is_file() and not RunFolder(folder).holds_run:
        wrong = f"{folder} is neither a checkpoint (no config.json) nor a run"
        fix = "give the folder of a judge's checkpoint"
        raise ConfigError([Problem(config.place("judge", "path"), "judge.path", wrong, fix)])
    checkpoint, _ = checkpoint_served(folder)
    key, place = "judge.max_tokens", config.place("judge", "max_tokens")
    try:
        context, chat = max_context(read_config(checkpoint)), load_served_chat(checkpoint, AUTO)
    except (CheckpointFileError, ChatError) as error:
        fix = "give another judge, or copy the checkpoint again"
        raise ConfigError([Problem(config.place("judge", "path"), "judge.path", str(error), fix)]) from None
    if context is not None and most > context:
        wrong = f"{most} tokens are more than the judge's context of {context}"
        raise ConfigError([Problem(place, key, wrong, f"set it to {context} or less")])
    if problems := [
        Problem(
            place,
            key,
            f"a task of {env_id} alone has {num} tokens, and {most} must hold what is asked, the reply and the verdict",
            "raise it, or make the prompts shorter",
        )
        for env_id, num in _judged_prompts(config, chat)
        if num >= most
    ]:
        raise ConfigError(problems)


def _judged_prompts(config: ExperimentConfig, chat: Chat | TemplateAlone) -> Iterator[tuple[str, int]]:
    """Environments that ask a judge, as they have the option `url`, and how many of its tokens a task of theirs has."""
    deadlines = Deadlines(config.rollout.reset_timeout_s, config.rollout.step_timeout_s)
    for env_id, environment in config.environments.items():
        with Session.installed(env_id, deadlines) as session:
            for options in environment.every_options if "url" in session.env.OPTIONS else ():
                if options.get("url"):
                    continue
                opening, _ = session.reset(0, {**options, "split": "train"})
                asked = [Message("user", "\n".join(message.content for message in opening))]
                yield env_id, chat.num_prompt_tokens(asked)


def _check_room(config: ExperimentConfig) -> None:
    if config.policy.path is not None:
        check_room(config, config.policy.path)


CHECKS: Mapping[str, Callable[[ExperimentConfig], None]] = {
    "other stages": _check_stages,
    # Before others: pre-flight runs environments in this process, and the supervised stage inherits the level.
    "sandbox level": lambda config: require_level(config.rollout.sandbox_level),
    "environments": preflight,
    "sinks": check_sinks,
    "checkpoint": check_checkpoint,
    "judge": check_judge,
    "cluster": lambda config: check_cluster(config, store_bytes(config, config.policy.path)),
    "room for weights": _check_room,
}
"""By what they look at, in their order."""


def print_choices(config: ExperimentConfig, policy_path: Path) -> None:
    """Print which values the kind of policy chose, and a warning about a learning rate that may ruin it."""
    if config.chosen:
        values = ", ".join(f"{key}={value:g}" for key, value in config.chosen.items())
        print(f"defaults of a pretrained checkpoint: {values} (`python -m rl explain KEY` tells their sources)")
    if config.learner.adapter is None and (
        warning := rate_warning(policy_path, "learner.learning_rate", config.learner.learning_rate)
    ):
        print(warning)


def check_room(config: ExperimentConfig, policy_path: Path) -> None:
    """Raise `ClusterError` if there is no room to publish the policy's weights."""
    config.weights.check_room(published_room(config, policy_path))


def published_room(config: ExperimentConfig, policy_path: Path) -> int:
    """Bytes of all versions of the policy's weights that exist at the same time."""
    shapes, learner = checkpoint_shapes(policy_path), config.learner
    version = published_bytes(shapes, config.precision)
    if learner.adapter is not None and learner.adapter.publish == "adapter":  # its base once
        return version + NUM_VERSIONS * FLOAT32 * shapes.num_adapter_weights(learner)
    return NUM_VERSIONS * version


def store_bytes(config: ExperimentConfig, policy_path: Path | None) -> int:
    """Bytes that the run needs of the object store of each node: published versions, if the transport puts them there,
    and a step's samples. A policy that is still to be built counts as nothing.
    """
    token_bytes = TOKEN_BYTES
    if policy_path is not None and config.learner.routing_replay:
        token_bytes += 2 * checkpoint_shapes(policy_path).route_bytes
    needed = token_bytes * tokens_per_step(config)
    if policy_path is not None and config.weights.uses_object_store:
        needed += published_room(config, policy_path)
    return round(STORE_SLACK * needed)
