"""What newcomers get wrong ends a command with exit code 2, before anything is started, and with a remedy.

Each mistake goes through the commands as a user types them. Mistakes of single keys are in `tests/test_config.py`,
those of a checkpoint's files in `tests/test_policy_checks.py`, and those of rows in `tests/test_sft_rows.py`.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rl.__main__ import main as rl_main
from rl.chat.formats.nemotron import NemotronFormat
from rl.policies import train_tokenizer
from sft.__main__ import main as sft_main

MODEL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
SHAPES = {"model.embed_tokens": 384, "model.layers.0.self_attn.q_proj": 8, "model.layers.0.mlp.up_proj": 8}
PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Has neither tools nor reasoning."""
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1503300328\n"
EXPERIMENT = """run_dir: run
seed: 0
policy: {path: policy}
environments: {math/Arithmetic-v0: {}}
train: {num_steps: 1}
ray: {address: local}
"""
MODULES = {
    "imports_nothing": "import numpyy\n",
    "is_no_python": "def prices(reply, row)\n    return 1\n",
    "is_undecorated": "def prices(reply, row):\n    return 1.0\n",
    "has_one_row": (
        "from envs.scored import scored\n@scored(rows=[{'prompt': 'x'}])\ndef f(reply, row):\n    return 1\n"
    ),
    "has_questions": (
        "from envs.scored import scored\n@scored(rows=[{'question': 'x'}])\ndef f(reply, row):\n    return 1\n"
    ),
    "forgets_messages": (
        "from envs.text_env import TextEnv\nclass F(TextEnv):\n"
        "    def reset(self, *, seed=None, options=None):\n        return 'a prompt', {}\n"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: a whole policy, broken copies of it, and modules with environments."""
    here = tmp_path_factory.mktemp("work")
    policy = here / "policy"
    train_tokenizer(["a conversation"] * 3, 384, NemotronFormat()).save_pretrained(policy)
    (policy / "config.json").write_text(json.dumps({**MODEL, "max_position_embeddings": 4096}))
    save_file({f"{name}.weight": np.zeros((n, 4), np.float32) for name, n in SHAPES.items()}, policy / "m.safetensors")
    for name in ("lfs", "no_tokenizer", "plain"):
        shutil.copytree(policy, here / name)
    (here / "lfs" / "m.safetensors").write_text(LFS)
    for path in [*(here / "no_tokenizer").glob("*token*"), *(here / "no_tokenizer").glob("chat*")]:
        path.unlink()
    (here / "plain" / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    for name, file in (("gguf", "q4.gguf"), ("lora", "adapter_config.json"), ("empty", "README.md")):
        (here / name).mkdir()
        (here / name / file).write_text("{}")
    for name, code in MODULES.items():
        (here / f"{name}.py").write_text(code)
    (here / "used").mkdir()
    (here / "rows.csv").write_text("question,answer\n1,2\n")
    yield here


Run = Callable[..., str]


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a command says that is run in the folder and must refuse to begin."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def run(program: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        before = sorted(path.name for path in folder.iterdir())
        code: Any = None
        try:
            code = rl_main() if program == "rl" else sft_main()
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr().err
        assert code == 2, told
        assert "Traceback" not in told
        after = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
        assert after == [name for name in before if name != "__pycache__"]  # nothing was begun
        return told

    return run


def words_of(told: str) -> str:
    return " ".join(told.replace("│", " ").split())


FILES: dict[str, tuple[str | None, list[str]]] = {
    # name: (what the YAML holds, what the message must say)
    "a file that is not there": (None, ["there is no file wrong.yaml", "fix: give the path of an experiment's YAML"]),
    "a syntax error": (
        EXPERIMENT + "rollout: {num_workers: 2\n",
        ["wrong.yaml, line", "a missing colon, quote or bra"],
    ),
    "environments as a list": (
        EXPERIMENT.replace("{math/Arithmetic-v0: {}}", "[math/Arithmetic-v0]"),
        ["line 4: environments: ['math/Arithmetic-v0'] is not a section of keys", "such as ID: {}"],
    ),
    "the policy as a name": (
        EXPERIMENT.replace("{path: policy}", "Qwen/Qwen3-0.6B"),
        ["policy: Qwen/Qwen3-0.6B is not a section of keys", "fix: write keys below it (path, build"],
    ),
    "an environment twice": (
        EXPERIMENT.replace("{math", "\n  math/Arithmetic-v0: {}\n  math").replace("{}}", "{weight: 2}"),
        ["line 6: environments.math/Arithmetic-v0 is given twice, first in line 5", "fix: keep one of the two"],
    ),
    "a supervised stage for RL": (
        "run_dir: run\nseed: 0\npolicy: {path: policy}\nsft: {data: rows.jsonl}\n",
        ["environments: is missing and has no default", "train: is missing", "fix: add it"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_refused(name: str, refused: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = FILES[name]
    (folder / "wrong.yaml").unlink(missing_ok=True)
    if text is not None:
        (folder / "wrong.yaml").write_text(text)
    told = words_of(refused("rl", "train", "wrong.yaml", "--dry-run"))
    assert all(words in told for words in expected), told


OVERRIDES: dict[str, tuple[list[str], list[str]]] = {
    # name: (overrides of the experiment, what the message must say)
    # checkpoints
    "a folder that is not there": (["policy.path=/none"], ["there is no folder /none", "fix: give the folder"]),
    "a folder without a checkpoint": (["policy.path=empty"], ["empty has no config.json", "relative paths start at"]),
    "a model of the hub that is misspelt": (
        ["policy.path=Qwen/Qwen3-06B"],
        ["no model Qwen/Qwen3-06B in the cache of the Hugging Face hub", "fix: download it with: hf download"],
    ),
    "a file in place of its folder": (
        ["policy.path=policy/m.safetensors"],
        ["policy/m.safetensors is a file, not a folder", "fix: give the folder that it is in: policy"],
    ),
    "a GGUF file": (["policy.path=gguf/q4.gguf"], ["in the format GGUF", "fix: give the folder of the original"]),
    "a folder with a GGUF file": (["policy.path=gguf"], ["in the format GGUF", "fix: give the folder of the original"]),
    "an adapter in place of a policy": (["policy.path=lora"], ["holds only an adapter (LoRA)", "fix: merge it first"]),
    "weights that Git LFS did not fetch": (["policy.path=lfs"], ["is a pointer of Git LFS", "git lfs pull"]),
    "a tokenizer that was left out": (["policy.path=no_tokenizer"], ["there is no tokenizer.json, copy it into"]),
    # environments
    "an environment that is misspelt": (["environments={math/Arithmatic-v0: {}}"], ["fix: write math/Arithmetic-v0"]),
    "an option that is misspelt": (
        ["environments.math/Arithmetic-v0.options={levle: 2}"],
        ["arithmetic has no option 'levle'; its options: level", "fix: use one of the environment's options"],
    ),
    "an option out of range": (
        ["environments.math/Arithmetic-v0.options={level: 99}"],
        ["cannot open a train task", "level must be one of 1, 2, 3, 4, got 99", "fix: change the options"],
    ),
    "a module in another folder": (
        ["environments={elsewhere:prices: {}}"],
        ["No module named 'elsewhere'", "fix: run the command in the folder that holds elsewhere.py"],
    ),
    "a module that fails to import": (
        ["environments={imports_nothing:f: {}}"],
        ["No module named 'numpyy'", "fix: fix the package that provides it"],
    ),
    "a module with a syntax error": (
        ["environments={is_no_python:prices: {}}"],
        ["SyntaxError: expected ':'", "line 1"],
    ),
    "a name that the module lacks": (
        ["environments={is_undecorated:price: {}}"],
        ["module 'is_undecorated' has no attribute 'price'", "fix: "],
    ),
    "a function that is not decorated": (
        ["environments={is_undecorated:prices: {}}"],
        ["is_undecorated:prices is a plain function; decorate it with @scored(rows=...)", "fix: "],
    ),
    "too few rows for two splits": (["environments={has_one_row:f: {}}"], ["no row is in split", "give more rows"]),
    "rows without a prompt": (
        ["environments={has_questions:f: {}}"],
        ["row 0 must be a mapping with a prompt, got {'question': 'x'}", "fix: "],
    ),
    "a reset that returns a text": (
        ["environments={forgets_messages:F: {}}"],
        ["messages must be a tuple of envs.messages.Message, got 'a prompt'", "envs check forgets_messages:F"],
    ),
    "a curriculum without its profile": (
        ["environments.math/Arithmetic-v0.curriculum={profile: none.jsonl, num_steps: 3}"],
        ["none.jsonl cannot be read", "fix: write one with: python -m envs profile"],
    ),
    "a curriculum without tasks": (
        ["environments.math/Arithmetic-v0.curriculum={measured: {}}"],
        ["a curriculum draws from one of profile, num_tasks and option_sets, and none is given"],
    ),
    "an unknown option in a set of options": (
        ["environments.math/Arithmetic-v0.curriculum={option_sets: [{level: 1}, {levle: 2}]}"],
        ["curriculum.option_sets", "arithmetic has no option 'levle'; its options: level"],
    ),
    "a level that the environment refuses": (
        ["environments.math/Arithmetic-v0.curriculum={option_sets: [{level: 1}, {level: 99}]}"],
        ["curriculum.option_sets", "cannot open a train task with {'level': 99}", "level must be one of 1, 2, 3, 4"],
    ),
    # combinations
    "tools without a template that has them": (
        ["policy.path=plain", "policy.chat=template", "environments.tools/Store-v0={}"],
        ["tools/Store-v0 has tools, which the policy's chat format cannot express", "fix: the tokenizer of plain also"],
    ),
    "a budget without a think block": (
        ["policy.path=plain", "policy.chat=template", "environments.math/Arithmetic-v0.budget=32"],
        ["chat format has no think block, so a thinking budget cannot be enforced", "fix: remove the key"],
    ),
    "an effort without a think block": (
        ["policy.path=plain", "policy.chat=template", "environments.math/Arithmetic-v0.budget={low: 1, unlimited: 1}"],
        ["environments.math/Arithmetic-v0.budget", "nor an effort asked for", "fix: remove the key"],
    ),
    "a template for a policy that is built": (
        ["policy={path: null, build: {}, chat: template}", "sft={}"],
        ["a policy that is built has no chat template of its own", "fix: "],
    ),
    "prompts longer than a sequence": (
        ["policy.max_tokens=20", "rollout.max_reply_tokens=16"],
        ["a prompt of math/Arithmetic-v0 has 2", "20 must hold prompts and replies", "fix: raise policy.max_tokens"],
    ),
    "replies longer than a sequence": (["rollout.max_reply_tokens=512"], ["must be smaller than policy.max_tokens"]),
    "more tokens than the context": (
        ["policy.max_tokens=8192", "learner.tokens_per_micro_batch=8192"],
        ["more than the checkpoint's context of 4096", "fix: set it to 4096 or less"],
    ),
    "an adapter of a quantised policy": (
        ["precision=nvfp4", "learner.adapter={publish: merged}"],
        ["publish: merged does not go with precision nvfp4"],
    ),
    "an adapter beside layers that are not there": (
        ["learner.adapter={targets: [query_key_value]}"],
        ["query_key_value match no layer of policy", "fix: choose among its linear layers: q_proj, up_proj"],
    ),
    "a GPU that the machine lacks": (
        ["rollout.gpus_per_worker=64"],
        ["CPUs and 64 GPUs", "cannot hold that (this machine:", "Lower learner.cpus"],
    ),
    "a rank on more GPUs than one": (
        ["learner.gpus=2"],
        ["2 is not valid; the key takes: number, at least 0, at most 1"],
    ),
    "weights over NCCL between engines without GPUs": (
        ["weights=nccl", "learner.gpus=1"],
        ["nccl cannot be used where learner.gpus is 1 and rollout.gpus_per_worker 0", "none for an engine", "fix: "],
    ),
    "weights through CUDA IPC on CPUs": (
        ["weights=ipc"],
        ["the transport ipc cannot be used where learner.gpus is 0", "both must have a part of one GPU", "fix: "],
    ),
    "weights over NCCL on a machine without enough GPUs": (
        ["weights=nccl", "learner.gpus=1", "rollout.gpus_per_worker=64"],
        ["1 learner rank with 1 CPUs and 1 GPUs and", "Lower learner.cpus, learner.gpus"],
    ),
    # values
    "a chat format of another project": (["policy.chat=chatml"], ["one of template, nemotron, auto", "fix: "]),
    "a number format of another project": (
        ["precision=bfloat16"],
        ["bfloat16 is not valid; the key takes: a section with format: float32 or bf16 or nvfp4", "fix: see"],
    ),
    "a sink that is misspelt": (["tracking=[{sink: wandbb}]"], ["did you mean wandb?"]),
    "a seed below 0": (["seed=-1"], ["seed: -1 is not valid; the key takes: whole number, at least 0", "fix: "]),
    "a key that is misspelt": (["learner.learning_rat=1"], ["did you mean learner.learning_rate"]),
    "data that is not there": (
        ["sft={data: rows.jsonl}"],
        ["there is no file or folder rows.jsonl", "fix: give a file"],
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_wrong_checkpoint_environment_or_combination_is_refused(name: str, refused: Run, folder: Path) -> None:
    overrides, expected = OVERRIDES[name]
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    told = words_of(refused("rl", "train", "experiment.yaml", "--dry-run", *overrides))
    assert all(words in told for words in expected), told


def test_a_run_that_is_not_there_and_a_folder_that_is_used_are_refused(refused: Run, folder: Path) -> None:
    from rl.config.read import load_config
    from rl.runs.folder import RunFolder, RunFolderError

    (folder / "experiment.yaml").write_text(EXPERIMENT)
    told = refused("rl", "evaluate", "experiment.yaml", "--policy", "empty")
    assert "empty is not the folder of a Hugging Face checkpoint" in told
    assert "off, unlimited or a number of tokens" in refused("rl", "evaluate", "experiment.yaml", "--budgets", "lots")
    assert "must be train or heldout" in words_of(refused("rl", "evaluate", "experiment.yaml", "--split", "test"))
    with (
        pytest.raises(RunFolderError, match="holds no run to resume; omit --resume"),
        RunFolder.open(load_config(folder / "experiment.yaml", [f"run_dir={folder}/used"]), resume=True),
    ):
        pass


ROWS: dict[str, tuple[str, list[str], list[str]]] = {
    # name: (the file's text, overrides, what the message must say)
    "rows of another form": (
        '{"question": "2 + 2?", "answer": "4"}',
        [],
        [
            "row 1: a row must have one of these forms, got an object with question, answer",
            '{"messages": [{"role": "us',
        ],
    ),
    "an empty file": ("", [], ["rows.jsonl holds no conversations: write one a line, such as {"]),
    "Python in place of JSON": ("{'prompt': 'a', 'completion': 'b'}", [], ["not JSON", "as one JSON object on a line"]),
    "a role of another project": (
        '{"messages": [{"role": "bot", "content": "x"}]}',
        [],
        ["messages[0]: a message's role must be one of system", "got 'bot'"],
    ),
    "no reply": ('{"messages": [{"role": "user", "content": "x"}]}', [], ["no assistant message to train on"]),
    "a reply first": (
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        [],
        ["must begin with a user's or system message, not the assistant's"],
    ),
    "an image": (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "x"}]}',
        [],
        ['a part of a content must be {"type": "text", "text": "..."}; other types cannot be trained'],
    ),
    "a table": ("", ["sft.data=rows.csv"], [".csv files are not read; write JSONL, a JSON list or Parquet"]),
    "no sft section": ("", ["sft=null"], ["stage.yaml has no `sft` section: add one, such as `sft: {num_steps: 300}`"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_wrong_rows_are_refused(name: str, refused: Run, folder: Path) -> None:
    text, overrides, expected = ROWS[name]
    (folder / "rows.jsonl").write_text(text + "\n")
    (folder / "stage.yaml").write_text("run_dir: run\nseed: 0\npolicy: {path: policy}\nsft: {data: rows.jsonl}\n")
    told = words_of(refused("sft", "show", "stage.yaml", *overrides))
    (folder / "rows.jsonl").unlink()  # another test says that it is missing
    assert all(words in told for words in expected), told
