"""Do W&B, MLflow and trackio receive what the record of a run holds? With the real packages, offline."""

import glob
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import psutil
import pytest

from envs.json_lines import read_lines
from envs.messages import Message
from rl.__main__ import main
from rl.config.experiment import ExperimentConfig
from rl.runs.folder import RunFolder
from rl.runs.sampled_rollouts import MAX_CHARACTERS, MAX_ROLLOUTS
from rl.runs.sinks import SINKS
from rl.runs.sinks.opened import supervised_lines
from rl.runs.sinks.sink import Line, Row, Sink, scalars
from rl.runs.tracker import Tracker
from tests.makers import ARITHMETIC, STORE, group_of, make_group, make_rollout, make_run_config, save_empty_checkpoint
from tests.saved import write


def start(config: ExperimentConfig) -> None:
    """The first start, after a supervised stage: killed after step 4, with a checkpoint of step 2."""
    (config.run_dir / "sft").mkdir(parents=True)
    write(config.run_dir / "sft" / "metrics.jsonl", [{"step": step, "time": 9.0, "loss": 1 / step} for step in (1, 2)])
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.save_rollouts(0, "evaluation", [group_of(make_rollout(0.25))])
        tracker.track_evaluation(0, "before", {"reward": 0.25})
        for step in (1, 2, 3, 4):
            write_step(tracker, step)
            if step == 2:
                save_empty_checkpoint(run, 2)


def resume(config: ExperimentConfig) -> list[Line]:
    """The second start goes on from step 2 to step 6. Gives the lines of the supervised stage and of the record."""
    with RunFolder.open(config, resume=True) as run, Tracker(run, config) as tracker:
        for step in (3, 4, 5, 6):
            write_step(tracker, step)
        tracker.track_evaluation(6, "after", {"reward": 0.75})
    return [*supervised_lines(run.path), *read_lines(run.metrics_file)]


def write_step(tracker: Tracker, step: int) -> None:
    tracker.save_rollouts(step, "train", [group_of(make_rollout(step / 8), make_rollout(None, member=1))])
    tracker.track(step, {"reward": step / 8, "reward/math/Arithmetic-v0": step / 3, "update/loss": -1e-9 * step})
    tracker.note(step, f"canary {step}")


def series_of(lines: Sequence[Line]) -> dict[tuple[str, int], float]:
    return {(name, line["step"]): value for line in lines for name, value in scalars(line).items()}


class Absent(Sink):
    """Needs a package that nobody has."""

    sink: str = "absent"
    package: ClassVar[str] = "polygym_absent"


@pytest.mark.slow
def test_a_sink_without_its_package_is_refused_before_the_run_holds_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SINKS, "absent", Absent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "polygym_absent").mkdir()  # what a tracker leaves in the working directory is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.yaml").write_text(
        "run_dir: run\nseed: 1\npolicy: {build: {}}\nsft: {}\nenvironments: {math/Arithmetic-v0: {}}\n"
        "train: {num_steps: 1}\ntracking:\n  - absent\n"
    )
    monkeypatch.setattr(sys, "argv", ["rl", "train", "a.yaml"])
    assert main() == 2 and not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    for words in ("a.yaml, line 7: tracking: ", "needs the package polygym_absent", "pip install polygym_absent"):
        assert words in said


class Tables(Sink):
    """Keeps the tables that it is given, and fails at the third."""

    sink: str = "tables"
    takes_rollouts: ClassVar[bool] = True
    heard: ClassVar[list[tuple[int, str, list[Row]]]] = []

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        pass

    def write(self, line: Line) -> None:
        pass

    def write_rollouts(self, step: int, kind: str, rows: Sequence[Row]) -> None:
        self.heard.append((step, kind, list(rows)))
        if len(self.heard) == 3:
            raise ConnectionError("the server is gone")


def test_a_sink_gets_few_rollouts_of_bounded_length_and_a_failure_costs_this_sink_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(SINKS, "tables", Tables)
    monkeypatch.setattr(Tables, "heard", [])
    long = make_rollout(1.0, env_id=STORE, messages=(Message("user", "?"), Message("assistant", "x" * 9000 + "END")))
    groups = [make_group([0.0] * 40), group_of(*[long] * 40)]
    config = make_run_config(tmp_path / "run", tracking=["tables"], train={"num_steps": 9, "save_rollouts_every": 2})
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.save_rollouts(0, "evaluation", groups)
        for step in (1, 2, 3, 4, 5, 6):
            tracker.save_rollouts(step, "train", groups)
    assert [(step, kind, len(rows)) for step, kind, rows in Tables.heard] == [
        *((0, "evaluation", MAX_ROLLOUTS), (2, "train", MAX_ROLLOUTS), (4, "train", MAX_ROLLOUTS)),
    ]
    rows = Tables.heard[0][2]
    assert [row["env_id"] for row in rows] == [ARITHMETIC] * 4 + [STORE] * 4
    replies = str(rows[-1]["replies"])
    assert len(replies) < MAX_CHARACTERS + 50 and replies.endswith("xEND") and "characters left out" in replies
    assert "the sink tables cannot be written and gets no further lines: ConnectionError" in caplog.text
    assert sorted(run.rollouts_files("train")) == [2, 4, 6]


def test_without_a_sink_that_takes_rollouts_no_rows_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.runs.tracker.sampled_rows", lambda step, groups: pytest.fail("made for nobody"))
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.save_rollouts(1, "train", [make_group([1.0, 0.0])])


@pytest.mark.parametrize("sink", [{"sink": "mlflow", "tracking_uri": "https://me:secret@host"}])
def test_an_address_with_a_password_is_refused(sink: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI instead"):
        make_run_config(tmp_path / "run", tracking=[sink])


# Weights & Biases


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """The records of the only offline run: protobuf messages in LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    messages: Any = wandb_internal_pb2
    (path,) = glob.glob(f"{run_dir}/wandb/offline-run-*/*.wandb")
    data, place, message = Path(path).read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        message += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield messages.Record.FromString(message)
            message = b""


@pytest.mark.slow
def test_wandb_offline_holds_the_record_once_and_tables_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="make trackers installs it")
    secret = "0123456789" * 4
    monkeypatch.setenv("WANDB_API_KEY", secret)
    sink = {"sink": "wandb", "mode": "offline", "project": "p", "tags": ["x"]}
    config = make_run_config(tmp_path / "run", tracking=[sink])
    start(config)
    (first,) = {record.run.run_id for record in wandb_records(tmp_path / "run") if record.HasField("run")}
    (folder,) = tmp_path.glob("run/wandb/offline-run-*/files/media/table/rollouts")
    (folder / "train_9_torn.table.json").write_text('{"columns": ["st')
    lines = resume(config)
    records = list(wandb_records(tmp_path / "run"))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert run.run_id == first and run.project == "p" and list(run.tags) == ["x"] and run.display_name == "run"
    logged = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert logged["train"]["num_steps"] == 10 and logged["learner"]["learning_rate"] == 2e-4
    found: list[Any] = []
    tables = []
    for record in records:
        if record.HasField("history"):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            step = row.get("supervised/step", row.get("evaluation/step", row.get("step")))
            names = [
                name for name in row if name.startswith(("reward", "update", "evaluation/reward", "supervised/loss"))
            ]
            found += [((name, step), row[name]) for name in names]
            tables += [(name, row[name]) for name in row if name.startswith("rollouts/") and name.endswith("/step")]
    assert dict(found) == series_of(lines) and len(found) == len(dict(found))
    assert sorted(tables) == [("rollouts/evaluation/step", 0), *(("rollouts/train/step", n) for n in range(1, 7))]
    files = sorted(tmp_path.glob("run/wandb/offline-run-*/files/media/table/rollouts/train_*.json"))
    assert len(files) == 6 and "The answer is 4." in files[0].read_text()
    assert not [child.name() for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
    notes = "".join(record.output_logger.line for record in records if record.HasField("output_logger"))
    assert "step 1: canary 1" in notes and notes.count("canary 3") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_wandb_without_a_key_neither_asks_nor_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="make trackers installs it")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no_settings"))
    config = make_run_config(tmp_path / "run", tracking=["wandb"])
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.track(1, {"reward": 0.5})
    assert "the sink wandb cannot be opened" in caplog.text and "set WANDB_API_KEY" in caplog.text
    assert len(list(read_lines(run.metrics_file))) == 1


def test_wandb_online_gets_the_lines_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []
    wandb = MagicMock()
    wandb.init.return_value.log = rows.append
    wandb.init.return_value.summary = {}
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = make_run_config(tmp_path / "run", tracking=["wandb"])
    start(config)
    wandb.init.return_value.summary = {  # the rest was lost
        "supervised/step": 1, "step": 1, "evaluation/step": 0, "rollouts/train/step": 4
    }  # fmt: skip
    before = len(rows)
    resume(config)
    later = [(name, row[name]) for row in rows[before:] for name in row if name.endswith("step")]
    steps = [
        ("supervised/step", 2),
        ("step", 2),
        ("step", 3),
        ("step", 4),
        ("rollouts/train/step", 5),
        ("step", 5),
        ("rollouts/train/step", 6),
    ]
    assert later == [*steps, ("step", 6), ("evaluation/step", 6)]
    (first, second) = wandb.init.call_args_list
    assert first.kwargs["id"] == second.kwargs["id"] and first.kwargs["resume"] == second.kwargs["resume"] == "allow"


# MLflow


@pytest.mark.slow
def test_mlflow_in_the_run_folder_holds_the_record_once_and_tables_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="make trackers installs it")
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    config = make_run_config(tmp_path / "run", tracking=[{"sink": "mlflow", "experiment": "e"}])
    start(config)
    lines = resume(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/run/mlflow/mlflow.db")
    client: Any = MlflowClient()
    experiment_id = client.get_experiment_by_name("e").experiment_id
    (run,) = client.search_runs([experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == "10" and run.data.params["environments.tools/Store-v0.weight"] == "2.0"
    found = [
        ((name, metric.step), metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    assert dict(found) == series_of(lines) and len(found) == len(dict(found))
    tables = [file.path for file in client.list_artifacts(run.info.run_id, "rollouts")]
    assert tables == ["rollouts/evaluation_000000.json", *(f"rollouts/train_{step:06d}.json" for step in range(1, 7))]
    table = client.load_table(experiment_id, tables[-1], [run.info.run_id])
    assert table["reward"][0] == 0.75 and "The answer is 4." in table["replies"][0]
    notes = Path(client.download_artifacts(run.info.run_id, "notes.txt", str(tmp_path))).read_text()
    assert notes == "".join(f"step {step}: canary {step}\n" for step in range(1, 7))


# trackio


@pytest.fixture
def trackio_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trackio keeps its projects. Its modules copied the place when something imported them first."""
    folder = tmp_path_factory.mktemp("trackio")
    pytest.importorskip("trackio.sqlite_storage", reason="make trackers installs it")
    for name, module in list(sys.modules.items()):
        if name.startswith("trackio") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    return folder


@pytest.mark.slow
def test_trackio_holds_the_record_once_and_tables_over_a_resume(
    trackio_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trackio import Api  # pyright: ignore[reportMissingImports]
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    config = make_run_config(tmp_path / "run", tracking=[{"sink": "trackio", "project": "p"}])
    start(config)
    lines = resume(config)
    (run,) = list[Any](Api().runs("p"))
    assert run.name.startswith("run-") and run.config["train"]["num_steps"] == 10
    found, tables = [], []
    for row in SQLiteStorage.get_logs("p", run.name, run_id=run.id):
        step = row.pop("step")
        tables += [(name, step, row[name]["_value"]) for name in row if name.startswith("rollouts/")]
        found += [((name, step), value) for name, value in row.items() if isinstance(value, float)]
    assert dict(found) == series_of(lines) and len(found) == len(dict(found))
    assert [(name, step) for name, step, _ in tables] == [
        ("rollouts/evaluation", 0),
        *(("rollouts/train", step) for step in range(1, 7)),
    ]
    assert tables[-1][2][0]["reward"] == 0.75 and "The answer is 4." in tables[-1][2][0]["replies"]
    assert sorted(note["text"] for note in run.alerts()) == [f"canary {step}" for step in range(1, 7)]
    assert (trackio_dir / "p.db").is_file() and capsys.readouterr().out == ""
