"""How is the progress of a stage reported? Lines of `metrics.jsonl`, and a progress bar."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from envs.json_lines import read_lines
from rl.runs.progress import ProgressLine
from rl.runs.sinks.opened import OpenSinks
from rl.runs.sinks.sink import SUPERVISED


class StepMetrics(TrainerCallback):
    """Writes step, time, loss, tokens, seconds and tokens_per_s; tokens are those of this step, padding not counted.

    A measurement of the held-out rows is a line of its own: step, heldout_loss and seconds. The supervised stage's
    losses are nats a token. `measures` are more values of both kinds of lines, by the names that trl logs them under.
    """

    def __init__(
        self,
        path: Path,
        open_sinks: Callable[[], OpenSinks],
        console: Console | None = None,
        title: str = "supervised step",
        measures: Mapping[str, str] = MappingProxyType({}),
        shown: Sequence[str] = (),
    ) -> None:
        """`open_sinks` is called when the lines of a stopped stage are in the file again.

        The progress bar has the `title`, and beside the loss the measures that are `shown`.
        """
        self._title, self._measures, self._shown = title, measures, shown
        self._path = path
        self._open_sinks = open_sinks
        self._console = console
        self._open = contextlib.ExitStack()
        self._num_tokens = 0
        self._loss = self._heldout = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        before = [line for line in read_lines(self._path) if line["step"] <= state.global_step]  # of a stopped stage
        self._file = self._open.enter_context(self._path.open("w", encoding="utf-8"))
        self._file.writelines(json.dumps(line) + "\n" for line in before)
        self._file.flush()
        self._sinks = self._open.enter_context(contextlib.closing(self._open_sinks()))
        line = ProgressLine(self._title, state.max_steps, state.global_step, console=self._console)
        self._progress = self._open.enter_context(line)
        self._start = self._last = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "eval_loss" in logs:
            self._write_heldout(state, logs)
        if logs is None or "loss" not in logs:
            return  # the summary at the end
        now, num_tokens = time.monotonic(), int(logs["num_tokens"])
        new_tokens, seconds = num_tokens - self._num_tokens, now - self._last
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            **{name: logs[key] for key, name in self._measures.items()},
            "grad_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
            "tokens": new_tokens,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(new_tokens / seconds, 1),
        }
        self._write(line)
        rate = num_tokens / (now - self._start)
        self._loss = self._words(f"loss {logs['loss']:.3f}", line)
        self._progress.update(state.global_step, f"{self._loss}{self._heldout}  {rate:,.0f} tokens/s")
        self._num_tokens, self._last = num_tokens, now

    def _write_heldout(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        now, loss = time.monotonic(), logs["eval_loss"]
        measured = {name: logs[f"eval_{key}"] for key, name in self._measures.items()}
        named = {f"heldout_{name}": value for name, value in measured.items()}
        seconds = round(now - self._last, 4)
        self._write({"step": state.global_step, "heldout_loss": loss, **named, "seconds": seconds})
        self._last = now
        self._heldout = self._words(f"  held out {loss:.3f}", measured)
        self._progress.remark(f"{self._loss}{self._heldout}", self._heldout.strip())

    def _words(self, loss: str, measured: Mapping[str, float]) -> str:
        return " ".join([loss, *(f"{name} {measured[name]:.3f}" for name in self._shown)])

    def _write(self, metrics: Mapping[str, float]) -> None:
        line = {**metrics, "time": time.time()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._sinks.write({"kind": SUPERVISED, **line})

    def close(self) -> None:
        """End the progress line and the file, also after an error."""
        self._open.close()
