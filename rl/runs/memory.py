"""Which processes of a run hold how much memory? Metrics of a step, and a table of the report."""

from collections.abc import Mapping, Sequence

from rl.engine.work_times import Work
from rl.runs.history import History
from rl.runs.html import table

PREFIX = "memory_mib/"


def memory_metrics(driver_mib: float, learner_mib: Mapping[str, float], workers: Sequence[Work]) -> dict[str, float]:
    """`memory_mib/driver`, `/learner`, `/learner/PART` and `/engine`: of the rank and of the engine that hold most."""
    parts = {"driver": driver_mib}
    parts |= {"learner" if name == "process" else f"learner/{name}": mib for name, mib in learner_mib.items()}
    engines = [work.memory_mib for work in workers if work.memory_mib is not None]
    if engines:
        parts["engine"] = max(engines)
    return {f"{PREFIX}{name}": mib for name, mib in parts.items()}


def memory_table(history: History) -> str:
    """Of each process and part, in the newest step and at most; empty without steps."""
    names = sorted({name for line in history.steps for name in line if name.startswith(PREFIX)})
    rows = []
    for name in names:
        _, values = history.series(name)
        if values:
            label = name.removeprefix(PREFIX).replace("/", ": ")
            rows.append([label, f"{values[-1]:,.0f}", f"{max(values):,.0f}"])
    return table(["process: part", "MiB, last step", "MiB, most"], rows) if rows else ""
