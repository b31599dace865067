"""How is a recorded run repeated bit for bit? `python -m rl train --replay RUN`.

Each recorded attempt is repeated in turn with engines of its own, up to the step from which the next one went on. That
one goes on from the replay's checkpoint of this step, with the groups that the recorded run had kept. What the engines
do is compared reply by reply, what the loop does line by line (`rl.runs.recording`).
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rl.checks import check
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.parts import LearnerDied, Parts, engines, started
from rl.runs.files import remove, storing
from rl.runs.folder import RunFolder, RunFolderError
from rl.runs.recording import Attempt, Recording, read_attempts
from rl.runs.report import write_report
from rl.runs.resume import changed_keys
from rl.stop import handled_signals
from rl.train import begin_evaluation, end_evaluation, train_with

logger = logging.getLogger(__name__)
MAY_CHANGE = ("run_dir", "tracking", "ray.*", "*_timeout_s", "train.checkpoint_every", "train.keep_checkpoints")
"""Keys that may differ in a replay: where it runs, not what it computes."""


class NotRepeatableError(ConfigError):
    """The run depends on what is not recorded."""


class ReplayEnded(RuntimeError):
    """All that can be repeated was repeated bit for bit, and the recorded run went on."""

    headline = "the replay ended before its recording"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was repeated."""

    report: Path
    num_steps: int


def replay(run_dir: Path, overrides: Sequence[str] = ()) -> Replayed:
    """Repeat the run into `run_dir/replay`, or the override `run_dir`.

    Raises `ConfigError` before anything starts, `ReplayDiffers` at the first difference, and `ReplayEnded` if the
    recorded run went on after what can be repeated, because the record of an attempt is missing.
    """
    recorded = RunFolder(run_dir)
    attempts = read_attempts(recorded)
    configs = [_config(attempt, run_dir, overrides) for attempt in attempts]
    for attempt, config in zip(attempts, configs, strict=True):
        check_repeatable(attempt, config)
    check(configs[0])
    with RunFolder.open(configs[0]) as folder, handled_signals():
        folder.link_sft(recorded)
        step = 0
        for attempt, config in zip(attempts, configs, strict=True):
            if not attempt.is_empty:
                step = _repeat(attempt, config, folder)
            if attempt.end:
                raise ReplayEnded(
                    f"steps 1 to {step} were repeated bit for bit; then {attempt.end} in the recorded run"
                )
        return Replayed(write_report(folder.path), step)


def check_repeatable(attempt: Attempt, config: ExperimentConfig) -> None:
    """Raise `NotRepeatableError` if the attempt depends on what the record does not hold."""
    if config.judge is not None:
        raise NotRepeatableError(
            f"{attempt.config_file} has a judge, whose answers are not recorded: which questions share a step of its"
            " engine depends on the clock. Without --replay, --rollouts-from RUN repeats what the learner did"
        )
    if missing := attempt.missing_files(config.rollout.num_workers):
        raise NotRepeatableError(
            f"{missing[0]} is missing, in which the engine of a worker wrote what it did (RUN/run.log says why, if it"
            " could not be written): this run cannot be repeated"
        )


def _repeat(attempt: Attempt, config: ExperimentConfig, folder: RunFolder) -> int:
    """Repeat one attempt; returns the step after it."""
    remove(folder.spool)
    if attempt.kept.is_dir():
        with storing(folder.spool):
            shutil.copytree(attempt.kept, folder.spool / "recorded")
    folder.go_back(config.train.num_steps)
    recording = Recording(folder, attempt)
    deaths = [LearnerDied("it died in the recorded run")] if attempt.is_again else []
    with engines(config, folder) as served, started(served, deaths, recording) as parts:
        train_with(parts)
        _evaluate_last(parts)
        return parts.step


def _evaluate_last(parts: Parts) -> None:
    """Evaluate the last step if the recorded attempt still did, so that the next one found it made."""
    begin_evaluation(parts, "step")
    if parts.evaluation:
        # The engines sampled replies of the groups of the next step meanwhile, which was lost.
        parts.recording.collected(parts.step + 1, parts.collector.collect())
        end_evaluation(parts)


def _config(attempt: Attempt, run_dir: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The attempt's configuration with another run folder. Raises `ConfigError`."""
    config = load_config(attempt.config_file, [f"run_dir={run_dir / 'replay'}", *overrides])
    recorded = load_config(attempt.config_file)
    changed = [key for key in changed_keys(recorded, config) if not any(fnmatch(key, one) for one in MAY_CHANGE)]
    if changed:
        raise RunFolderError(
            f"a replay computes what the recorded run did, so {', '.join(changed)} cannot be changed; remove the"
            f" override. Keys that may be: {', '.join(MAY_CHANGE)}"
        )
    return config
