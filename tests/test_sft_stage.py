"""The supervised stage on policies with and without experts: built, dense, pretrained; stopped and gone on with."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainingArguments,
)
from transformers.trainer_callback import TrainerControl, TrainerState

from rl.chat.chat import load_chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.experiment import ExperimentConfig
from rl.config.section import Section
from rl.learner.policy import IncompleteCheckpointError, load_policy
from rl.policies import train_tokenizer
from rl.precision.formats.float32 import Float32
from rl.precision.formats.nvfp4 import Nvfp4
from rl.ranks import ALONE, Ranks
from rl.runs.sinks.opened import OpenSinks, supervised_lines
from tests.test_chat import CHATML
from tests.test_sft import SIZES

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(40)
]
DENSE_SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256,
}  # fmt: skip


def dense_policy(kind: str, folder: Path) -> Path:
    tokenizer = train_tokenizer(["text"], 384, NemotronFormat())
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    if kind == "llama":
        LlamaForCausalLM(LlamaConfig(**DENSE_SIZES, tie_word_embeddings=True)).save_pretrained(folder)
    else:
        Qwen3ForCausalLM(Qwen3Config(**DENSE_SIZES, head_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stage(run_dir: Path, policy: dict[str, Any], **sft: Any) -> ExperimentConfig:
    rows = run_dir.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ExperimentConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "seed": 3,
            "policy": policy,
            "environments": {"math/Arithmetic-v0": {}},
            "sft": {"num_steps": 4, "batch_size": 8, "warmup_steps": 1, "data": str(rows), **sft},
            "train": {"num_steps": 1},
        }
    )


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("chat", ["template", "nemotron"])
def test_a_policy_without_experts_is_trained(tmp_path: Path, kind: str, chat: str) -> None:
    from sft.train import run

    before = dense_policy(kind, tmp_path / "dense")
    folder = run(stage(tmp_path / "run", {"path": str(before), "chat": chat, "max_tokens": 200}))
    lines = steps_of(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
    old, new = load_file(before / "model.safetensors"), load_file(folder / "model.safetensors")
    assert not any(torch.equal(old[name], new[name]) for name in names)
    assert load_chat(folder, chat).stop_ids == load_chat(before, chat).stop_ids
    drawn = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in drawn.Tensors("supervised/loss")] == [1, 2, 3, 4]
    assert [line["kind"] for line in supervised_lines(tmp_path / "run")] == ["supervised"] * 4


@pytest.mark.slow
def test_smollm2_learns_a_few_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    from rl.policies import convert_smollm2
    from sft.train import run

    convert_smollm2(tmp_path / "smollm2")
    policy = {"path": str(tmp_path / "smollm2"), "chat": "template", "max_tokens": 200}
    folder = run(stage(tmp_path / "run", policy, num_steps=3, batch_size=4, learning_rate=2e-5))
    losses = [line["loss"] for line in steps_of(folder)]
    assert losses[-1] < losses[0] < 4  # of 10.8 for a policy that knows nothing
    assert "warning: sft.learning_rate" not in " ".join(capsys.readouterr().out.split())


def run_stage(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None, ranks: Ranks = ALONE
) -> Path:
    """Run the stage; a signal comes in step `stop_at`, with several ranks to the first."""
    import sft.train
    from sft.progress import StepMetrics

    class Stopping(StepMetrics):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            super().on_log(args, state, control, logs, **more)
            if state.global_step == stop_at and logs and "loss" in logs:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sft.train, "StepMetrics", Stopping)
    return sft.train.run(config, ranks)


@pytest.mark.slow
def test_activation_checkpointing_trains_the_very_same_policy(tmp_path: Path) -> None:
    from sft.train import run

    weights = []
    for on in (False, True):
        config = stage(tmp_path / str(on), {"build": SIZES})
        learner = config.learner.model_copy(update={"activation_checkpointing": on})
        weights.append((run(config.model_copy(update={"learner": learner})) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "stop_at"), [(Float32(), 4), (Nvfp4(), 3)], ids=["float32", "nvfp4"])
def test_a_stage_that_was_stopped_goes_on_to_the_very_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Section, stop_at: int
) -> None:
    """Also at the end of an epoch, which is step 5."""
    from rl.stop import StopRequested

    def config(name: str, **sft: Any) -> ExperimentConfig:
        made = stage(tmp_path / name, {"build": SIZES}, num_steps=7, **sft)
        return made.model_copy(update={"precision": precision})

    whole = run_stage(config("whole"), monkeypatch)
    with pytest.raises(StopRequested):
        run_stage(config("stopped"), monkeypatch, stop_at=stop_at)
    partial = tmp_path / "stopped" / "sft.partial"
    # the signal came after a step was logged and before the next began, so it is seen at the end of that one
    assert [path.name for path in partial.glob("checkpoint-*")] == [f"checkpoint-{stop_at + 1}"]
    (partial / f"checkpoint-{stop_at + 2}").mkdir()  # a checkpoint that was cut off is not taken
    resumed = run_stage(config("stopped"), monkeypatch)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    exact = ("step", "loss", "grad_norm", "learning_rate", "tokens")
    first, second = ([{key: line[key] for key in exact} for line in steps_of(folder)] for folder in (whole, resumed))
    assert first == second
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())

    with pytest.raises(StopRequested):
        run_stage(config("stopped"), monkeypatch, stop_at=3)
    other = run_stage(config("stopped", learning_rate=1e-3), monkeypatch)  # nothing of the stopped stage is in it
    afresh = run_stage(config("afresh", learning_rate=1e-3), monkeypatch)
    assert (other / "model.safetensors").read_bytes() == (afresh / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_checkpoints_are_due_every_ten_minutes_and_not_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft import checkpoints

    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    callback, arguments = checkpoints.Checkpoints(25), TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    due = []
    for step in range(1, 26):
        now[0] += 250.0
        control, state = TrainerControl(), TrainerState(global_step=step)
        callback.on_step_end(arguments, state, control)
        if control.should_save:
            due.append(step)
            (tmp_path / f"checkpoint-{step}").mkdir()
            callback.on_save(arguments, state, control)
    assert due == [3, 6, 9, 12, 15, 18, 21, 24]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-24"]
    assert callback.stop is None


@pytest.mark.slow
def test_one_device_is_used_however_many_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sft.train import trl_config

    config = stage(tmp_path / "run", {"build": SIZES})
    cpu = torch.device("cpu")
    assert trl_config(config, tmp_path, 4, 1, cpu).n_gpu == 0
    monkeypatch.setattr("trl.trainer.sft_config.SFTConfig.__post_init__", lambda self: setattr(self, "_n_gpu", 8))
    arguments = trl_config(config, tmp_path, 4, 2, cpu)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size * arguments.gradient_accumulation_steps == 2  # micro-batches


@pytest.mark.slow
def test_the_progress_line_shows_no_loss_before_there_is_one(tmp_path: Path) -> None:
    from rich.console import Console

    from sft.progress import StepMetrics

    console = Console(file=(tmp_path / "out").open("w"), force_terminal=True, _environ={"TERM": "xterm"})
    metrics = StepMetrics(tmp_path / "metrics.jsonl", lambda: OpenSinks([], tmp_path, []), console)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    metrics.on_train_begin(arguments, TrainerState(max_steps=5), TrainerControl())
    metrics.close()
    console.file.close()
    shown = (tmp_path / "out").read_text()
    assert "supervised" in shown
    assert "nan" not in shown


@pytest.mark.slow
def test_a_terminal_that_cannot_redraw_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sft.progress import StepMetrics

    monkeypatch.setenv("TERM", "dumb")
    with (tmp_path / "out").open("w") as out:
        metrics = StepMetrics(
            tmp_path / "metrics.jsonl", lambda: OpenSinks([], tmp_path, []), Console(file=out, force_terminal=True)
        )
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        metrics.on_train_begin(arguments, TrainerState(max_steps=5), TrainerControl())
        logs = {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1, "num_tokens": 10.0}
        metrics.on_log(arguments, TrainerState(max_steps=5, global_step=1), TrainerControl(), logs)
        metrics.close()
    assert "supervised step 1/5  loss 2.500" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path, kind: str) -> None:
    folder = dense_policy(kind, tmp_path)
    assert not load_policy(folder).training
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        IncompleteCheckpointError, match=r"1 weights are missing, first 'model\.layers\.1\.mlp\.up_proj"
    ):
        load_policy(folder)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["token", "conversation"])
def test_loss_and_gradient_of_a_step_do_not_depend_on_its_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    measured = []
    for num in (1, 3):  # 8 rows in 3 micro-batches: not equally many
        monkeypatch.setattr("sft.micro_batches._num_needed", lambda *_, num=num: num)
        config = stage(tmp_path / str(num), {"build": SIZES}, loss=loss, num_steps=3)
        lines = steps_of(run_stage(config, monkeypatch))
        measured.append([line[key] for line in lines for key in ("loss", "grad_norm", "tokens")])
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)


@pytest.mark.slow
def test_a_policy_whose_loss_is_trls_is_not_trained_by_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft.rows import SftDataError
    from tests.families import write_policy

    policy = write_policy("qwen3_moe", tmp_path / "policy")  # its routers have a loss
    config = stage(tmp_path / "run", {"path": str(policy), "max_tokens": 400}, loss="conversation")
    with pytest.raises(SftDataError, match=r"sft\.loss: conversation needs the loss that the stage computes itself"):
        run_stage(config, monkeypatch)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6}, {"do_sample": False}),
        ({"early_stopping": True}, {}),
        ({"pad_token_id": -1, "top_k": 20, "output_scores": True}, {"do_sample": True, "top_k": 20}),
        ({"pad_token_id": 0, "bos_token_id": 2, "length_penalty": 2.0}, {"pad_token_id": 0, "bos_token_id": 2}),
        ({"length_penalty": 2.0, "num_beams": 4}, {"length_penalty": 2.0, "num_beams": 4}),
    ],
)
def test_a_policy_is_saved_whose_defaults_for_generation_contradict_themselves(
    tmp_path: Path, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    from sft.stage import save_policy

    folder = dense_policy("llama", tmp_path / "policy")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], **given}))
    save_policy(load_policy(folder), tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    del saved["transformers_version"]
    assert saved == {"eos_token_id": [1, 5], **kept}
