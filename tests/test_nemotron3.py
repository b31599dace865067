"""The experiments of Nemotron 3, of one stage and of all: tiny copies differ in sizes only, and run; the plans are
those of the README.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl.algorithms.shaping.length import Length
from rl.chain.checks import check_stages
from rl.checks import check
from rl.config.chain import load_chain
from rl.config.chain_stage import Stage
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.config.source import read_with_base
from rl.config.stages import load_stage
from rl.plan.nodes import Nodes
from rl.plan.show import show_plan
from rl.runs.chain_folder import ChainFolder
from tests.families import write_policy
from tests.published_models import PUBLISHED
from tests.test_guides import command, lines_of

FOLDER = Path(__file__).parent.parent / "experiments" / "nemotron3"
MODELS = ("nano", "super")
SIZES = {
    "run_dir",
    *("policy.path", "policy.build", "policy.max_tokens", "sft"),  # a policy that is built needs a supervised stage
    *("train.num_steps", "train.num_prompts", "train.group_size"),
    *("learner.num_ranks", "learner.expert_parallel", "learner.cpus", "learner.gpus"),
    *("learner.tokens_per_micro_batch", "learner.logprob_chunk_tokens"),
    *("rollout.num_workers", "rollout.cpus_per_worker", "rollout.gpus_per_worker", "rollout.gpu_memory_share"),
    *("rollout.kv_cache_gib", "rollout.max_in_flight", "rollout.max_reply_tokens"),
    *("evaluation.num_tasks", "evaluation.num_samples"),
}
"""Keys, or whole sections, in which a tiny copy may differ."""
JUDGE_SIZES = {"judge.path", "judge.max_tokens", "judge.max_in_flight", "judge.kv_cache_gib"}
SFT_SIZES = {"num_steps", "num_conversations", "batch_size", "learning_rate", "warmup_steps"}


def flat(tree: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = ".".join((*above, name))
        if isinstance(value, Mapping) and key not in SIZES:
            yield from flat(value, *above, name)
        else:
            yield key, value


@pytest.mark.parametrize("model", MODELS)
def test_the_tiny_copy_differs_only_in_sizes(model: str) -> None:
    large, tiny = (
        dict(flat(load_config(FOLDER / f"{model}_{kind}.yaml").model_dump(mode="json"))) for kind in ("rlvr", "tiny")
    )
    assert large.keys() == tiny.keys()
    different = {key for key in large if large[key] != tiny[key]}
    assert {"policy.path", "policy.build", "learner.num_ranks", "rollout.num_workers"} <= different <= SIZES
    assert tiny["learner.num_ranks"] == tiny["learner.expert_parallel"] == 2


def chain(model: str, kind: str = "chain", *overrides: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in load_chain(FOLDER / f"{model}_{kind}.yaml", overrides)[1]}


def read(stage: Stage) -> ExperimentConfig:
    """Without a download."""
    assert stage.yaml is not None
    return (load_config if stage.command == "rl train" else load_stage)(stage.yaml, stage.overrides())


@pytest.mark.parametrize("model", MODELS)
def test_the_stages_of_the_tiny_chain_differ_only_in_sizes(model: str) -> None:
    large, tiny = chain(model), chain(model, "chain_tiny")
    assert list(large) == list(tiny)
    for name, stage in large.items():
        assert (stage.command, names(stage.sources)) == (tiny[name].command, names(tiny[name].sources))
        configs = [read(one) for one in (stage, tiny[name])]
        before, after = (dict(flat(config.model_dump(mode="json"))) for config in configs)
        assert before.keys() == after.keys()
        assert {key for key in before if before[key] != after[key]} <= SIZES | JUDGE_SIZES, name
        if stage.command == "sft train":
            told = [config.sft.model_dump(exclude=SFT_SIZES) for config in configs if config.sft]
            assert told[0] == told[1] and len(told) == 2


def names(stages: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def test_the_chains_have_the_stages_of_the_recipes() -> None:
    nano, larger = chain("nano"), chain("super")
    assert list(nano) == ["sft", "rlvr", "genrm", "rlhf", "rlvr_again"]
    assert list(larger) == ["sft", "sft_by_conversation", "rlvr", "genrm", "rlhf"]
    assert names(nano["rlhf"].sources) == names(larger["rlhf"].sources) == ["rlvr", "genrm"]
    assert names(nano["rlvr_again"].sources) == ["rlhf"]
    for stages, nodes in (
        (nano, {"rlvr": 32, "genrm": 32, "rlhf": 32, "rlvr_again": 32}),
        (larger, {"rlhf": 32 + 64 + 1}),
    ):
        assert {name: read(stages[name]).reserved[1] / 8 for name in nodes} == nodes
        rlhf = read(stages["rlhf"])
        assert rlhf.train.num_prompts * rlhf.train.group_size == 2048
        assert list(rlhf.environments) == ["chat/Compared-v0"] and rlhf.judge is not None
        (shaping,) = rlhf.environments["chat/Compared-v0"].shaping
        assert isinstance(shaping, Length)
        genrm = read(stages["genrm"])
        assert genrm.train.num_prompts * genrm.train.group_size == 1024 and list(genrm.environments) == [
            "chat/GenRM-v0"
        ]


def test_the_experiments_have_the_numbers_of_the_recipes() -> None:
    nano, larger = (load_config(FOLDER / f"{model}_rlvr.yaml") for model in MODELS)
    assert nano.train.num_prompts * nano.train.group_size == 2048
    assert larger.train.num_prompts * larger.train.group_size == 4096
    assert (nano.policy.max_tokens, larger.policy.max_tokens) == (49_152, 65_536)
    assert (nano.train.max_staleness, larger.train.max_staleness) == (0, 1)
    assert [config.reserved[1] for config in (nano, larger)] == [32 * 8, 176 * 8]
    for config in (nano, larger):
        assert (config.learner.learning_rate, config.learner.beta1, config.learner.beta2) == (3e-6, 0.9, 0.999)
        assert config.learner.adapter is None and config.learner.freeze_router and config.precision.name == "bf16"
        assert config.learner.expert_bias_rate == 1e-3 and config.rollout.temperature == 1.0


def plans_in_the_readme() -> dict[str, tuple[str, str]]:
    """The command and what it prints, by model."""
    blocks = re.findall(r"```text\n\$ (python -m rl plan \S+/(\w+)_rlvr.*?)\n(.*?)```", readme(), re.DOTALL)
    return {model: (line, printed) for line, model, printed in blocks}


def readme() -> str:
    return (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("model", MODELS)
def test_the_readme_shows_what_the_plan_prints(model: str, tmp_path: Path) -> None:
    line, shown = plans_in_the_readme()[model]
    options = dict(re.findall(r"--(\S+) (\S+)", line))
    PUBLISHED[f"Nemotron-3-{model.title()}"]().save_pretrained(tmp_path)
    config = load_config(FOLDER / f"{model}_rlvr.yaml", [f"policy.path={tmp_path}"])
    printed = StringIO()
    console = Console(file=printed, width=120, highlight=False)
    show_plan(config, options["gpu"], console, Nodes(int(options["nodes"]), int(options["gpus-per-node"])))
    assert "\n".join(text.rstrip() for text in printed.getvalue().splitlines()) == shown.rstrip()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_misses_only_the_checkpoint_and_then_only_gpus(model: str, tmp_path: Path) -> None:
    yaml, local = FOLDER / f"{model}_rlvr.yaml", "ray.address=local"
    with pytest.raises(ConfigError) as missing:
        check(load_config(yaml, [local]))
    assert [problem.key for problem in missing.value.problems] == ["policy.path"]
    policy = write_policy("qwen3", tmp_path)  # a tiny one, without experts
    edit = json.loads((policy / "config.json").read_text()) | {"max_position_embeddings": 65_536}
    (policy / "config.json").write_text(json.dumps(edit))
    with pytest.raises(ConfigError, match=r"the run asks for \d+ learner ranks with [\d.]+ CPUs and 1 GPUs"):
        check(load_config(yaml, [local, f"policy.path={policy}", "learner.expert_parallel=1"]))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_chain_tells_all_that_is_missing_before_it_begins(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.chain.checks.downloaded_snapshot", lambda _: None)
    check_stages(list(chain(model, "chain_tiny", "set.ray.address=local").values()))
    with pytest.raises(ConfigError) as missing:
        check_stages(list(chain(model, "chain", "set.ray.address=local").values()))
    told = str(missing.value)
    assert re.findall(r"there is no folder (\S+?),", told) == [
        str(read(chain(model)[name]).policy.path) for name in ("sft", "genrm")
    ]
    assert len(re.findall(r"the run asks for \d+ learner ranks with [\d.]+ CPUs and 1 GPUs", told)) == 3 - (
        model == "super"
    )


@pytest.mark.slow
def test_the_tiny_chain_goes_through_sft_and_rlhf_with_a_judge_to_its_report(tmp_path: Path) -> None:
    """Without RLVR, which takes most of the time, with a judge that is only taught, in float32, which is quicker."""
    tree = read_with_base(FOLDER / "nano_chain_tiny.yaml").tree
    stages = {name: tree["stages"][name] for name in ("sft", "genrm", "rlhf")}
    stages["genrm"]["command"], stages["rlhf"]["from"] = "sft train", "sft"
    stages["sft"]["set"]["sft"] |= {"num_steps": 2, "num_conversations": 64}
    stages["genrm"]["set"]["sft"] |= {"num_steps": 20, "num_conversations": 160}
    few = {"train": {"num_steps": 1, "num_prompts": 2, "group_size": 2}, "evaluation": {"num_tasks": 1, "every": 0}}
    one = {"learner": {"num_ranks": 1, "expert_parallel": 1}, "rollout": {"max_reply_tokens": 32}}
    for stage in stages.values():
        stage["set"] |= {name: {**stage["set"].get(name, {}), **keys} for name, keys in (few | one).items()}
    chain = {"run_dir": str(tmp_path / "chain"), "yaml": str(FOLDER / "nano_tiny.yaml"), "stages": stages}
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(chain | {"set": {"ray.address": "local", "precision": "float32"}}))
    command("rl", "chain", path)
    folder = ChainFolder(tmp_path / "chain")
    assert all(folder.finished_file(name).is_file() for name in stages)
    page = folder.report_file.read_text()
    assert all(f'href="{name}/report.html"' in page for name in stages) and "chat/Compared-v0" in page
    (step,) = lines_of(tmp_path / "chain" / "rlhf", "train")
    assert step["masked_rows"] == 0 and step["outcome/ok"] + step["outcome/truncated"] == 4
    assert (tmp_path / "chain" / "rlhf" / "exported" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_tiny_copy_runs_with_two_ranks(model: str, tmp_path: Path) -> None:
    short = ("train={num_steps: 1, group_size: 2}", "sft={num_steps: 2, num_conversations: 64}")
    few = ("evaluation.num_tasks=1", "rollout.max_reply_tokens=32", "ray.address=local")
    command("rl", "train", FOLDER / f"{model}_tiny.yaml", f"run_dir={tmp_path}", *short, *few)
    (step,) = lines_of(tmp_path, "train")
    assert step["update/mismatch"] < 1.05 and step["masked_rows"] == 0
    assert "learner rank 1" in (tmp_path / "run.log").read_text()
    saved = json.loads((tmp_path / "checkpoints" / "step_000001" / "learner" / "learner.json").read_text())
    assert saved == {"format": 2, "policy_version": 1}
