"""The metrics of a run in Weights & Biases: online, or offline in RUN/wandb for a later `wandb sync`.

Every line is a row of its own, whose step is a metric (`step`, `evaluation/step`). W&B's own counter of steps accepts
no second row of a step, so that an evaluation would be lost after a kill between the two lines of its step.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PrivateAttr

from rl.runs.files import remove
from rl.runs.sinks.run_files import configuration, tracking_id
from rl.runs.sinks.sink import SUPERVISED, Line, Row, Sink, lacks, scalars, series

KINDS = ("train", "evaluation", SUPERVISED, "rollouts/train", "rollouts/evaluation")
FINISH_TIMEOUT_S = 60.0
"""Time for uploading at the end. What is not uploaded then stays in RUN/wandb, for `wandb sync`."""


class WeightsAndBiases(Sink):
    """Weights & Biases. Its API key comes from WANDB_API_KEY or `wandb login`."""

    sink: str = "wandb"
    package: ClassVar[str] = "wandb"
    takes_rollouts: ClassVar[bool] = True
    mode: Literal["online", "offline", "disabled"] = "online"
    """`offline` only writes to RUN/wandb, and `disabled` writes nothing."""
    project: str = "polygym"
    """Project of the run."""
    entity: str | None = None
    """User or team that owns the project; null takes the default of the account."""
    group: str | None = None
    """Group of runs that W&B shows together."""
    name: str | None = None
    """Name of the run; null takes the name of the run folder."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    _run: Any = PrivateAttr(None)
    _newest: dict[str, int] = PrivateAttr(default_factory=dict)
    _named: set[str] = PrivateAttr(default_factory=set)

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        """Continue the run online; write it anew from `lines` offline, where W&B cannot continue a run."""
        import wandb  # pyright: ignore[reportMissingImports]

        if self.mode == "online" and not wandb.login(prompt=False):
            raise PermissionError("there is no API key: set WANDB_API_KEY, run `wandb login`, or use mode: offline")
        run_id = tracking_id(run_dir)
        folders = sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}"))
        kept = {(series(line), line["step"]) for line in lines if line["kind"] != "note"}
        tables = [table for table in _tables(folders) if table[:2] in kept]
        for folder in folders:
            remove(folder)
        self._run = wandb.init(
            id=run_id,
            resume="allow" if self.mode == "online" else None,
            dir=run_dir,
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            group=self.group,
            name=self.name or run_dir.resolve().name,
            tags=self.tags,
            config=configuration(run_dir),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_TIMEOUT_S),
        )
        self._newest = {kind: self._run.summary.get(_step(kind), -1) for kind in KINDS}
        for line in lines:
            self.write(line)
        for kind, step, rows in sorted(tables, key=lambda table: table[:2]):
            self.write_rollouts(step, kind, rows)

    def write(self, line: Line) -> None:
        if not lacks(self._newest, line):
            return
        if line["kind"] == "note":
            self._run.write_logs(f"step {line['step']}: {line['text']}")
            return
        metrics, step = scalars(line), _step(series(line))
        for name in metrics.keys() - self._named:
            self._run.define_metric(name, step_metric=step, step_sync=False)
        self._named |= metrics.keys()
        self._run.log({step: line["step"], **metrics, "_timestamp": line["time"]})

    def write_rollouts(self, step: int, kind: str, rows: Sequence[Row]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        name = f"rollouts/{kind}"
        if step > self._newest[name]:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._run.log({_step(name): step, name: table})

    def close(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        if self._run is not None:
            self._run.finish()
        wandb.teardown()  # ends W&B's process, which otherwise stays until this one ends


def _step(kind: str) -> str:
    return "step" if kind == "train" else f"{kind}/step"


def _tables(folders: Sequence[Path]) -> Iterator[tuple[str, int, list[Row]]]:
    """The tables of rollouts in the folders of offline runs: kind, step and rows."""
    for folder in folders:
        for file in (folder / "files" / "media" / "table" / "rollouts").glob("*.table.json"):
            try:
                table = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:  # torn by a kill
                continue
            rows: list[Row] = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
            yield file.name.partition("_")[0], int(rows[0]["step"] or 0), rows
