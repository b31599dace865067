"""The commands: `python -m envs list | info | new | check | play | eval | pivots | profile | replay | view | ...`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from envs.commands.options import read_options
from envs.exit_codes import run_command
from envs.sandbox import LEVEL_VARIABLE, Level, require_level

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
sandbox = typer.Typer(no_args_is_help=True)
app.add_typer(sandbox, name="sandbox", help="The sandbox for untrusted code.")
console = Console()
Id = Annotated[str, typer.Argument(help="Environment id, or module:Class.")]
Url = Annotated[str, typer.Option(help="OpenAI-compatible base URL, ending in /v1.")]
Options = Annotated[list[str] | None, typer.Argument(help="The environment's options: name=value ...")]
Seed = Annotated[int, typer.Option(help="Seed of the task.")]


@app.callback()
def for_all_commands(
    sandbox_level: Annotated[
        Level | None,
        typer.Option(
            envvar=LEVEL_VARIABLE, help="Weakest sandbox level that may run a policy's code.", show_default=False
        ),
    ] = None,
) -> None:
    """Inspect, check and play environments."""
    if sandbox_level is not None:
        require_level(sandbox_level)


@app.command(name="list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    try_them: Annotated[bool, typer.Option("--try", help="Import each, and report which are broken.")] = False,
) -> None:
    """List all installed environments with package and version; without --try none is imported."""
    from envs.commands.show import list_environments

    list_environments(console, as_json=as_json, try_them=try_them)


@app.command()
def info(env_id: Id, options: Options = None, seed: Seed = 0) -> None:
    """Show an environment: description, options, tools, one task with its gold reply."""
    from envs.commands.show import show_environment

    show_environment(console, env_id, read_options(options), seed)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the environment, such as WordCount.")],
    kind: Annotated[str, typer.Option(help="function, tools or full.")] = "function",
    out: Annotated[Path, typer.Option(help="Folder to write the package into.")] = Path("."),
) -> None:
    """Write a package with an environment, its entry point, tests and README."""
    from envs.commands.new import write_package

    typer.echo(write_package(name, kind, out))


@app.command()
def check(
    env_id: Id,
    options: Options = None,
    seeds: Annotated[int, typer.Option(help="Tasks to try.")] = 20,
    report: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
) -> None:
    """Check whether an environment keeps the contract; exit code 1 if it does not."""
    from envs.commands.check import print_checks

    if not print_checks(console, env_id, read_options(options), seeds, report):
        raise typer.Exit(1)


@app.command()
def play(
    env_id: Id,
    options: Options = None,
    seed: Seed = 0,
    gold: Annotated[
        bool, typer.Option("--gold", help="Play the gold replies: perfect ones that the environment gives.")
    ] = False,
    model: Annotated[str, typer.Option(help="Let this model of an endpoint play (key: OPENAI_API_KEY).")] = "",
    url: Url = "http://localhost:8000/v1",
) -> None:
    """Play one episode in the terminal, in place of the policy, or watch a model play it."""
    from envs.commands.evaluate import Endpoint
    from envs.commands.play import play_environment

    endpoint = Endpoint(url, model, temperature=None, max_tokens=1024, timeout_s=300.0, at_once=1) if model else None
    play_environment(console, env_id, read_options(options), seed, gold=gold, endpoint=endpoint)


@app.command(name="eval")
def evaluate(
    env_id: Id,
    options: Options = None,
    url: Url = "http://localhost:8000/v1",
    model: Annotated[str, typer.Option(help="Name of the model at the endpoint.")] = "",
    policy: Annotated[
        Path | None, typer.Option(help="Instead of an endpoint: a checkpoint's folder, for vLLM.")
    ] = None,
    chat: Annotated[str, typer.Option(help="Chat format: template (its own), nemotron, or auto.")] = "auto",
    tasks: Annotated[int, typer.Option("-n", "--tasks", help="Number of tasks.")] = 20,
    tries: Annotated[int, typer.Option("-k", "--tries", help="Tries per task.")] = 1,
    split: Annotated[str, typer.Option(help="train or heldout.")] = "heldout",
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 1024,
    timeout_s: Annotated[float, typer.Option(help="Deadline of one reply.")] = 300.0,
    at_once: Annotated[int, typer.Option(help="Concurrent episodes.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Save the rollouts here, as JSON lines.")] = None,
) -> None:
    """Evaluate a model behind an endpoint (key: OPENAI_API_KEY), or a checkpoint: mean, pass@k, parts, outcomes."""
    from envs.commands.evaluate import Endpoint
    from envs.commands.evaluate import evaluate as run
    from envs.commands.evaluate_local import LocalPolicy, Tries, evaluate_local

    given = read_options(options)
    if split not in ("train", "heldout"):
        raise typer.BadParameter(f"--split must be train or heldout, got {split}")
    if policy is not None:
        local = LocalPolicy(policy, chat, temperature, max_tokens, timeout_s, at_once)
        rollouts = evaluate_local(console, local, Tries(env_id, given, split, tasks, tries), out)
    elif not model:
        raise typer.BadParameter("name the endpoint's model with --model, or a checkpoint's folder with --policy")
    else:
        endpoint = Endpoint(url, model, temperature, max_tokens, timeout_s, at_once)
        rollouts = run(console, endpoint, env_id, given, split=split, num_tasks=tasks, num_tries=tries, out=out)
    if all(rollout["reward"] is None for rollout in rollouts):
        raise typer.Exit(1)


@app.command()
def profile(
    place: Annotated[Path, typer.Argument(help="Saved rollouts: a file, or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="Save every task's profile here, as JSON lines.")] = None,
    policy: Annotated[
        str, typer.Option(help="Which policy's rollouts, if there are several policies; named as in the table.")
    ] = "",
    max_mean: Annotated[
        float | None,
        typer.Option(help="Save only tasks whose tries differ in reward and have at most this mean: PivotRL's pivots."),
    ] = None,
) -> None:
    """Show pass rate and deviation of each task: which are too easy, too hard, or worth training on."""
    from envs.commands.profile import print_profile

    print_profile(console, place, out, policy, max_mean)


@app.command()
def pivots(
    conversations: Annotated[Path, typer.Argument(help="JSON lines with messages and tools as in chat completions.")],
    out: Annotated[Path, typer.Option(help="The file of rows to write.")],
) -> None:
    """Write each turn of an agent's conversations as a row of tools/Pivot-v0."""
    from envs.commands.pivots import write_pivots

    typer.echo(write_pivots(conversations, out))


@app.command()
def replay(
    place: Annotated[Path, typer.Argument(help="Saved rollouts: a file, or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="Save old and new rewards here, as JSON lines.")] = None,
) -> None:
    """Score saved rollouts again and show what changed; exit code 1 if something did."""
    from envs.commands.replay import replay_file

    if not replay_file(console, place, out):
        raise typer.Exit(1)


@app.command()
def view(
    place: Annotated[Path, typer.Argument(help="Saved rollouts: a file, or a run folder.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("rollouts.html"),
) -> None:
    """Write one HTML page of rollouts: messages, tools, reward parts, tokens; with filters and search."""
    from envs.commands.view import write_page

    typer.echo(write_page(place, out))


@sandbox.command()
def doctor() -> None:
    """Test which layers work on this machine, and try more than eighty escapes at each level."""
    from envs.commands.doctor import examine_sandbox

    if not examine_sandbox(console):
        raise typer.Exit(1)


def main() -> int:
    """Run a command and return its exit code (`envs.exit_codes`)."""
    return run_command(app)


if __name__ == "__main__":
    sys.exit(main())
