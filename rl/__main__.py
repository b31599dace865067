"""The commands: `python -m rl init | plan | doctor | train | chain | evaluate | export | serve | compare | ...`."""

import os
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer

from envs.exit_codes import run_command, say_end
from rl.config.budgets import read_budget
from rl.config.explain import explain
from rl.config.hub import config_snapshot
from rl.config.keys_page import keys_page
from rl.config.read import load_config
from rl.library_output import quieten_libraries
from rl.stop import StopRequested

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Yaml = Annotated[Path, typer.Argument(help="Experiment YAML.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides: key=value ...; sections are merged, key={} empties a section.")
]
Run = Annotated[Path, typer.Argument(help="Run folder.")]


@app.command()
def init(
    yaml: Annotated[Path, typer.Argument(help="New experiment YAML.")],
    env: Annotated[list[str], typer.Option(help="Environment; may be given several times.")],
    policy: Annotated[str, typer.Option(help="Checkpoint's folder or hub id; default: build a tiny policy.")] = "",
) -> None:
    """Write a first experiment for this machine."""
    import torch

    from rl.init import write_experiment

    write_experiment(yaml, policy, env, torch.cuda.device_count())
    typer.echo(f"{yaml}; check it with: python -m rl train {yaml} --dry-run")


@app.command()
def plan(
    yaml: Yaml,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="Card to plan for, such as h100-80gb; default: this machine's.")] = "",
    nodes: Annotated[int, typer.Option(min=0, help="Nodes to plan for; default: no look at nodes.")] = 0,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 8,
) -> None:
    """Print what an experiment needs, by part, and whether it fits cards and nodes. Exit code 1: it does not fit."""
    from rl.plan.nodes import Nodes
    from rl.plan.show import show_plan

    config = load_config(yaml, overrides or [], fetch=config_snapshot)
    if not show_plan(config, gpu, nodes=Nodes(nodes, gpus_per_node) if nodes else None):
        raise typer.Exit(1)


@app.command()
def doctor(
    yaml: Annotated[Path | None, typer.Argument(help="Experiment YAML; without it, only the machine.")] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this machine and, with a YAML, whether the experiment runs on it: one short step, engine and learner.

    Exit codes: 0 nothing failed, 1 something failed, 2 wrong configuration.
    """
    from rl.doctor.command import doctor as examine

    raise typer.Exit(examine(load_config(yaml, overrides or []) if yaml else None, as_json=as_json))


@app.command()
def train(
    yaml: Annotated[str, typer.Argument(help="Experiment YAML; none with --replay.")] = "",
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint in the run folder.")] = False,
    resume_if_any: Annotated[
        bool, typer.Option("--resume-if-any", help="Continue if the run folder holds a run, otherwise begin one.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Check all that is checked before a run; start none.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Repeat this asynchronous run bit for bit, into RUN/replay or run_dir=...")
    ] = None,
    rollouts_from: Annotated[
        Path | None, typer.Option(help="Train on the rollouts that this run saved, without engines.")
    ] = None,
    only_rollouts: Annotated[
        bool, typer.Option("--only-rollouts", help="Play and save rollouts, without training.")
    ] = False,
) -> None:
    """Run an experiment: the supervised stage if it has one, then reinforcement learning, then the report.

    Exit code 4: a replay differs from its recording.
    """
    from rl.train_command import check_options, repeat, train_or_dry_run

    overrides = overrides or []
    resuming = [name for name, on in (("--resume", resume), ("--resume-if-any", resume_if_any)) if on]
    kinds = (("--dry-run", dry_run), ("--replay", replay), ("--only-rollouts", only_rollouts))
    given = [name for name, on in (*kinds, ("--rollouts-from", rollouts_from)) if on]
    check_options(yaml, overrides, resuming, given)
    try:
        if replay is not None:
            told = repeat(replay, [one for one in (yaml, *overrides) if one])
        else:
            told = train_or_dry_run(
                yaml,
                overrides,
                resume=None if resume_if_any else resume,
                dry_run=dry_run,
                rollouts_from=rollouts_from,
                only_rollouts=only_rollouts,
            )
    except StopRequested as stop:
        say_end(f"stopped by {stop}" + ("" if replay or only_rollouts else "; continue with --resume"))
        raise typer.Exit(stop.exit_code) from None
    for line in told:
        typer.echo(line)


@app.command()
def chain(
    yaml: Annotated[Path, typer.Argument(help="YAML of a chain (docs/chains.md).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: run_dir=..., or stages.NAME.set.KEY=value ...")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the first stage that is not finished.")] = False,
    resume_if_any: Annotated[
        bool, typer.Option("--resume-if-any", help="Go on if the folder holds a chain, otherwise begin one.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Check all stages; start none.")] = False,
) -> None:
    """Run the stages of a recipe in order, each from the policy of the one before it, then the report over them all.

    Exit code: that of the first stage that fails.
    """
    from rl.chain.run import check_chain, run_chain

    if resume and resume_if_any:
        raise typer.BadParameter("--resume needs a chain and --resume-if-any does not; give one of them")
    if dry_run:
        check_chain(yaml, overrides or [])
        typer.echo(f"{yaml}: nothing is wrong with its stages")
        return
    try:
        report = run_chain(yaml, overrides or [], resume=None if resume_if_any else resume)
    except StopRequested as stop:
        say_end(f"stopped by {stop}; continue with --resume")
        raise typer.Exit(stop.exit_code) from None
    typer.echo(f"report: {report}")


@app.command()
def evaluate(
    yaml: Yaml,
    overrides: Overrides = None,
    policy: Annotated[
        Path | None, typer.Option(help="Folder of a policy or an adapter; default: the newest checkpoint.")
    ] = None,
    budgets: Annotated[
        str,
        typer.Option(help="Thinking budgets or efforts with which to play every task, such as off,low,64,unlimited."),
    ] = "",
    split: Annotated[str, typer.Option(help="heldout, or train to profile training tasks.")] = "heldout",
) -> None:
    """Play held-out tasks, and print reward and accuracy per environment; write them to RUN/evaluation.json.

    With --budgets, also draw accuracy against thinking budget and rewrite the run's report, which shows it.
    """
    from rl.evaluate import evaluate_policy

    config = load_config(yaml, overrides or [])
    given = [budget.strip() for budget in budgets.split(",") if budget.strip()]
    if given:  # read as overrides, so that they are checked like budgets of the YAML
        weights = "{" + ", ".join(f"{budget}: 1" for budget in given) + "}"
        replaced = [f"environments.{env_id}.budget={weights}" for env_id in config.environments]
        replaced += [f"environments.{env_id}.shaping=[]" for env_id in config.environments]  # evaluations have none
        config = load_config(yaml, [*(overrides or []), *replaced])
    if split not in ("train", "heldout"):
        raise typer.BadParameter(f"--split must be train or heldout, got {split}")
    evaluate_policy(config, policy, [read_budget(budget) for budget in given], split)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    push: Annotated[str, typer.Option(help="Also upload it to the Hugging Face hub, as user/name.")] = "",
    adapter: Annotated[bool, typer.Option("--adapter", help="Write the adapter alone, in peft's format.")] = False,
) -> None:
    """Write a policy as a folder that transformers and vLLM load: weights as they were served, template, model card."""
    from rl.export import export_policy
    from rl.export import push as push_to_hub

    typer.echo(f"policy: {export_policy(source, out, only_adapter=adapter)}")
    if push:
        typer.echo(f"pushed: {push_to_hub(out, push)}")


@app.command()
def int4(
    source: Annotated[Path, typer.Argument(help="What `serve` takes: run, export, checkpoint folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
) -> None:
    """Write a policy as a folder of 4-bit integers, for a judge or a guard in a quarter of the memory."""
    from rl.int4 import write_int4

    typer.echo(f"policy: {write_int4(source, out)}")


@app.command()
def serve(
    source: Annotated[
        str, typer.Argument(help="Run folder, checkpoint of a run, export, checkpoint folder or hub id.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model; default: the folder's name.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest conversation; default: that of training.")] = None,
    max_in_flight: Annotated[int, typer.Option(help="Replies that are sampled at the same time.")] = 64,
    kv_cache_gib: Annotated[float | None, typer.Option(help="As rollout.kv_cache_gib of an experiment.")] = None,
    gpu_memory_share: Annotated[float | None, typer.Option(help="As rollout.gpu_memory_share.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs of the engine (tensor parallelism).")] = 1,
) -> None:
    """Serve a policy as an OpenAI-compatible endpoint, with tools, reasoning and thinking budgets as in training."""
    from rl.serve import engine_memory
    from rl.serve import serve as run

    rollout = engine_memory(max_in_flight, kv_cache_gib, gpu_memory_share, gpus)
    run(source, host=host, port=port, name=name, max_tokens=max_tokens, rollout=rollout)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a chain.")]) -> None:
    """Write the report of a run or of a chain: one HTML page and its figures."""
    from rl.runs.chain_folder import ChainFolder
    from rl.runs.chain_report import write_chain_report
    from rl.runs.report import write_report

    typer.echo((write_chain_report if ChainFolder(run).holds_chain else write_report)(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")],
    page: Annotated[Path | None, typer.Option(help="Also write the tables to this HTML page.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw seeds of a setting together, to this PNG file.")
    ] = None,
) -> None:
    """Print how runs differ: configuration keys, scores on held-out tasks, speed.

    Runs whose folders are named alike but for their seed (NAME_0, NAME_1) are also shown together.
    """
    from rl.runs.compare import print_comparison

    if len(runs) < 2:
        raise typer.BadParameter("give two run folders or more")
    print_comparison(runs, page, figure)


@app.command()
def inspect(
    run: Run,
    env: Annotated[str | None, typer.Option(help="Only this environment.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only this outcome.")] = None,
    step: Annotated[int | None, typer.Option(help="Only this step.")] = None,
    min_reward: Annotated[float | None, typer.Option(help="Only rewards of at least this.")] = None,
    max_reward: Annotated[float | None, typer.Option(help="Only rewards of at most this.")] = None,
    kind: Annotated[str, typer.Option(help="train or evaluation.")] = "train",
    num: Annotated[int, typer.Option(help="Number of rollouts.")] = 5,
) -> None:
    """Read rollouts in the terminal: prompt, turns, tools, reward parts, outcome."""
    from rl.runs.inspect import show_rollouts

    show_rollouts(
        run, env_id=env, outcome=outcome, step=step, min_reward=min_reward, max_reward=max_reward, num=num, kind=kind
    )


@app.command(name="explain")
def explain_command(
    key: Annotated[str, typer.Argument(help="Configuration key, such as train.num_steps.")] = "",
    markdown: Annotated[bool, typer.Option(help="Print all keys as one page of Markdown.")] = False,
) -> None:
    """Print the meaning, unit, default and range of a configuration key."""
    typer.echo(keys_page() if markdown else explain(key), nl=not markdown)


def main() -> int:
    """Run a command and return its exit code (`envs.exit_codes`)."""
    quieten_libraries()
    return run_command(app)


if __name__ == "__main__":
    sys.exit(main())
