"""Where the numbers of a run go: which sinks there are, how they are configured, and what a failing one costs."""

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from envs.json_lines import read_lines
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.explain import explain
from rl.config.read import dump_config, load_config
from rl.runs.files import StorageError
from rl.runs.folder import RunFolder
from rl.runs.sinks import SINKS
from rl.runs.sinks.jsonl import Jsonl
from rl.runs.sinks.sink import Line, Sink
from rl.runs.sinks.tensorboard import TensorBoard
from rl.runs.tracker import Tracker
from tests.makers import make_run_config

YAML = """
run_dir: runs/small
seed: 1
policy: {build: {}}
environments: {math/Arithmetic-v0: {}}
sft: {}
train: {num_steps: 5}
tracking:
  - jsonl
"""


def load(folder: Path, more: str = "", *overrides: str) -> ExperimentConfig:
    path = folder / "experiment.yaml"
    path.write_text(YAML + more)
    return load_config(path, overrides)


class Memory(Sink):
    """Keeps what it is given."""

    sink: str = "memory"
    shelf: str = "none"
    """Name under which it is kept."""
    heard: ClassVar[list[Any]] = []

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        self.heard.append(("open", self.shelf, [line["step"] for line in lines]))

    def write(self, line: Line) -> None:
        self.heard.append((line["kind"], line["step"], line["reward"]))

    def close(self) -> None:
        self.heard.append("close")


class Fails(Sink):
    """Fails in one of its methods."""

    sink: str = "fails"
    at: str = "write"

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        if self.at == "open":
            raise ImportError("No module named 'tracker'")

    def write(self, line: Line) -> None:
        if self.at == "write":
            raise ConnectionError("the server is gone")

    def close(self) -> None:
        if self.at == "close":
            raise OSError(28, "No space left on device")


@pytest.fixture
def more_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "memory", Memory)
    monkeypatch.setitem(SINKS, "fails", Fails)
    monkeypatch.setattr(Memory, "heard", [])


@pytest.mark.usefixtures("more_sinks")
def test_a_new_sink_is_one_class_and_one_line_in_the_dict(tmp_path: Path) -> None:
    config = load(tmp_path, "  - sink: memory\n    shelf: a\n", f"run_dir={tmp_path / 'run'}")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.track(1, {"reward": 0.5})
        tracker.track_evaluation(1, "step", {"reward": 0.25})
    with Tracker(run, config):
        pass
    first = [("open", "a", []), ("train", 1, 0.5), ("evaluation", 1, 0.25), "close"]
    assert Memory.heard == [*first, ("open", "a", [1, 1]), "close"]
    assert [line["reward"] for line in read_lines(run.metrics_file)] == [0.5, 0.25]
    assert "sink: memory       Keeps what it is given." in explain("tracking")
    assert "Name under which it is kept." in explain("tracking.shelf")
    assert "one of jsonl, tensorboard, " in explain("tracking.sink")


@pytest.mark.usefixtures("more_sinks")
@pytest.mark.parametrize("text", ["[]", "[jsonl]", "[tensorboard]", "[jsonl, {sink: memory, shelf: b}]", "[{}]"])
def test_what_is_tracked_survives_dumping_and_reading(text: str, tmp_path: Path) -> None:
    config = load(tmp_path, "", f"tracking={text}")
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "dumped.yaml")
    assert again == config and dump_config(again) == dump_config(config)
    assert pickle.loads(pickle.dumps(config)) == config
    assert sum(sink.is_record for sink in config.tracking) == 1


def test_by_default_the_record_and_tensorboard_are_written(tmp_path: Path) -> None:
    assert make_run_config(tmp_path).tracking == (Jsonl(), TensorBoard())


@pytest.mark.parametrize(
    ("more", "overrides", "words"),
    [
        (
            "  - tensorbord\n",
            (),
            ["line 10: tracking.1: tensorbord", "tensorboard", "did you mean tensorboard"],
        ),
        ("  - sink: tensorboard\n    foldr: x\n", (), ["line 11: tracking.1.foldr: there is no such key"]),
        ("  - 3\n", (), ["line 10: tracking.1: 3 is not a section of keys"]),
        ("", ("tracking=[{sink: tensorbord}]",), ["command line", "tracking.0", "did you mean tensorboard"]),
        (
            "",
            ("tracking=tensorboard",),
            ["command line", "takes: list of a section with sink: jsonl or tensorboard or "],
        ),
        ("", ("tracking=null",), ["takes: list of"]),
        ("", ("tracking.0.sink=x",), ["command line, tracking.0.sink=x: tracking:", "takes: list of"]),
    ],
)
def test_a_wrong_sink_is_named_with_its_place(
    more: str, overrides: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, more, *overrides)
    assert all(word in str(caught.value) for word in [*words, "fix: "]), caught.value


@pytest.mark.usefixtures("more_sinks")
@pytest.mark.parametrize(("at", "done"), [("open", "opened"), ("write", "written"), ("close", "closed")])
def test_a_sink_that_fails_is_named_once_and_left_out(
    at: str, done: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sinks = [{"sink": "fails", "at": at}, "memory"]
    config = make_run_config(tmp_path / "run", tracking=sinks)
    with caplog.at_level(logging.WARNING), RunFolder.open(config) as run, Tracker(run, config) as tracker:
        for step in (1, 2, 3):
            tracker.track(step, {"reward": 0.5})
    (record,) = caplog.records
    assert f"the sink fails cannot be {done} and gets no further lines" in record.getMessage()
    assert [line["step"] for line in read_lines(run.metrics_file)] == [1, 2, 3]
    assert Memory.heard[1:] == [("train", 1, 0.5), ("train", 2, 0.5), ("train", 3, 0.5), "close"]


def test_tensorboard_on_a_folder_that_cannot_be_made_costs_its_files_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_run_config(tmp_path / "run")
    with caplog.at_level(logging.WARNING), RunFolder.open(config) as run:
        (run.path / "tensorboard").write_text("a file")
        with Tracker(run, config) as tracker:
            tracker.track(1, {"reward": 0.5})
    assert "the sink tensorboard cannot be opened" in caplog.text
    assert len(list(read_lines(run.metrics_file))) == 1


def test_other_files_beside_tensorboard_s_stay(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run:
        (run.path / "tensorboard" / "events.old").mkdir(parents=True)
        (run.path / "tensorboard" / "events.out.tfevents.1").write_text("old")
        with Tracker(run, config) as tracker:
            tracker.track(1, {"reward": 0.5})
    names = {path.name for path in (run.path / "tensorboard").iterdir()}
    assert "events.old" in names and "events.out.tfevents.1" not in names and len(names) == 2


def test_a_run_without_tensorboard_does_not_import_it(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(YAML)
    program = (
        "import sys; from pathlib import Path; from rl.config.read import load_config;"
        "from rl.runs.folder import RunFolder; from rl.runs.tracker import Tracker;"
        f"config = load_config(Path('{tmp_path}/experiment.yaml'), ['run_dir={tmp_path}/run']);"
        "run = RunFolder.open(config).__enter__();"
        "Tracker(run, config).track(1, {'reward': 0.5});"
        "print([name for name in ('tensorboard', 'torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["reward"] == 0.5


def test_a_record_that_cannot_be_written_ends_the_run_in_words(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run", tracking=["tensorboard"])
    with RunFolder.open(config) as run:
        run.metrics_file.symlink_to("/dev/full")
        with (
            pytest.raises(StorageError, match=r"metrics.jsonl cannot be written: No space left on device"),
            Tracker(run, config) as tracker,
        ):
            tracker.track(1, {"reward": 0.5})
