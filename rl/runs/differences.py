"""Where does a replay first differ from its recording? The group, member, turn and token, and both values."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envs.json_lines import JsonObject
from rl.data_types import Group, Rollout
from rl.engine.record import tokens_hash
from rl.runs.folder import Kind, RunFolder
from rl.runs.saved_rollouts import load_rollouts


class ReplayDiffers(RuntimeError):
    """A replay computed something else than the recorded run."""

    exit_code = 4
    headline = "the replay differs from its recording"


@dataclass(slots=True)
class Recorded:
    """The recorded attempt that a replay repeats, and how far it has come in it."""

    run: RunFolder
    folder: Path
    lines: Sequence[JsonObject]
    _next: int = field(default=0, init=False)

    @property
    def step(self) -> int:
        """The step that was repeated last."""
        return max((line["step"] for line in self.lines[: self._next] if line["kind"] == "update"), default=0)

    def next_of(self, kind: str) -> JsonObject:
        """The next line, which must be of this kind. Raises `ReplayDiffers`."""
        line = self.lines[self._next] if self._next < len(self.lines) else {"kind": "the end of the record"}
        if line["kind"] != kind:
            raise ReplayDiffers(f"after step {self.step} the recorded run went on with {line['kind']}, not with {kind}")
        return line

    def death(self, worker: int, waiting_for: str) -> JsonObject | None:
        """The next line if it says that the worker died while it was waited for."""
        line = self.lines[self._next] if self._next < len(self.lines) else {}
        return (
            line if line.items() >= {"kind": "replaced", "worker": worker, "waiting_for": waiting_for}.items() else None
        )

    def ended_groups(self, worker: int, num_deaths: int) -> frozenset[str]:
        """The training groups that were handed over and were not lost with this worker when it died once more. The same
        groups are evaluated again and again, so their names say nothing.
        """
        deaths = [line["lost"] for line in self.lines if line["kind"] == "replaced" and line["worker"] == worker]
        lost = deaths[num_deaths] if num_deaths < len(deaths) else ()
        handed_over = {group_id for line in self.lines if line["kind"] == "groups" for group_id in line["hashes"]}
        return frozenset(handed_over.difference(lost))

    def has(self, kind: str, **content: object) -> bool:
        """Whether a line that is still to come is of this kind and content."""
        wanted = {"kind": kind, **content}.items()
        return any(wanted <= line.items() for line in map(_plain, self.lines[self._next :]))

    def take(self, line: JsonObject) -> JsonObject | None:
        """Go on by this line; returns the recorded one if it is another."""
        recorded = self.next_of(line["kind"])
        self._next += 1
        return None if json.dumps(recorded, sort_keys=True) == json.dumps(line, sort_keys=True) else recorded


def _plain(line: JsonObject) -> dict[str, object]:
    return {name: value for name, value in line.items() if isinstance(value, str | int)}


def line_difference(recorded: Recorded, before: JsonObject, now: JsonObject, groups: Sequence[Group]) -> str:
    """How a line of the loop differs; `groups` are those it tells of."""
    for group in groups:
        hashes = before["hashes"].get(group.group_id)
        if hashes is None:
            return f"step {now['step']} got group {group.group_id}, which the recorded step did not get"
        for rollout, old, new in zip(group.rollouts, hashes, now["hashes"][group.group_id], strict=True):
            if old != new:
                return _rollout_difference(recorded, rollout)
    names = [name for name in now if before.get(name) != now[name]]
    told = "; ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in names)
    return f"{now['kind']} of step {now.get('step', recorded.step)}: {told}"


def _rollout_difference(recorded: Recorded, rollout: Rollout) -> str:
    where = f"group {rollout.group_id}, member {rollout.member}"
    saved = _saved_rollout(recorded, rollout.group_id, rollout.member)
    if saved is None:
        return f"{where}: another rollout than the recorded one, of which RUN/rollouts has no tokens"
    for turn, (before, now) in enumerate(zip(saved.turns, rollout.turns, strict=False)):
        columns = now.reply.columns
        told = token_difference(before.reply.ids, before.reply.columns, now.reply.ids, columns)
        if told:
            return f"{where}, turn {turn}, {told}"
    ends = [(len(one.turns), one.reward, str(one.outcome), one.num_attempts, one.error) for one in (saved, rollout)]
    names = ("turns", "reward", "outcome", "attempts", "error")
    told = [f"{name} {old!r}, now {new!r}" for name, old, new in zip(names, *ends, strict=True) if old != new]
    return f"{where}: recorded {'; '.join(told)}"


def engine_difference(recorded: Recorded, worker: int, file: Path, error: Exception) -> str:
    """What the worker's engine could not follow, from the file that it wrote; the error says it if there is none."""
    if not file.is_file():
        return f"a worker failed, or waited longer than its deadline: {error}"
    told = json.loads(file.read_text(encoding="utf-8"))
    if "name" not in told:
        return f"worker {worker}: {told['text']}"
    group_id, member, attempt, turn = told["name"].rsplit("/", 3)
    where = f"group {group_id}, member {member}, turn {turn}"
    saved = _saved_rollout(recorded, group_id, int(member))
    if saved is None or saved.num_attempts != int(attempt) or int(turn) >= len(saved.turns):
        return f"{where}, worker {worker}: {told['text']}; RUN/rollouts does not have the recorded tokens"
    reply = saved.turns[int(turn)].reply
    hashed = tokens_hash(reply.ids, reply.columns["logprob"], reply.columns["version"])
    if told["recorded"] not in ("", hashed):  # of another attempt, which trained another group of that task
        return f"{where}, worker {worker}: {told['text']}; RUN/rollouts does not have the recorded tokens"
    token = token_difference(reply.ids, reply.columns, told["ids"], told)
    ended = f"the reply ended in step {told['step']} of the engine of worker {worker}"
    return f"{where}, {token}; {ended}" if token else f"{where}, worker {worker}: {told['text']}"


def token_difference(
    ids: Sequence[int] | np.ndarray,
    columns: Mapping[str, Any],
    now_ids: Sequence[int] | np.ndarray,
    now_columns: Mapping[str, Any],
) -> str:
    """The first token whose id, logprob or version differs, with both values; empty if none does."""
    before, now = _tokens(ids, columns), _tokens(now_ids, now_columns)
    for place in range(max(len(before), len(now))):
        old, new = (tokens[place] if place < len(tokens) else None for tokens in (before, now))
        if old != new:
            return f"token {place}: recorded {_shown(old)}, now {_shown(new)}"
    return ""


Token = tuple[int, np.float32, int]


def _tokens(ids: Iterable[int], columns: Mapping[str, Any]) -> list[Token]:
    logprobs, versions = np.asarray(columns["logprob"], np.float32), columns["version"]
    return [(int(one), logprob, int(version)) for one, logprob, version in zip(ids, logprobs, versions, strict=True)]


def _shown(token: Token | None) -> str:
    if token is None:
        return "the end of the reply"
    return f"id {token[0]}, logprob {token[1]!s}, version {token[2]}"


def _saved_rollout(recorded: Recorded, group_id: str, member: int) -> Rollout | None:
    """The rollout as the recorded run saved it, in the first file that a replay has still to come to."""
    kind: Kind = "train" if group_id.partition("-")[0].isdigit() else "evaluation"
    for step, path in recorded.run.rollouts_files(kind).items():
        if step >= recorded.step:
            for rollout in load_rollouts(path):
                if (rollout.group_id, rollout.member) == (group_id, member):
                    return rollout
    return None
