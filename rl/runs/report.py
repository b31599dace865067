"""How is the report of a run written? As one self-contained HTML page, with its figures also as PNG files."""

import random
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import yaml

from envs.json_lines import JsonObject
from envs.rollout_file import read_rollouts
from rl.config.canaries import LEVELS
from rl.data_types import Outcome
from rl.runs.drawing import png
from rl.runs.figures import FIGURES
from rl.runs.files import storing, write_atomically
from rl.runs.history import History, Line, read_history
from rl.runs.html import image, page, section, table
from rl.runs.memory import memory_table
from rl.runs.sft_sources import sources_table

NUM_SAMPLE_FILES = 3  # newest files that sample rollouts are chosen from
NUM_NOTES = 20  # newest notes of canaries and pauses


def write_report(run_dir: Path) -> Path:
    """Write `<run_dir>/report.html` and `<run_dir>/figures/*.png` from existing data; the report says what is missing.

    Raises `NoRunError` when the folder is not there or holds no run, `StorageError` when the report cannot be written.
    """
    history = read_history(Path(run_dir))
    name = history.run.path.name or str(history.run.path)
    body = "\n".join(
        [
            f"<p>{escape(summary(history))}</p>",
            section("Held-out tasks, before and after", evaluation_table(history)),
            *(section(title, html) for title, html in _figures(history)),
            *([section("Sources of the supervised stage", sources)] if (sources := sources_table(history)) else []),
            section("Outcomes of all training rollouts", outcome_table(history)),
            section("Canaries", canary_table(history)),
            section("Memory", memory_table(history)),
            section("Rollouts", _rollouts_html(history)),
            section("Configuration", f"<pre>{escape(history.config_text)}</pre>" if history.config_text else ""),
            section("Versions", _versions_html(history)),
        ]
    )
    write_atomically(history.run.report_file, page(name, body))
    return history.run.report_file


def summary(history: History) -> str:
    """The run in one sentence."""
    if not history.steps:
        return "No training step has been written yet."
    last = history.steps[-1]
    seconds = sum(line.get("seconds") or 0.0 for line in history.steps)
    rollouts, tokens = amounts(history)
    return (
        f"{last['step']:,} steps, {rollouts:,.0f} rollouts and {tokens:,.0f} sampled tokens in {_duration(seconds)};"
        f" {len(history.env_ids)} environment{'s' if len(history.env_ids) != 1 else ''}." + _gaps(history)
    )


def amounts(history: History) -> tuple[float, float]:
    """Rollouts and sampled tokens of all steps."""
    rollouts = sum((line.get(f"outcome/{outcome}") or 0) for line in history.steps for outcome in Outcome)
    rates = [(line.get("tokens_per_s/step") or 0.0, line.get("seconds") or 0.0) for line in history.steps]
    return rollouts, sum(rate * seconds for rate, seconds in rates)


def _gaps(history: History) -> str:
    missing = history.missing_steps
    if not missing:
        return ""
    shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    return f" {len(missing)} steps have no metrics, because the run failed between the update and its line: {shown}."


def evaluation_table(history: History) -> str:
    """Reward, accuracy, reply length and counts by environment, before and after; empty without an evaluation."""
    before, after = history.evaluation("before"), history.evaluation("after")
    env_ids = [
        env_id for env_id in history.env_ids if any(line and f"num/{env_id}" in line for line in (before, after))
    ]
    if not env_ids:
        return ""
    head = ["environment"]
    for quantity in ("reward", "accuracy", "reply tokens"):
        head += [f"{quantity} before", "after"]
    head += ["rollouts", "failed"]
    rows = []
    for env_id in env_ids:
        row = [env_id]
        for line in (before, after):
            row.append(_number(line, f"reward/{env_id}", ".3f") + _plus_minus(line, env_id))
        row += [_number(line, f"accuracy/{env_id}", ".1%") for line in (before, after)]
        row += [_number(line, f"reply_tokens/{env_id}", ".1f") for line in (before, after)]
        for count in ("num", "failed"):
            row.append(" / ".join(_number(line, f"{count}/{env_id}", ".0f") for line in (before, after)))
        rows.append(row)
    note = (
        "" if before and after else f'<p class="missing">No evaluation {"before" if not before else "after"} yet.</p>'
    )
    return table(head, rows) + note


def outcome_table(history: History) -> str:
    """Rollouts of all steps by environment and outcome; empty without steps."""
    rows = []
    for env_id in history.env_ids:
        totals = [sum(line.get(f"outcome/{env_id}/{outcome}") or 0 for line in history.steps) for outcome in Outcome]
        if any(totals):
            rows.append([env_id, *(f"{total:,.0f}" if total else "-" for total in totals)])
    return table(["environment", *(str(outcome) for outcome in Outcome)], rows) if rows else ""


def canary_table(history: History) -> str:
    """Value, thresholds and state of each canary in the newest step, and what canaries said; empty without steps."""
    config = (yaml.safe_load(history.config_text) or {}).get("canaries") or {}
    rows = []
    for name, keys in config.items():
        if isinstance(keys, Mapping) and history.steps:
            last, (_, values) = history.steps[-1], history.series(f"canary/{name}")
            row = [name, _number(last, f"canary/{name}", ".4g"), f"{max(values):.4g}" if values else "-"]
            row += [_number(keys, key, "g") for key in ("window", "warn", "mask", "pause", "stop")]
            level = last.get(f"canary/{name}/level")
            rows.append([*row, "-" if level is None else LEVELS[int(level)]])
    notes = [line for line in history.notes if line["text"].startswith(("canary", "pause"))][-NUM_NOTES:]
    said = "\n".join(f"step {line['step']}: {line['text']}" for line in notes)
    head = ["canary", "value", "highest", "window", "warn", "mask", "pause", "stop", "state"]
    return (table(head, rows) if rows else "") + (f"<pre>{escape(said)}</pre>" if said else "")


def sample_rollouts(history: History) -> dict[str, dict[str, JsonObject]]:
    """By environment: a best, a worst and a random rollout of the newest training steps (else evaluations) saved."""
    files = list(history.run.rollouts_files("train").values()) or list(
        history.run.rollouts_files("evaluation").values()
    )
    by_environment: dict[str, list[JsonObject]] = {}
    for path in files[-NUM_SAMPLE_FILES:]:
        for rollout in read_rollouts(path):
            by_environment.setdefault(rollout["task"]["env_id"], []).append(rollout)
    chosen = {}
    for env_id, rollouts in sorted(by_environment.items()):
        counted = [rollout for rollout in rollouts if rollout["reward"] is not None]
        picks = {"random": random.Random(0).choice(rollouts)}
        if counted:
            picks["best"] = max(counted, key=lambda rollout: rollout["reward"])
            picks["worst"] = min(counted, key=lambda rollout: rollout["reward"])
        chosen[env_id] = {kind: picks[kind] for kind in ("best", "worst", "random") if kind in picks}
    return chosen


def _figures(history: History) -> Iterator[tuple[str, str]]:
    folder = history.run.path / "figures"
    with storing(folder):
        folder.mkdir(exist_ok=True)
    for name, (title, draw) in FIGURES.items():
        figure = draw(history)
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            yield title, ""
            continue
        data = png(figure)
        with storing(folder / f"{name}.png"):
            (folder / f"{name}.png").write_bytes(data)
        yield title, image(title, data)


def _number(line: Line | None, name: str, form: str) -> str:
    value = line.get(name) if line else None
    return "-" if value is None else format(value, form)


def _plus_minus(line: Line | None, env_id: str) -> str:
    error = line.get(f"stderr/{env_id}") if line else None
    return "" if error is None else f" ± {error:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _rollouts_html(history: History) -> str:
    parts = []
    for env_id, picks in sample_rollouts(history).items():
        parts += [_rollout_html(f"{env_id}, {kind}", rollout) for kind, rollout in picks.items()]
    return "\n".join(parts)


def _rollout_html(title: str, rollout: JsonObject) -> str:
    reward = "none" if rollout["reward"] is None else f"{rollout['reward']:.3f}"
    facts = f"reward {reward}, {rollout['outcome']}, step {rollout['step']}, budget {rollout['task']['budget']}"
    parts = ", ".join(f"{name} {value:.3g}" for name, value in rollout["reward_parts"].items())
    lines = [f"<details><summary><b>{escape(title)}</b>: {escape(facts)}</summary>"]
    lines += [f"<div>{escape(text)}</div>" for text in (parts, rollout["error"]) if text]
    for message in rollout["messages"]:
        role = message["role"] + (f" {message['name']}" if message["name"] else "")
        lines.append(f'<div class="role">{escape(role)}</div>')
        if message["reasoning"]:
            lines.append(f'<pre class="reasoning">{escape(message["reasoning"])}</pre>')
        if message["content"]:
            lines.append(f"<pre>{escape(message['content'])}</pre>")
        lines += [f"<pre>{escape(call_text(call))}</pre>" for call in message["tool_calls"]]
    return "\n".join([*lines, "</details>"])


def call_text(call: JsonObject) -> str:
    """A tool call as it would be written in Python."""
    return f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['arguments'].items())})"


def _versions_html(history: History) -> str:
    if not history.starts:
        return ""
    last = history.starts[-1]
    facts = {key: value for key, value in last.items() if not isinstance(value, Mapping)}
    rows = [[key, str(value)] for key, value in facts.items()]
    for group in ("packages", "environments"):
        rows += [[name, str(version)] for name, version in (last.get(group) or {}).items()]
    note = ""
    if len(history.starts) > 1:
        changed = any(start.get("packages") != last.get("packages") for start in history.starts)
        note = f"<p>Started {len(history.starts)} times{', with different packages' if changed else ''}.</p>"
    return table(["of the last start", ""], rows) + note
