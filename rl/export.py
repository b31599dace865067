"""How does a run become a folder that transformers and vLLM load as it is, with the weights that its engines served?

The checkpoints of a run hold float32 master weights, from which training goes on. An export holds what the engines
computed with: the values that a quantised format stands for, in the dtype of their forward passes.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import GenerationConfig

from envs.errors import InputError
from rl.chat.chat import Chat, load_chat
from rl.config.checkpoint_files import copy_chat
from rl.config.experiment import ExperimentConfig
from rl.config.hub import cached_snapshot, download_command, downloaded_snapshot, is_hub_id
from rl.config.read import ConfigError, load_config
from rl.config.saved_policy import holds_policy, is_adapter, policy_in
from rl.config.served import Served
from rl.learner.served import write_served
from rl.learner.state import LearnerStateError
from rl.runs.checkpoint import latest_checkpoint
from rl.runs.files import remove, storing
from rl.runs.history import History, Line, read_history
from rl.runs.newest import first_policy


class ExportError(InputError):
    """There is nothing to export, it cannot be written where it should, or it cannot be pushed."""


def export_policy(source: Path, out: Path, *, only_adapter: bool = False) -> Path:
    """Write the policy of a run folder, or of one of its checkpoints, to the new folder `out`.

    It holds the weights, the tokenizer with a chat template, defaults for generation, and a model card with the scores
    of the run. An adapter is merged into its base, or with `only_adapter` written alone, in peft's format. `out`
    appears at once and complete. Raises `ExportError`, `ConfigError` and `StorageError`.
    """
    run_dir, policy, slices = _policy_of(source)
    config = load_config(run_dir / "config.yaml")
    with new_folder(out) as partial:
        if only_adapter:
            _write_adapter(policy, partial)
        else:
            _write_weights(policy, partial, config, slices)
        _write_chat(load_chat(policy, config.policy.chat), policy, partial, config)
        (partial / "README.md").write_text(
            model_card(read_history(run_dir), config, only_adapter=only_adapter), encoding="utf-8"
        )
    return out


@contextlib.contextmanager
def served_folder(source: Path) -> Iterator[Path]:
    """The folder of a checkpoint, an export or a hub id; of a run or its checkpoint an export that lasts for the block.

    Raises `ConfigError`.
    """
    if (source / "config.json").is_file():
        yield source
        return
    if is_hub_id(source):
        if (snapshot := cached_snapshot(str(source)) or downloaded_snapshot(str(source))) is None:
            raise ConfigError(f"{source} is not in the cache of the hub; get it with: {download_command(str(source))}")
        yield snapshot
        return
    with tempfile.TemporaryDirectory(prefix="polygym_serve_") as parent:
        try:
            folder = export_policy(source, Path(parent) / "policy")
        except ExportError as error:
            raise ConfigError(f"{error}; nor is it a checkpoint (with config.json)") from None
        yield folder


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill inside the block, which is `out` after it. Raises `ExportError` and `StorageError`."""
    check_is_new(out)
    out = out.resolve()  # `.` has no name
    partial = out.with_name(f"{out.name}.partial")
    remove(partial)
    with storing(out):
        partial.mkdir(parents=True)
        yield partial
        remove(out)
        partial.rename(out)


def check_is_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists already; give a new folder")


def push(folder: Path, repository: str) -> str:
    """Upload an export to the Hugging Face hub as `user/name`; returns its address. Raises `ExportError`."""
    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ExportError(
            f"{folder} is written, but cannot be pushed to {repository}: {error}; log in with `hf auth login`, or push"
            f" it later with `hf upload {repository} {folder}`"
        ) from None
    return str(address)


def _policy_of(source: Path) -> tuple[Path, Path, Path | None]:
    """Run folder and policy folder of what is to be exported.

    Of a checkpoint of slices alone also the folder of these; the policy is then the one that the run started from.
    """
    if (source / "config.yaml").is_file():
        run_dir, checkpoint = source, latest_checkpoint(source / "checkpoints")
        learner = checkpoint.learner if checkpoint else None
    else:
        run_dir, learner = source.parent.parent, source / "learner"
        if not learner.is_dir() or not (run_dir / "config.yaml").is_file():
            raise ExportError(
                f"{source} is neither a run folder (with config.yaml) nor one of its checkpoints (checkpoints/step_*)"
            )
    if learner is not None and holds_policy(policy_in(learner)):
        return run_dir, policy_in(learner), None
    config = load_config(run_dir / "config.yaml").model_copy(update={"run_dir": run_dir})
    try:
        return run_dir, first_policy(config), learner
    except ConfigError as error:
        if learner is None:
            raise
        raise ExportError(
            f"{learner} holds the slices of several ranks, which are read into the policy that the run started from,"
            f" and {config.policy.path} is not there; put it back"
        ) from error


def _write_weights(policy: Path, out: Path, config: ExperimentConfig, slices: Path | None) -> None:
    try:
        write_served(policy, out, config.precision, slices)
    except LearnerStateError as error:
        raise ExportError(f"{error}. It is read into {policy}; put back the policy that the run started from") from None


def _write_adapter(policy: Path, out: Path) -> None:
    if not is_adapter(policy):
        raise ExportError(f"{policy} is a whole policy: the run trained no adapter, or has no checkpoint yet")
    for file in policy.iterdir():
        shutil.copy(file, out / file.name)


def _write_chat(chat: Chat, policy: Path, out: Path, config: ExperimentConfig) -> None:
    """Tokenizer, template and defaults for generation: what sampled the rollouts, for whoever serves the policy."""
    copy_chat(policy, out)
    if not (out / "chat_template.jinja").exists():
        (out / "chat_template.jinja").write_text(chat.template, encoding="utf-8")
    GenerationConfig(
        do_sample=True,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        eos_token_id=list(chat.stop_ids),
        pad_token_id=chat.pad_id,
    ).save_pretrained(out)
    Served.of(config).write(out)


def model_card(history: History, config: ExperimentConfig, *, only_adapter: bool = False) -> str:
    """What the policy is and how it scores, as the README of a model repository."""
    base = config.policy.path.name if config.policy.path else "a policy of random weights"
    library = "peft" if only_adapter else "transformers"
    head = ["---", f"library_name: {library}", "tags: [reinforcement-learning, polygym]", "---", ""]
    algorithm = config.loss.model_dump()["algorithm"]
    steps = history.steps[-1]["step"] if history.steps else 0
    weights = f"A low-rank adapter of {base}" if only_adapter else "Weights as the engines of the run served them"
    said = [
        f"# {history.run.path.resolve().name}",
        "",
        f"Trained with polygym from {base}: {steps:,} steps of {algorithm} on"
        f" {', '.join(config.environments)}. {weights}: {config.precision.name},"
        f" computed in {config.precision.arithmetic}.",
        "",
    ]
    return "\n".join([*head, *said, *_score_table(history)])


def _score_table(history: History) -> list[str]:
    before, after = history.evaluation("before") or {}, history.evaluation("after") or {}
    env_ids = [env_id for env_id in history.env_ids if f"reward/{env_id}" in {**before, **after}]
    if not env_ids:
        return []
    rows = [f"| {env_id} | {' | '.join(_score(line, env_id) for line in (before, after))} |" for env_id in env_ids]
    return ["| held-out tasks of | reward before | after |", "|---|---|---|", *rows, ""]


def _score(line: Line, env_id: str) -> str:
    reward, error = line.get(f"reward/{env_id}"), line.get(f"stderr/{env_id}")
    if reward is None:
        return "-"
    return f"{reward:.3f}" + (f" ± {error:.3f}" if error is not None else "")
