"""How is the progress of the supervised stage reported? Lines of `metrics.jsonl`, and a progress bar.

If the terminal cannot redraw a line, one line is printed after every tenth of the steps.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from envs.json_lines import read_lines


class StepMetrics(TrainerCallback):
    """Writes step, loss, tokens, seconds and tokens_per_s; tokens are those of this step, padding not counted.

    A measurement of the held-out rows is a line of its own: step, heldout_loss (nats a token) and seconds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._progress = Progress(
            TextColumn("supervised"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[last]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            refresh_per_second=2,  # drawing takes time from training
        )
        self._num_tokens = 0
        self._loss = self._heldout = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        before = [line for line in read_lines(self._path) if line["step"] <= state.global_step]  # of a stopped stage
        self._file = self._path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(line) + "\n" for line in before)
        self._first_step = state.global_step
        self._task = self._progress.add_task("sft", total=state.max_steps, completed=state.global_step, last="")
        self._progress.start()
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
            self._write_heldout(state, logs["eval_loss"])
        if logs is None or "loss" not in logs:
            return  # the summary at the end
        now, num_tokens = time.monotonic(), int(logs["num_tokens"])
        new_tokens, seconds = num_tokens - self._num_tokens, now - self._last
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
            "tokens": new_tokens,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(new_tokens / seconds, 1),
        }
        self._write(line)
        rate = num_tokens / (now - self._start)
        self._loss = f"loss {logs['loss']:.3f}"
        last = f"{self._loss}{self._heldout}  {rate:,.0f} tokens/s"
        self._progress.update(self._task, completed=state.global_step, last=last)
        if not self._can_redraw and state.global_step % max(1, state.max_steps // 10) == 0:
            seconds_a_step = (now - self._start) / (state.global_step - self._first_step)
            left_s = (state.max_steps - state.global_step) * seconds_a_step
            print(f"supervised step {state.global_step}/{state.max_steps}  {last}  {left_s:.0f} s left", flush=True)
        self._num_tokens, self._last = num_tokens, now

    def _write_heldout(self, state: TrainerState, loss: float) -> None:
        now = time.monotonic()
        self._write({"step": state.global_step, "heldout_loss": loss, "seconds": round(now - self._last, 4)})
        self._last = now
        self._heldout = f"  held out {loss:.3f}"
        self._progress.update(self._task, last=f"{self._loss}{self._heldout}")
        if not self._can_redraw:
            print(f"supervised step {state.global_step}/{state.max_steps}{self._heldout}", flush=True)

    def _write(self, line: Mapping[str, float]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    @property
    def _can_redraw(self) -> bool:
        console = self._progress.console
        return console.is_terminal and not console.is_dumb_terminal

    def close(self) -> None:
        """End the progress line and the file, also after an error."""
        self._progress.stop()
        if hasattr(self, "_file"):
            self._file.close()
