"""The metrics of a run in trackio: on this machine (`trackio show`), or in a Hugging Face Space."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from envs.json_lines import JsonObject
from rl.runs.sinks.run_files import configuration, tracking_id
from rl.runs.sinks.sink import SUPERVISED, Line, Row, Sink, lacks, scalars


class Trackio(Sink):
    """trackio. A Space is written with the token of HF_TOKEN or `hf auth login`."""

    sink: str = "trackio"
    package: ClassVar[str] = "trackio"
    takes_rollouts: ClassVar[bool] = True
    project: str = "polygym"
    """Project of the run. On this machine it is a file in TRACKIO_DIR, by default in Hugging Face's cache."""
    name: str | None = None
    """Name of the run, to which the id of the run folder is added; null takes the name of the run folder."""
    space_id: str | None = None
    """Hugging Face Space that receives the metrics (`user/space`); null takes TRACKIO_SPACE_ID or TRACKIO_SERVER_URL,
    and without them keeps the metrics on this machine."""
    _run: Any = PrivateAttr(None)
    _newest: dict[str, int] = PrivateAttr(default_factory=dict)

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        """Continue the run of this name, or begin it. trackio knows a run by its name only."""
        import trackio  # pyright: ignore[reportMissingImports]

        with _quiet():
            self._run = trackio.init(
                self.project,
                name=f"{self.name or run_dir.resolve().name}-{tracking_id(run_dir)}",
                space_id=self.space_id,
                resume="allow",
                config=configuration(run_dir),
                embed=False,
            )
        self._newest = self._newest_steps()
        for line in lines:
            self.write(line)

    def write(self, line: Line) -> None:
        if not lacks(self._newest, line):
            return
        if line["kind"] == "note":
            with _quiet():
                self._run.alert("note", line["text"], step=line["step"])
        elif metrics := scalars(line):
            self._run.log(metrics, step=line["step"])

    def write_rollouts(self, step: int, kind: str, rows: Sequence[Row]) -> None:
        from trackio import Table  # pyright: ignore[reportMissingImports]

        name = f"rollouts/{kind}"
        if step > self._newest.get(name, -1):
            self._run.log({name: Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])}, step=step)

    def close(self) -> None:
        """Wait for what is not yet written, at most half a minute."""
        if self._run is not None:
            import trackio  # pyright: ignore[reportMissingImports]

            with _quiet():
                trackio.finish()

    def _newest_steps(self) -> dict[str, int]:
        """The newest step that trackio holds of each series and table."""
        from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

        if self._run._is_local:
            return _newest_by_kind(SQLiteStorage.get_logs(self.project, self._run.name, run_id=self._run.id))
        newest = self._run._next_step - 1  # a server only tells the newest of all
        return dict.fromkeys(("train", "evaluation", SUPERVISED, "rollouts/train", "rollouts/evaluation"), newest)


def _newest_by_kind(rows: Iterable[JsonObject]) -> dict[str, int]:
    newest: dict[str, int] = {}
    for row in rows:
        first = next(iter(row))
        begin = first.partition("/")[0]
        kind = first if begin == "rollouts" else begin if begin in ("evaluation", SUPERVISED) else "train"
        newest[kind] = max(newest.get(kind, -1), row["step"])
    return newest


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """trackio prints, which would tear the display of the run."""
    return contextlib.redirect_stdout(io.StringIO())
