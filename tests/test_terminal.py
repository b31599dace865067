"""What a person sees in a terminal that redraws and in one that cannot: RL's panel and the two progress lines."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.runs.progress import ProgressLine

pytestmark = pytest.mark.slow

NOISE = """
def noise(word):
    library.warning(f"{word} logged by a library")
    warnings.warn(f"{word} of Python", stacklevel=1)
    print(f"{word} printed")
"""
START = f"""
import logging, sys, time, warnings
library = logging.getLogger("a.library")
library.addHandler(logging.StreamHandler())  # keeps the stream of this moment, as transformers and Ray do
{NOISE}
"""
PANEL = """
from rl.runs.display import Display
from tests.makers import group_of, make_rollout, make_run_config, make_update
from rl.runs.tracking import step_metrics
with Display(make_run_config("runs/x")) as display:
    display.stage("starting")
    noise("early")
    display.stage("training")
    for step in (1, 2):
        time.sleep(0.3)
        display.step(step, step_metrics([group_of(make_rollout(1.0), make_rollout(0.0))], make_update(), {}, {}))
        noise(f"step {step}")
"""
SUPERVISED = """
from transformers import TrainerControl, TrainerState, TrainingArguments
from pathlib import Path
from sft.progress import StepMetrics
from rl.runs.sinks.opened import OpenSinks
metrics = StepMetrics(Path("metrics.jsonl"), lambda: OpenSinks([], Path("."), []))
arguments = TrainingArguments(output_dir=".", use_cpu=True)
metrics.on_train_begin(arguments, TrainerState(max_steps=20), TrainerControl())
noise("early")
for step in range(1, 21):
    time.sleep(0.05)
    logs = {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1, "num_tokens": 10.0 * step}
    metrics.on_log(arguments, TrainerState(max_steps=20, global_step=step), TrainerControl(), logs)
    if step % 10 == 0:
        noise(f"step {step // 10}")
metrics.on_log(arguments, TrainerState(max_steps=20, global_step=20), TrainerControl(), {"eval_loss": 1.25})
metrics.close()
"""
EVALUATION = """
from rl.runs.progress import ProgressLine
with ProgressLine("evaluated", 20, transient=True) as progress:
    noise("early")
    for done in range(2, 21, 2):
        time.sleep(0.1)
        progress.update(done)
        if done % 10 == 0:
            noise(f"step {done // 10}")
"""


def seen(program: str, term: str, folder: Path, repo: Path) -> str:
    """What the program writes to a terminal of this kind, without colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "100", "LINES": "40", "PYTHONPATH": str(repo)}
    command = [sys.executable, "-c", START + program]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, written.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).replace("\r\n", "\n")


def drawn(written: str) -> tuple[list[str], list[str]]:
    """What a terminal shows in the end, and the lines that it erased before."""
    lines, row, column, erased = [""], 0, 0, list[str]()
    for control, text in re.findall(r"(\x1b\[[?\d]*[a-zA-Z]|[\r\n])|([^\x1b\r\n]+)", written):
        if control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif control == "\r":
            column = 0
        elif control.endswith("A"):
            row -= int(control[2:-1])
        elif control == "\x1b[2K":
            erased.append(lines[row])
            lines[row] = ""
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in lines], erased


@pytest.mark.parametrize("program", [PANEL, SUPERVISED, EVALUATION], ids=["panel", "supervised", "evaluation"])
def test_a_terminal_that_redraws_shows_a_whole_bar_with_named_times(program: str, tmp_path: Path, repo: Path) -> None:
    lines, erased = drawn(seen(program, "xterm", tmp_path, repo))
    for word in ("early", "step 1", "step 2"):
        for said in ("logged by a library", "printed"):
            assert f"{word} {said}" in lines, said  # a line of its own, not torn by the bar
        assert any(line.endswith(f"UserWarning: {word} of Python") for line in lines)
    assert not any("nan" in line for line in (*lines, *erased))
    bars = [line for line in (*lines, *erased) if "━" in line]
    assert bars and all(re.search(r"(-:--:--|\d:\d\d:\d\d) left|left (-:--:--|\d:\d\d:\d\d)", line) for line in bars)
    times = [re.sub(r"(-:--:--|\d:\d\d:\d\d) left|(elapsed|left) (-:--:--|\d:\d\d:\d\d)", "", line) for line in bars]
    assert not any(re.search(r"\d:\d\d", line) for line in times)  # no time without a name


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            PANEL,
            [
                "starting",
                "training",
                "mismatch is 1 if .*",
                r"step 1/10  reward 0\.500 .*",
                r"step 2/10  reward 0\.500 .*",
            ],
        ),
        (
            SUPERVISED,
            [
                *(rf"supervised step {step}/20  loss 2\.500  [\d,]+ tokens/s  \d s left" for step in range(2, 21, 2)),
                r"supervised step 20/20  held out 1\.250",
            ],
        ),
        (EVALUATION, [rf"evaluated {done}/20  \d s left" for done in range(2, 21, 2)]),
    ],
    ids=["panel", "supervised", "evaluation"],
)
def test_a_terminal_that_cannot_redraw_shows_lines(
    program: str, expected: list[str], tmp_path: Path, repo: Path
) -> None:
    written = seen(program, "dumb", tmp_path, repo)
    assert "\x1b" not in written and "\r" not in written
    noise = re.compile(r"(early|step \d) (logged|printed)|UserWarning|^\s*(print|warnings|library)|^$")
    lines = [line for line in written.split("\n") if not noise.search(line)]
    assert len(lines) == len(expected)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines, strict=True))


def test_time_left_is_that_of_this_start(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that goes on at step 90 of 100 made no step yet, so its speed is that of the steps since."""
    with ProgressLine("supervised step", 100, 90) as progress:
        progress._start = time.monotonic() - 8.0
        progress.update(94)
        assert capsys.readouterr().out == ""
        progress.update(98)
        progress.update(100)
    assert capsys.readouterr().out == "supervised step 100/100  0 s left\n"
