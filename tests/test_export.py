"""An export: what transformers and vLLM load as it is computes what the engines of the run served."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.chat import Chat, load_chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.chat.formats.template import TemplateFormat
from rl.config.checkpoint_files import CHAT_FILES
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.data_types import Budget
from rl.export import ExportError, export_policy, push
from rl.file_hashes import WrittenFile, files_in, sync_and_hash
from rl.learner.learner import Learner
from rl.policies import build_policy
from rl.runs.checkpoint import save_checkpoint
from rl.weights.names import checkpoint_tensors, restored_tensors
from rl.weights.shared_memory import write_weights
from tests.families import write_policy
from tests.makers import ARITHMETIC, make_config, write_run
from tests.test_agreement import as_sample
from tests.test_chat import adversarial_tokenizer
from tests.test_engine import sample_many

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

# Templates


def test_the_template_of_a_built_policy_renders_what_its_format_does() -> None:
    tokenizer = adversarial_tokenizer()
    tokenizer.chat_template = NemotronFormat.template
    ours, theirs = Chat(tokenizer, NemotronFormat()), Chat(tokenizer, TemplateFormat.for_tokenizer(tokenizer))
    properties: dict[str, Any] = {"sku": {"type": "string"}, "n": {"type": "integer"}}
    schemas: list[dict[str, Any]] = [
        {"type": "object", "properties": properties, "required": ["sku", "n"]},
        {"type": "object", "properties": properties, "required": ["sku"]},
        {"type": "object", "properties": {"sku": {"type": "string", "description": "é"}}, "required": ["sku"]},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": None, "required": None},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ]
    openings = [
        [Message("user", "hi")],
        [Message("system", "be\nshort"), Message("user", "hi")],
        [Message("user", "a"), Message("assistant", "b", tool_calls=(ToolCall("f", {"n": 1}),)), Message("tool", "c")],
    ]
    budgets: list[Budget] = ["off", "unlimited", 7, "low"]
    for schema in [None, *schemas]:
        tools = (ToolSpec("f", "é does", schema),) if schema is not None else ()
        for opening in openings:
            for budget in budgets:
                check_same(ours, theirs, opening, tools, budget)


def check_same(ours: Chat, theirs: Chat, opening: list[Message], tools: tuple[ToolSpec, ...], budget: Budget) -> None:
    first, second = ours.begin(opening, tools, budget), theirs.begin(opening, tools, budget)
    assert ours.text(second.prompt_ids) == ours.text(first.prompt_ids)
    assert second.prompt_ids == first.prompt_ids
    thought = "" if budget == "off" else "hm"
    calls = (ToolCall("f", {"sku": "a", "n": 3, "more": [1, None, {"é": True}]}), ToolCall("g", {})) if tools else ()
    for reply in (Reply("so", thought), Reply("", thought, calls), Reply("so", thought, calls)):
        assert second.reply_ids(reply) == first.reply_ids(reply)
        taken = first.take(first.reply_ids(reply))
        assert second.take(second.reply_ids(reply)) == taken
        for following in ([Message("tool", "1"), Message("tool", "2")], [Message("user", "more")]):
            assert second.say(following) == first.say(following)


# Folders


def finished_run(run_dir: Path, policy: Path, **sections: Any) -> tuple[ExperimentConfig, Learner]:
    """A run folder with a checkpoint of the learner after one step."""
    config = make_config(
        run_dir, policy={"path": str(policy), "max_tokens": 256}, train={"num_steps": 3}, environments={ARITHMETIC: {}},
        rollout={"max_in_flight": 12, "kv_cache_gib": 0.25, "temperature": 0.7}, **sections,
    )  # fmt: skip
    write_run(config, 3)
    learner = Learner(policy, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    learner.folded.refresh()

    def save(folder: Path) -> dict[str, WrittenFile]:
        learner.save_state(folder)
        for pattern in CHAT_FILES:
            for file in policy.glob(pattern):
                (folder / "model" / file.name).write_bytes(file.read_bytes())
        return sync_and_hash(folder, files_in(folder))

    save_checkpoint(run_dir / "checkpoints", 3, save, {})
    return config, learner


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, folder, 0, NemotronFormat())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16", "nvfp4"])
def test_the_weights_are_those_that_engines_were_given(precision: str, hybrid: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config, learner = finished_run(tmp_path / "run", hybrid, precision=precision)
    out = export_policy(tmp_path / "run", tmp_path / "out")
    arithmetic = config.precision.arithmetic
    published = checkpoint_tensors(learner.model, arithmetic, learner.folded.quantised)
    served = dict(restored_tensors(published, config.precision, getattr(torch, arithmetic)))
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == served.keys()
    assert all(torch.equal(exported[name], served[name]) for name in served)
    assert {exported[name].dtype for name in served} <= {torch.float32, getattr(torch, arithmetic)}
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert str(loaded.dtype) == f"torch.{arithmetic}"


@pytest.mark.slow
def test_the_command_prints_the_folder_and_no_bars_of_libraries(hybrid: Path, tmp_path: Path) -> None:
    finished_run(tmp_path / "run", hybrid)
    command = [sys.executable, "-m", "rl", "export", str(tmp_path / "run"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"policy: {tmp_path / 'out'}\n", "")


@pytest.mark.slow
def test_the_folder_holds_all_that_serving_needs(hybrid: Path, tmp_path: Path) -> None:
    finished_run(tmp_path / "run", hybrid)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000003"
    out = export_policy(checkpoint, tmp_path / "deep" / "out")
    chat = load_chat(hybrid, "auto")
    messages = [Message("user", "1+1=?")]
    rendered = AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": "user", "content": "1+1=?"}], add_generation_prompt=True, tokenize=False
    )
    assert rendered == chat.text(chat.begin(messages, (), "unlimited").prompt_ids)
    assert load_chat(out, "auto").begin(messages, (), 5).prompt_ids == chat.begin(messages, (), 5).prompt_ids
    defaults = GenerationConfig.from_pretrained(out)
    assert (defaults.eos_token_id, defaults.pad_token_id) == (list(chat.stop_ids), chat.pad_id)
    assert (defaults.do_sample, defaults.temperature) == (True, 0.7)
    card = (out / "README.md").read_text()
    assert "3 steps of grpo on math/Arithmetic-v0" in card and "| math/Arithmetic-v0 | 0.200 ± 0.030 | 0.800" in card
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.slow
def test_engines_sample_the_same_tokens_from_an_export_as_in_training(tmp_path: Path) -> None:
    from rl.engine.vllm_core import VllmEngine

    policy = write_policy("qwen3", tmp_path / "policy")
    config, learner = finished_run(tmp_path / "run", policy)
    out = export_policy(tmp_path / "run", tmp_path / "out")
    source = write_weights(checkpoint_tensors(learner.model, "float32"), 1, tmp_path / "published")

    def sampled(engine: "VllmEngine") -> list[list[int]]:
        turns = asyncio.run(sample_many(engine, 20, first_seed=0))
        return [as_sample(turn, 1.0).tokens.ids.tolist() for turn in turns]

    with_engine = _engines(VllmEngine, config, policy, out)
    trained = next(with_engine)
    before = sampled(trained)
    asyncio.run(trained.load_weights(source))
    after = sampled(trained)
    exported = next(with_engine)
    assert before != after == sampled(exported)
    with_engine.close()


def _engines(kind: Any, config: ExperimentConfig, *folders: Path) -> Generator[Any]:
    """An engine of each folder, one at a time."""
    for folder in folders:
        engine = kind(folder, config, lockstep_steps=2)
        try:
            yield engine
        finally:
            engine.shutdown()


def test_what_is_no_run_and_what_is_there_already_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is neither a run folder .* nor one of its checkpoints"):
        export_policy(tmp_path, tmp_path / "out")
    config = make_config(tmp_path / "run", policy={"path": str(tmp_path / "none")})
    write_run(config, 2)
    with pytest.raises(ConfigError, match="holds no policy yet"):
        export_policy(tmp_path / "run", tmp_path / "out")
    (tmp_path / "policy").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    write_run(make_config(tmp_path / "other", policy={"path": str(tmp_path / "policy")}), 2)
    with pytest.raises(ExportError, match="out exists already; give a new folder"):
        export_policy(tmp_path / "other", tmp_path / "out")


def test_a_push_creates_the_repository_and_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repository: str, **more: Any) -> str:
            calls.append(("create", {"repo_id": repository, **more}))
            return f"https://huggingface.co/{repository}"

        def upload_folder(self, **more: Any) -> None:
            calls.append(("upload", more))
            if more["repo_id"] == "me/refused":
                raise OSError("no network")

    monkeypatch.setattr("rl.export.HfApi", Api)
    assert push(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    assert calls == [
        ("create", {"repo_id": "me/mine", "exist_ok": True}),
        ("upload", {"repo_id": "me/mine", "folder_path": tmp_path}),
    ]
    with pytest.raises(ExportError, match=r"is written, but cannot be pushed to me/refused: no network; log in with"):
        push(tmp_path, "me/refused")
