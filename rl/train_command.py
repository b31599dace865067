"""Which run does `python -m rl train` begin: one that trains and plays, one half of it, or the repetition of a run?"""

from collections.abc import Sequence
from pathlib import Path

import typer

from rl.config.hub import downloaded_snapshot
from rl.config.read import load_config
from rl.importing import without_collector


def check_options(yaml: str, overrides: Sequence[str], resume: Sequence[str], kinds: Sequence[str]) -> None:
    """Raise `BadParameter` for options that do not go together: those given of `--resume` and of `--replay` alike."""
    if len(resume) > 1:
        raise typer.BadParameter("--resume needs a run and --resume-if-any does not; give one of them")
    if len(kinds) > 1:
        raise typer.BadParameter(f"{' and '.join(kinds)} exclude each other; give one of them")
    if resume and kinds and kinds[0] != "--rollouts-from":
        raise typer.BadParameter(f"{kinds[0]} begins a run of its own; give it without {resume[0]}")
    if not yaml and kinds != ["--replay"]:
        raise typer.BadParameter("give an experiment YAML")
    if kinds == ["--replay"] and (files := [one for one in (yaml, *overrides) if one and "=" not in one]):
        raise typer.BadParameter(f"--replay takes the configuration of the run, and no YAML: remove {files[0]}")


def train_or_dry_run(
    yaml: str,
    overrides: Sequence[str],
    *,
    resume: bool | None,
    dry_run: bool,
    rollouts_from: Path | None,
    only_rollouts: bool,
) -> list[str]:
    """Do it; returns what to print at the end. Raises what `rl.train.train` raises."""
    config = load_config(Path(yaml), overrides, fetch=downloaded_snapshot)
    if dry_run:
        from rl.checks import check

        check(config)
        return [f"{yaml}: nothing is wrong with it"]
    if only_rollouts:
        from rl.apart import play_only

        report = play_only(config)
        return [
            f"report: {report}",
            f"rollouts: python -m rl train {yaml} --rollouts-from {report.parent} trains on them",
        ]
    if rollouts_from is not None:
        from rl.apart import train_on_saved

        report = train_on_saved(config, rollouts_from, resume=resume)
    else:
        with without_collector():  # takes seconds to import: mistakes in the YAML come first
            from rl.train import train

        report = train(config, resume=resume)
    export = f"python -m rl export {report.parent} FOLDER"
    return [f"report: {report}", f"policy: {export} writes it for transformers and vLLM"]


def repeat(run: Path, overrides: Sequence[str]) -> list[str]:
    """Repeat a run; returns what to print at the end. Raises what `rl.replay.replay` raises."""
    from rl.replay import replay

    replayed = replay(run, overrides)
    return [f"report: {replayed.report}", f"all {replayed.num_steps} recorded steps were repeated bit for bit"]
