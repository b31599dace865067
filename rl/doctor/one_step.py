"""Do engine and learner work with this experiment? One small step with the run's own code, in a process of its own.

    python -m rl.doctor.one_step YAML FINDINGS

The child starts all that a run starts, in a temporary run folder, plays a few short rollouts, trains on them and
publishes. It appends what it finds to a file of JSON lines, so that the parent knows how far it came.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from envs.errors import cut
from envs.json_lines import read_lines
from rl.config.experiment import ExperimentConfig
from rl.config.read import dump_config, load_config
from rl.data_types import Group, Update
from rl.doctor.findings import Finding, failures, shortened
from rl.stop import StopRequested, end_with_parent

GROUP_SIZE, REPLY_TOKENS, THINKING_TOKENS, CONVERSATIONS = 2, 32, 16, 64
"""Of the small step: rollouts a group, and the most tokens of a reply, of its reasoning, and gold conversations."""
STAGE_S = 600.0
"""For the supervised stage, which has no deadline of its own."""
STOP_S = 60.0
"""For a step that is stopped to clean up."""
TOLD = 3
"""Exit code of a child that told what failed; Python's own for an exception is 1."""
STEPS = ("engine step", "learner step", "publishing")


def step_timeout_s(config: ExperimentConfig) -> float:
    """The deadlines of the parts together, and time to clean up."""
    train = config.train
    parts = (2 * train.start_timeout_s, train.collect_timeout_s, train.update_timeout_s, train.publish_timeout_s)
    return sum(parts) + (STAGE_S if config.policy.path is None else 0.0)


def step_findings(config: ExperimentConfig) -> Iterator[Finding]:
    """What engine, learner and transport did. The folder of a step that failed is kept."""
    folder = Path(tempfile.mkdtemp(prefix="polygym-doctor-"))
    try:
        death = _run(config, folder)
    except StopRequested:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    found = [Finding(**line) for line in read_lines(folder / "findings.jsonl")]
    yield from found
    left = [name for name in STEPS if name not in {finding.check for finding in found}]
    if death and left:
        yield Finding(left.pop(0), "failed", death, f"look at the files in {folder}")
    yield from (not_tried(name) for name in left)
    if not (death or left):
        shutil.rmtree(folder, ignore_errors=True)


def not_tried(name: str) -> Finding:
    return Finding(name, "warning", "not tried, because of what failed before")


def _run(config: ExperimentConfig, folder: Path) -> str:
    """Run the child; what ended it if it did not tell, else nothing."""
    (folder / "experiment.yaml").write_text(dump_config(config))
    output = folder / "output.txt"
    command = [sys.executable, "-m", __name__, str(folder / "experiment.yaml"), str(folder / "findings.jsonl")]
    command += small_step(config, folder / "run")
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=end_with_parent)
        try:
            code = process.wait(step_timeout_s(config))
        except subprocess.TimeoutExpired:
            return f"not done within {step_timeout_s(config):g} s"
        finally:
            _end(process)
    text = output.read_text(errors="replace").strip()
    return "" if code in (0, TOLD) else f"exit code {code}: {shortened(text)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def small_step(config: ExperimentConfig, run_dir: Path) -> list[str]:
    """Overrides that make one short step of an experiment. What decides whether it runs stays: arguments of the engine,
    number format, workers, transport, chat format, algorithms.
    """
    train, budget = config.train, config.budget
    changes: list[tuple[str, object]] = [
        ("run_dir", run_dir),
        ("train.num_steps", 1),
        ("train.num_prompts", min(train.num_prompts, max(2, len(config.environments)))),
        ("train.group_size", GROUP_SIZE),
        ("tracking", "[jsonl]"),
    ]
    length = REPLY_TOKENS
    for env_id, environment in config.environments.items():
        shorter = {min(one, THINKING_TOKENS) if isinstance(one, int) else one: 1 for one in environment.budget}
        key, weights = f"environments.{env_id}.budget", {str(one): weight for one, weight in shorter.items()}
        changes += [(key, "{}"), (key, json.dumps(weights))]  # emptied first: sections are merged
        if any(isinstance(one, int) for one in shorter):
            length = max(length, THINKING_TOKENS + budget.grace_tokens + budget.answer_tokens)
    changes.append(("rollout.max_reply_tokens", min(config.rollout.max_reply_tokens, length)))
    if config.policy.path is not None:
        changes.append(("sft", "null"))  # the step begins from the checkpoint
    elif config.sft is not None:
        num = max(CONVERSATIONS, config.sft.batch_size)
        changes += [("sft.num_steps", 1), ("sft.num_conversations", num), ("sft.heldout_share", 0)]
        if config.sft.num_steps is None:
            changes.append(("sft.num_epochs", "null"))
        if isinstance(config.sft.data, tuple):  # their epochs would be longer than a step
            mixed = [{**one.model_dump(mode="json"), "weight": 1, "epochs": None} for one in config.sft.data]
            changes.append(("sft.data", json.dumps(mixed)))
    return [f"{key}={value}" for key, value in changes]


def engine_finding(groups: Sequence[Group]) -> Finding:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_tokens = sum(int(turn.reply.sampled.sum()) for rollout in rollouts for turn in rollout.turns)
    lost = [rollout for rollout in rollouts if not rollout.outcome.counts]
    found = f"{num_tokens} tokens sampled in {len(rollouts)} rollouts"
    if lost:
        first = f"{lost[0].task.env_id}: {lost[0].outcome}: {lost[0].error}"
        fix = f"python -m envs check {lost[0].task.env_id}"
        return Finding(STEPS[0], "warning", cut(f"{found}; {len(lost)} do not count, first {first}", 1000), fix)
    return Finding(STEPS[0], "ok", found)


def learner_finding(config: ExperimentConfig, update: Update) -> Finding:
    """Whether the learner's logprobs of the sampled tokens agree with the engine's."""
    if update.mismatch is None:
        return Finding(STEPS[1], "warning", "no token was trained, so the mismatch is unknown")
    found = f"{update.num_loss_tokens} tokens trained in {update.seconds:.1f} s, loss {update.loss:.4f},"
    found += f" mismatch between learner and engine {update.mismatch:.6f} (1 is none)"
    level = config.canaries.mismatch.level(update.mismatch)
    if level != "ok":
        return Finding(
            STEPS[1],
            "failed" if level == "stop" else "warning",
            found,
            "docs/metrics.md tells the causes of a mismatch",
        )
    return Finding(STEPS[1], "ok", found)


def run_step(config: ExperimentConfig) -> Iterator[Finding]:
    """The child's work: start all parts of a run, and do one step."""
    from rl.parts import engines, started
    from rl.runs.folder import RunFolder
    from rl.stop import handled_signals
    from rl.train import training_rows

    with (
        RunFolder.open(config) as folder,
        handled_signals(),
        engines(config, folder) as served,
        started(served) as parts,
    ):
        groups = parts.collector.collect()
        yield engine_finding(groups)
        yield learner_finding(config, parts.learner.update(training_rows(parts, groups)))
        parts.pool.load_weights(parts.learner.publish())
        parts.pool.wait_until_loaded()
        yield Finding(STEPS[2], "ok", "each engine loaded the new weights, with the learner's hash")


def main() -> int:
    yaml, file, *overrides = sys.argv[1:]
    num_told = 0

    def tell(findings: Iterable[Finding]) -> None:
        nonlocal num_told
        for finding in findings:
            with Path(file).open("a") as opened:
                opened.write(json.dumps(asdict(finding)) + "\n")
            num_told += 1

    try:
        tell(run_step(load_config(Path(yaml), overrides)))
    except Exception as error:
        tell(failures(STEPS[min(num_told, len(STEPS) - 1)], error))
        traceback.print_exc()
        return TOLD
    return 0


if __name__ == "__main__":
    sys.exit(main())
