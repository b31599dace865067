"""How are saved rollouts shown in the terminal?"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from envs.errors import InputError
from envs.json_lines import JsonObject
from envs.rollout_file import read_rollouts
from rl.data_types import Outcome
from rl.runs.folder import RunFolder
from rl.runs.report import call_text
from rl.runs.saved_rollouts import rollout_from

ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}


class NothingToShowError(InputError):
    """No saved rollout matches the filters."""


def show_rollouts(
    run_dir: Path,
    *,
    env_id: str | None = None,
    outcome: str | None = None,
    step: int | None = None,
    min_reward: float | None = None,
    max_reward: float | None = None,
    num: int = 5,
    kind: str = "train",
    console: Console | None = None,
) -> int:
    """Print the newest `num` rollouts that fit, newest step first, and return how many were printed.

    Raises `NothingToShowError`, which lists what exists, if none fits.
    """
    if kind not in ("train", "evaluation"):
        raise NothingToShowError(f"kind {kind!r} is not one of train, evaluation")
    if outcome is not None and outcome not in set(Outcome):
        raise NothingToShowError(f"outcome {outcome!r} is not one of {', '.join(Outcome)}")
    files = RunFolder(Path(run_dir)).rollouts_files("train" if kind == "train" else "evaluation")
    if not files:
        raise NothingToShowError(f"{run_dir} has no saved {kind} rollouts; is it a run folder, and has a step ended?")
    if step is not None and step not in files:
        raise NothingToShowError(f"step {step} has no saved {kind} rollouts; steps: {min(files)} to {max(files)}")
    console = console or Console(highlight=False)
    chosen = [files[step]] if step is not None else list(reversed(files.values()))
    seen: dict[str, list[float | None]] = {}
    num_shown = 0
    for rollout in _all(chosen):
        seen.setdefault(f"{rollout['task']['env_id']} {rollout['outcome']}", []).append(rollout["reward"])
        if _fits(rollout, env_id, outcome, min_reward, max_reward):
            print_rollout(rollout, console)
            num_shown += 1
        if num_shown == num:
            break
    if not num_shown:
        there_are = "; ".join(f"{what}: {_numbers(rewards)}" for what, rewards in sorted(seen.items())) or "none"
        raise NothingToShowError(f"no saved {kind} rollout matches; there are: {there_are}")
    return num_shown


def _numbers(rewards: Sequence[float | None]) -> str:
    """How many rollouts there are, and which rewards they have."""
    given = [reward for reward in rewards if reward is not None]
    earned = f"rewards {min(given):.3g} to {max(given):.3g}" if given else "no rewards"
    return f"{len(rewards)} with {earned}"


def print_rollout(rollout: JsonObject, console: Console) -> None:
    """One rollout: what it is, its messages, how it was scored and sampled."""
    task = rollout["task"]
    title = f"{task['env_id']}  step {rollout['step']}  task {task['ordinal']}  try {rollout['member']}"
    console.print(Rule(Text(title, style="bold"), align="left"))
    for message in rollout["messages"]:
        _print_message(message, console)
    reward = "none" if rollout["reward"] is None else f"{rollout['reward']:.3f}"
    parts = "".join(f"  {name} {value:.3g}" for name, value in rollout["reward_parts"].items())
    counts = rollout["outcome"] in [outcome for outcome in Outcome if outcome.counts]
    console.print(Text(f"reward {reward}{parts}", style="bold"))
    console.print(Text(f"outcome {rollout['outcome']}", style="" if counts else "bold red"))
    if rollout["error"]:
        console.print(Text(f"error {rollout['error']}", style="red"))
    console.print(Text(_facts(rollout), style="dim"))


def _facts(rollout: JsonObject) -> str:
    task, turns = rollout["task"], rollout_from(rollout).turns
    versions = sorted({version for turn in turns for version in turn.reply.columns["version"].tolist()})
    tokens = " + ".join(f"{len(turn.prompt)}>{len(turn.reply)} {turn.finish}" for turn in turns)
    forced = sum(turn.num_forced for turn in turns)
    facts = [
        f"policy version {', '.join(map(str, versions)) or 'none'}",
        f"tokens (new in the prompt>reply) {tokens or 'none'}",
        f"forced {forced}" if forced else "",
        *(f"malformed calls ({kind}) {num}" for kind, num in rollout["malformed_calls"].items()),
        f"attempts {rollout['num_attempts']}",
        f"{rollout['seconds']:.2f} s",
        f"{task['split']} seed {task['seed']} budget {task['budget']}",
    ]
    return "  ".join(fact for fact in facts if fact)


def _print_message(message: JsonObject, console: Console) -> None:
    role = message["role"]
    console.print(Text(f"{role} {message['name']}".strip(), style=ROLE_STYLES.get(role, "")))
    if message["reasoning"]:
        console.print(Text(message["reasoning"], style="dim italic"))
    if message["content"]:
        console.print(Text(message["content"]))
    for call in message["tool_calls"]:
        console.print(Text(f"-> {call_text(call)}", style="yellow"))


def _all(files: list[Path]) -> Iterator[JsonObject]:
    for path in files:
        yield from read_rollouts(path)


def _fits(
    rollout: JsonObject,
    env_id: str | None,
    outcome: str | None,
    min_reward: float | None,
    max_reward: float | None,
) -> bool:
    reward = rollout["reward"]
    if (min_reward is not None or max_reward is not None) and reward is None:
        return False
    return (
        env_id in (None, rollout["task"]["env_id"])
        and outcome in (None, rollout["outcome"])
        and (min_reward is None or reward >= min_reward)
        and (max_reward is None or reward <= max_reward)
    )
