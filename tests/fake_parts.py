"""The parts of the training loop without Ray: each call is written down, and may raise the error that a test sets."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from envs.json_lines import read_lines
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Sample, Task, Update
from rl.engine.work_times import Work
from rl.file_hashes import WrittenFile, files_in, sync_and_hash
from rl.rollouts.teachers import TeacherPool
from rl.runs.canaries import Canaries
from rl.runs.display import Display
from rl.runs.folder import RunFolder
from rl.runs.spool import Spool
from rl.runs.tracker import Tracker
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from rl.train import Parts
from rl.weights.source import WeightSource
from tests.makers import ARITHMETIC, make_config, make_group, make_update


class Log(list[str]):
    """What was called, in order; raises the error that is set for a call."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, BaseException] = {}

    def call(self, name: str) -> None:
        self.append(name)
        if name in self.errors:
            raise self.errors[name]


class FakeLearner:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.mismatch = 1.0
        self.said = ["it is warm in here"]
        self.version = 0
        self.num_samples: list[int] = []
        self.memory_mib = {"process": 300.0, "weights": 2.0}

    def update(self, samples: Sequence[Sample]) -> Update:
        self.log.call("update")
        self.num_samples.append(len(samples))
        self.version += 1
        return make_update(self.version, mismatch=self.mismatch)

    def publish(self) -> WeightSource:
        self.log.call("publish")
        return WeightSource(self.version, "", "")

    def save(self, folder: Path, *, with_policy: bool) -> dict[str, WrittenFile]:
        self.log.call("save" if with_policy else "save slices")
        (folder / "weights").write_text(str(self.version))
        if with_policy:
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text("{}")
        return sync_and_hash(folder, files_in(folder))

    def notes(self) -> list[str]:
        said, self.said = self.said, []
        return said


class FakePool:
    num_workers = 1

    def __init__(self, log: Log) -> None:
        self.log = log

    def load_weights(self, source: WeightSource) -> None:
        self.log.call("load")

    def work(self) -> list[Work]:
        return [Work([(0.0, 4e9)], 100.0)]  # always

    def notes(self) -> list[str]:
        return []


class FakeCollector:
    num_in_flight = 1

    def __init__(self, log: Log, ledger: Ledger, stream: TaskStream) -> None:
        self.log, self.ledger, self.stream = log, ledger, stream
        self.rewards: list[tuple[float | None, ...]] = [(1.0, 0.0)]
        """Of each group of a step."""

    def collect(self) -> list[Group]:
        self.log.call("collect")
        groups = []
        for rewards in self.rewards:
            ordinal = self.ledger.start()
            self.stream.start(ordinal)
            self.ledger.play([ordinal])
            groups.append(make_group(rewards, ordinal))
        return groups

    def evaluate(self, tasks: Sequence[Task], *, at_once: bool) -> Iterator[list[Group]]:
        self.log.call("begin to evaluate" if at_once else "evaluate")
        return self._evaluated()

    def _evaluated(self) -> Iterator[list[Group]]:
        self.log.call("evaluated")
        yield [make_group([1.0], 0)]


Make = Callable[..., Parts]


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Make]:
    """Makes the parts of a run in this folder. It takes keys of `train`, sections `canaries` and `evaluation`, and keys
    of the environment."""
    with contextlib.ExitStack() as closing:

        def make(canaries: Any = None, evaluation: Any = None, environment: Any = None, **train: Any) -> Parts:
            config: ExperimentConfig = make_config(
                folder,
                train={"num_steps": 3, "num_prompts": 1, "group_size": 2, "checkpoint_every": 100, **train},
                learner={"num_ranks": 2},
                environments={ARITHMETIC: environment or {}},
                canaries=canaries or {},
                evaluation=evaluation or {},
            )
            log, ledger = Log(), Ledger()
            for name in ("rollouts", "checkpoints"):
                (folder / name).mkdir()
            run = RunFolder(folder)
            tracker = closing.enter_context(Tracker(run, config))
            stream = TaskStream(config.environments, config.seed, config.train.num_prompts)
            learner, pool, collector = cast(Any, (FakeLearner(log), FakePool(log), FakeCollector(log, ledger, stream)))
            spool, watching = Spool(run.spool, config.train), Canaries(config.canaries, {})
            display = Display(config)
            teachers = TeacherPool(config, ())
            return Parts(
                *(config, run, learner, pool, teachers, collector, stream, ledger, spool, watching, tracker, display),
                step=0,
            )

        yield make


def log_of(parts: Parts) -> Log:
    return parts.learner.log  # pyright: ignore[reportAttributeAccessIssue]


def lines(parts: Parts, kind: str) -> list[Any]:
    return [line for line in read_lines(parts.folder.metrics_file) if line["kind"] == kind]
