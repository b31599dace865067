"""How are the stages of a chain run? One after the other, each as a process of its own, then the report over them all.

    python -m rl chain experiments/nemotron3/nano_chain_tiny.yaml

A chain that was stopped goes on with the stage that was not finished (`--resume`).
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from rl.chain.checks import check_stages, read_stage
from rl.config.chain import load_chain
from rl.config.chain_stage import COMMANDS, ROWS, TRAIN, Stage
from rl.config.errors import ConfigError
from rl.config.read import dump_config, load_config
from rl.process import run_process
from rl.runs.chain_folder import ChainFolder, ListedStage
from rl.runs.files import remove, storing
from rl.runs.folder import RunFolderError, locked
from rl.runs.resume import recomputed
from rl.stop import handled_signals, raise_if_requested


class StageFailed(RuntimeError):
    """A stage's process ended with an error."""

    def __init__(self, stage: Stage, code: int) -> None:
        self.exit_code = code if code > 0 else 128 - code
        super().__init__(
            f"stage {stage.name} ended with exit code {self.exit_code}; see its output above. Mend the cause, then"
            " --resume goes on with this stage"
        )


def check_chain(path: Path, overrides: Sequence[str] = ()) -> None:
    """Check all stages, and begin none. Raises `ConfigError`."""
    check_stages(load_chain(path, overrides)[1])


def run_chain(path: Path, overrides: Sequence[str] = (), *, resume: bool | None = False) -> Path:
    """Check all stages, run those that are not finished, and write the report; its path.

    `resume` None goes on if the folder holds a chain, and otherwise begins one.
    Raises `ConfigError` before anything starts, `StageFailed`, and `StopRequested` after a stop by signal.
    """
    run_dir, stages = load_chain(path, overrides)
    folder = ChainFolder(run_dir)
    with _opened(folder, stages, resume=resume) as left:
        check_stages(left)
        folder.begin([_listed(stage) for stage in stages])
        with handled_signals():
            for stage in left:
                _run(folder, stage, f"stage {stages.index(stage) + 1} of {len(stages)}, {stage.name}")
        from rl.runs.chain_report import write_chain_report  # imports matplotlib

        return write_chain_report(run_dir)


@contextmanager
def _opened(folder: ChainFolder, stages: Sequence[Stage], *, resume: bool | None) -> Iterator[list[Stage]]:
    """Inside the block no other process writes in the folder; gives the stages that are not finished."""
    resume = folder.holds_chain if resume is None else resume
    if resume and not folder.holds_chain:
        raise RunFolderError(f"run_dir: {folder.path} holds no chain to resume; omit --resume to begin it")
    if not resume and folder.holds_chain:
        raise RunFolderError(
            f"run_dir: {folder.path} already holds a chain; continue it with --resume, choose another run_dir=..., or"
            " delete the folder"
        )
    if not resume and (taken := [stage.folder for stage in stages if stage.folder.exists()]):
        raise RunFolderError(f"run_dir: {taken[0]} is there already; choose another run_dir=..., or delete it")
    is_new = not folder.path.exists()
    with storing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder.path):
            yield _left(folder, stages) if resume else list(stages)
    except ConfigError:
        if is_new and not folder.holds_chain:  # nothing was begun
            remove(folder.path)
        raise


def _left(folder: ChainFolder, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that are not finished. Raises `RunFolderError` if a finished one does not fit the chain."""
    left: list[Stage] = []
    for stage in stages:
        again = [other.name for other in stage.sources if other in left]
        if not folder.finished_file(stage.name).is_file():
            if again and stage.folder.exists():
                raise RunFolderError(
                    f"stage {stage.name} was begun from what stage {again[0]} made, which is to run again: delete"
                    f" {stage.folder} too, to begin it again"
                )
            left.append(stage)
            continue
        if not stage.result.exists():
            raise RunFolderError(
                f"stage {stage.name} is finished, but {stage.result} is not there: put it back, or delete"
                f" {stage.folder} to run the stage again"
            )
        if again:
            raise RunFolderError(
                f"stage {stage.name} is finished, but stage {again[0]}, from which it was made, is not: delete"
                f" {stage.folder} too, to run it again"
            )
        if changed := _changed(stage, folder.finished_file(stage.name)):
            listed = "\n".join(f"  - {line}" for line in changed)
            raise RunFolderError(
                f"stage {stage.name} is finished, with another configuration\n{listed}\n"
                f"    fix: set these keys back, set them for other stages alone (stages.NAME.set), or delete"
                f" {stage.folder} to run the stage again"
            )
        typer.echo(f"stage {stage.name} is finished: {stage.result}")
    return left


def _changed(stage: Stage, finished: Path) -> list[str]:
    """What differs from the configuration with which the stage finished."""
    if stage.command != ROWS:
        return recomputed(load_config(finished), read_stage(stage))
    before, now = finished.read_text(encoding="utf-8"), _configuration(stage)
    return [] if before == now else [f"was {before.strip()}", f"now {now.strip()}"]


def _run(folder: ChainFolder, stage: Stage, title: str) -> None:
    """Run the commands of a stage, as far as they are not done, and write down that it is finished."""
    raise_if_requested()
    configuration = _configuration(stage)  # now: its YAML may be edited while it runs
    left = [stage.words]
    if stage.command == TRAIN:
        remove(stage.result)  # of an attempt that was stopped after it
        left = [[*stage.words, "--resume-if-any"], ["rl", "export", str(stage.folder), str(stage.result)]]
    elif stage.command != ROWS and stage.result.exists():  # it appears when it is complete
        left = []
    start, code, stop = time.monotonic(), 0, None
    while left and code == 0 and stop is None:
        words = left.pop(0)
        typer.secho(f"{title}: python -m {shlex.join(words)}", bold=True)
        code, stop = run_process(words)
    is_finished = code == 0 and not left
    folder.save(stage.name, time.monotonic() - start, configuration if is_finished else None)
    if stop is not None:
        raise stop
    if code != 0:
        raise StageFailed(stage, code)


def _configuration(stage: Stage) -> str:
    return shlex.join(stage.words) + "\n" if stage.command == ROWS else dump_config(read_stage(stage))


def _listed(stage: Stage) -> ListedStage:
    source = stage.source.name if stage.source is not None else ""
    return ListedStage(stage.name, stage.command, source, COMMANDS[stage.command].name)
