"""How does an engine repeat a recorded run bit for bit? It does what the record says (`rl.engine.record`).

On CPUs the bits of a token depend on the requests that share its step and on the weights, and on nothing else. So the
engine waits before a step until exactly the recorded requests are there, and holds new weights back until their step.
It does not wait for what cannot come: a request of a rollout that has ended, or the end of one that asks for more.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from envs.json_lines import JsonObject, read_lines
from rl.engine.clock import Place
from rl.engine.protocol import EngineError
from rl.engine.record import Load, Work, reply_hash
from rl.engine.request import Request


class ScriptError(EngineError):
    """The engine cannot do what the record says: what it sampled, or what it was asked for, differs."""


class Script:
    """What an engine is to do, read from a record. The engine's thread asks `next`, and tells of each step."""

    def __init__(
        self, path: Path, difference: Path, timeout_s: float, ended_groups: Collection[str] = frozenset()
    ) -> None:
        """`difference` is the file for what differs first. `timeout_s` bounds each wait for what the record names.
        Groups that ended on the recorded engine asked for no more than it says.
        """
        self.timeout_s = timeout_s
        self._difference = difference
        self._lines = read_lines(path)
        self._line: JsonObject | None = next(self._lines, None)
        self._step = 0
        self._ended_groups = ended_groups
        self._names = {name for line in read_lines(path) for name in line.get("in", ())} if ended_groups else set()
        self._places: dict[str, Place] = {}
        """Of the last request of each rollout."""

    def next(self, asked: Collection[Request], running: Collection[Request], loads: list[Load]) -> Work | str | None:
        """The next work, or in words what it waits for; None after the end of the record.

        After the end new weights are loaded at once, because nobody waits for a step. Raises `ScriptError`.
        """
        line = self._line
        for request in asked:
            self._check_recorded(request.params.name)
        if line is None:
            return Work(load=loads[0]) if loads else None
        if line["step"] > self._step:
            if not running:
                raise self._differs(f"all replies ended before step {line['step']} of the engine")
            return Work()
        if "load" in line:
            return self._load(line["load"], loads)
        if "out" in line:
            sampling = _by_name(running)
            self._forward()
            return Work(withdrawn=[self._found(name, sampling) for name in line["out"]])
        waiting = _by_name(asked)
        for name in line["in"]:
            if name not in waiting:
                self._check_may_come(name, running)
                return f"the request {name}, which was admitted before step {self._step} of the engine"
        admitted = [waiting[name] for name in line["in"]]
        self._places |= {_rollout_of(request.params.name): request.place for request in admitted}
        return Work(admitted=admitted)

    def stepped(self, ended: Collection[Request], running: Collection[Request]) -> None:
        """A step was made; `running` are the requests that go on. Raises `ScriptError` if other replies ended in it."""
        is_told = self._line is not None and self._line["step"] == self._step
        recorded: Mapping[str, str] = self._line["ended"] if self._line is not None and is_told else {}
        now = {name: reply_hash(request) for name, request in _by_name(ended).items()}
        found = _by_name([*ended, *running])
        for name in sorted(recorded.keys() | now.keys()):
            if recorded.get(name) != now.get(name):
                told = f"the reply {name} differs in step {self._step} of the engine"
                raise self._differs(told, found.get(name), recorded.get(name, ""))
        if is_told:
            self._forward()
        self._step += 1

    def waited(self, what: str) -> ScriptError:
        """The error of a wait that took too long."""
        return self._differs(f"the engine waited {self.timeout_s:g} s for {what}")

    def _load(self, version: int, loads: list[Load]) -> Work | str:
        if not loads:
            return f"version {version} of the weights, which was loaded before step {self._step} of the engine"
        if loads[0][0].version != version:
            raise self._differs(f"version {loads[0][0].version} of the weights came in place of version {version}")
        self._forward()
        return Work(load=loads[0])

    def _check_may_come(self, name: str, running: Collection[Request]) -> None:
        """Raise `ScriptError` if the rollout of this request still waits for its reply before, or has ended."""
        rollout = _rollout_of(name)
        for request in running:
            if _rollout_of(request.params.name) == rollout:
                raise self._differs(f"the reply {request.params.name} is longer than it was", request)
        place = self._places.get(rollout)
        if place is not None and place.state == "closed" and not name.endswith("/0"):
            who, turn = _in_words(name)
            raise self._differs(f"{who} ended; in the recorded run it went on with {turn}")

    def _check_recorded(self, name: str) -> None:
        """Raise `ScriptError` if the recorded engine was never asked for this."""
        group_id, member, attempt, _ = name.rsplit("/", 3)
        if name in self._names or group_id not in self._ended_groups:
            return
        is_given_up = f"{group_id}/{member}/{int(attempt) + 1}/0" in self._names
        how = "was given up before, as for a missed deadline" if is_given_up else "ended before"
        who, turn = _in_words(name)
        raise self._differs(f"{who} goes on with {turn}; in the recorded run it {how}")

    def _found(self, name: str, requests: Mapping[str, Request]) -> Request:
        if name not in requests:
            raise self._differs(f"the request {name} ended before it was withdrawn")
        return requests[name]

    def _forward(self) -> None:
        self._line = next(self._lines, None)

    def _differs(self, text: str, request: Request | None = None, recorded: str = "") -> ScriptError:
        """The error, and its file, which outlives the process and is more than an error's text can carry."""
        told: dict[str, object] = {"text": text, "step": self._step}
        if request is not None:
            columns = {name: request.columns[name] for name in ("logprob", "version")}
            told |= {"name": request.params.name, "recorded": recorded, "ids": request.reply_ids, **columns}
        self._difference.write_text(json.dumps(told), encoding="utf-8")
        return ScriptError(text)


def _rollout_of(name: str) -> str:
    """Which rollout, and attempt at it, a request is of."""
    return name.rpartition("/")[0]


def _in_words(name: str) -> tuple[str, str]:
    """Which rollout a request is of, and which turn."""
    group_id, member, attempt, turn = name.rsplit("/", 3)
    return f"group {group_id}, member {member}, attempt {attempt}", f"turn {turn}"


def _by_name(requests: Collection[Request]) -> dict[str, Request]:
    return {request.params.name: request for request in requests}
