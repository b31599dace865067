"""The metrics of a run in MLflow: on a tracking server, or in RUN/mlflow (`mlflow ui`, see README.md)."""

import contextlib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import PrivateAttr, field_validator

from rl.runs.sinks.run_files import configuration, tracking_id
from rl.runs.sinks.sink import SUPERVISED, Line, Row, Sink, lacks, scalars, series

LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Seconds a request and repetitions, unless the environment sets others. MLflow's own let a server that hangs stop a
step of the run for a quarter of an hour."""
ID_TAG = "polygym.id"
NEWEST_TAG = "polygym.newest."
TABLES_TAG = "mlflow.loggedArtifacts"
MAX_NAME = 250


class MLflow(Sink):
    """MLflow. Its credentials come from MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD."""

    sink: str = "mlflow"
    package: ClassVar[str] = "mlflow"
    takes_rollouts: ClassVar[bool] = True
    tracking_uri: str | None = None
    """Address of the server or store; null takes MLFLOW_TRACKING_URI, and without it an SQLite file in RUN/mlflow."""
    experiment: str = "polygym"
    """MLflow's experiment, which holds the runs."""
    name: str | None = None
    """Name of the run; null takes the name of the run folder."""
    _client: Any = PrivateAttr(None)
    _run_id: str = PrivateAttr("")
    _newest: dict[str, int] = PrivateAttr(default_factory=dict)
    _notes: list[str] = PrivateAttr(default_factory=list)
    _tables: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("tracking_uri")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).password is not None:
            raise ValueError("the address holds a password, which would be saved: set MLFLOW_TRACKING_URI instead")
        return value

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        """Continue the run that has the id of the run folder, or begin it."""
        for variable, value in LIMITS.items():
            os.environ.setdefault(variable, value)
        experiment_id = self._connect(run_dir)
        run_key = tracking_id(run_dir)
        found = self._client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{run_key}'")
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            name = self.name or run_dir.resolve().name
            run = self._client.create_run(experiment_id, run_name=name, tags={ID_TAG: run_key})
        self._run_id = run.info.run_id
        self._log_configuration(configuration(run_dir), run.data.params)
        tags = run.data.tags
        self._newest = {kind: int(tags.get(NEWEST_TAG + kind, -1)) for kind in ("train", "evaluation", SUPERVISED)}
        self._notes = [_note(line) for line in lines if line["kind"] == "note"]
        for line in lines:
            if line["kind"] != "note":
                self.write(line)

    def write(self, line: Line) -> None:
        from mlflow.entities import Metric, RunTag  # pyright: ignore[reportMissingImports]

        if line["kind"] == "note":  # all of them again: a file of a run cannot be added to
            self._notes.append(_note(line))
            self._client.log_text(self._run_id, "\n".join(self._notes) + "\n", "notes.txt")
        elif lacks(self._newest, line):
            step, milliseconds = line["step"], int(line["time"] * 1000)
            metrics = [Metric(_name(name), value, milliseconds, step) for name, value in scalars(line).items()]
            tag = RunTag(NEWEST_TAG + series(line), str(step))
            self._client.log_batch(self._run_id, metrics=metrics, tags=[tag])

    def write_rollouts(self, step: int, kind: str, rows: Sequence[Row]) -> None:
        """One file a step, in the format of `mlflow.log_table`, whose own tag of all tables outgrows MLflow's limit."""
        file = f"rollouts/{kind}_{step:06d}.json"
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_dict(self._run_id, table, file)
        self._tables[kind] = file
        shown = [{"path": path, "type": "table"} for path in self._tables.values()]
        self._client.set_tag(self._run_id, TABLES_TAG, json.dumps(shown))

    def close(self) -> None:
        if self._run_id:
            self._client.set_terminated(self._run_id)

    def _connect(self, run_dir: Path) -> str:
        """Connect to the store. Returns the id of the experiment, which is made if it does not exist."""
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        uri, artifacts = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            folder = run_dir.resolve() / "mlflow"
            folder.mkdir(exist_ok=True)
            uri, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
        self._client = MlflowClient(uri)
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another run may just have made it
                self._client.create_experiment(self.experiment, artifacts)
            experiment = self._client.get_experiment_by_name(self.experiment)
        return experiment.experiment_id

    def _log_configuration(self, tree: Mapping[str, Any], logged: Mapping[str, str]) -> None:
        """As parameters, which cannot change: those of the first start stay. The file is that of the newest start."""
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        new = [Param(name, value) for name, value in _flat(tree) if name not in logged]
        self._client.log_batch(self._run_id, params=new)
        self._client.log_dict(self._run_id, tree, "config.yaml")


def _note(line: Line) -> str:
    return f"step {line['step']}: {line['text']}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of the configuration by dotted name."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield _name(f"{prefix}{key}"), str(value)


def _name(name: str) -> str:
    """The nearest name that MLflow accepts: that of a file below a folder, of letters, digits and some signs."""
    return posixpath.normpath(re.sub(r"[^\w/.\- :]", "_", name)).lstrip("/.")[:MAX_NAME]
