"""Configuration: good files load as written, and every mistake is named with its key and how to mend it."""

from pathlib import Path

import pytest

from rl.algorithms.grpo import Grpo
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.explain import explain
from rl.config.keys import all_keys
from rl.config.read import check_references, dump_config, load_config

SMALL = """
run_dir: runs/small
seed: 1
policy: {build: {}}
environments:
  math/Arithmetic-v0: {weight: 2}
sft: {}
train: {num_steps: 5}
"""


def write(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> ExperimentConfig:
    return load_config(write(folder, text), overrides)


BROKEN = {
    # name: (what is added to or replaced in the small file, overrides, what the message must say)
    "misspelt section": ("lerner: {}", [], ["lerner", "no such key", "did you mean learner", "line 9"]),
    "misspelt key in a section": ("learner: {warmup_step: 3}", [], ["learner.warmup_step", "learner.warmup_steps"]),
    "key in the wrong section": ("loss: {group_size: 3}", [], ["loss.group_size", "did you mean train.group_size"]),
    "misspelt key of an environment": (
        "",
        ["environments.math/Arithmetic-v0.wieght=1"],
        ["environments.math/Arithmetic-v0.wieght", "environments.math/Arithmetic-v0.weight", "command line"],
    ),
    "misspelt key of a built policy": ("", ["policy.build.hiden_size=64"], ["policy.build.hidden_size"]),
    "text for a number": ("rollout: {max_in_flight: many}", [], ["rollout.max_in_flight", "many", "whole number"]),
    "fraction for a whole number": ("", ["train.num_prompts=1.5"], ["train.num_prompts", "1.5", "whole number"]),
    "truth value for a number": ("", ["train.num_steps=true"], ["train.num_steps", "true is a truth value"]),
    "number for a truth value": ("learner: {freeze_router: 3}", [], ["learner.freeze_router", "true or false"]),
    "unknown choice": ("learner: {schedule: lin}", [], ["learner.schedule", "one of constant, linear, cosine"]),
    "unknown budget": (
        "",
        ["environments.math/Arithmetic-v0.budget=none"],
        ["environments.math/Arithmetic-v0.budget", "off, unlimited or a number of tokens"],
    ),
    "negative number": ("", ["learner.learning_rate=-1e-3"], ["learner.learning_rate", "-0.001", "more than 0"]),
    "zero where one is least": ("", ["train.num_steps=0"], ["train.num_steps", "more than 0"]),
    "share above one": ("", ["sft.no_thinking_share=1.5"], ["sft.no_thinking_share", "at most 1"]),
    "group of one": ("", ["train.group_size=1"], ["train.group_size", "at least 2"]),
    "bad pattern": ("", ["policy.build.pattern=MXE"], ["policy.build.pattern", "MXE", "^[ME*-]+$"]),
    "heads that do not divide": ("", ["policy.build.num_heads=5"], ["policy.build", "multiple of num_heads (5)"]),
    "too many experts a token": ("", ["policy.build.num_experts_per_token=9"], ["exceeds num_experts (8)"]),
    "reply longer than the sequence": (
        "",
        ["rollout.max_reply_tokens=512"],
        ["rollout.max_reply_tokens (512)", "smaller than policy.max_tokens"],
    ),
    "micro-batch smaller than a sequence": ("", ["learner.tokens_per_micro_batch=100"], ["must hold one sequence"]),
    "routes without experts": (
        "",
        ["learner.routing_replay=true", "policy.build.pattern=M*"],
        ["learner.routing_replay", "policy.build.pattern (M*) has no layer E"],
    ),
    "routes of one expert": (
        "",
        ["learner.routing_replay=true", "policy.build.num_experts_per_token=1"],
        ["learner.routing_replay", "at least two experts a token"],
    ),
    "both path and build": ("", ["policy.path=models/x"], ["policy", "keep one and set the other to null"]),
    "neither path nor build": ("", ["policy={}", "policy.build=null"], ["policy", "neither path", "`build: {}`"]),
    "clip on one side": ("loss: {clip_low: 0.2}", [], ["loss", "set clip_low and clip_high together"]),
    "weights bounded below the clip": (
        "loss: {clip_low: 0.2, clip_high: 0.28, importance_weight_max: 1.05}",
        [],
        ["loss", "importance_weight_max (1.05) is below 1 + clip_high (1.28)"],
    ),
    "one GPU and a half": ("", ["rollout.gpus_per_worker=1.5"], ["gpus_per_worker (1.5)", "whole number"]),
    "built policy that is not taught": ("", ["sft=null"], ["add an sft section"]),
    "no environments": ("", ["environments=null"], ["environments", "write keys below it"]),
    "empty section": ("loss:", [], ["loss", "null is not a section", "baseline"]),
    "text for a section": ("", ["train=fast"], ["train", "fast is not a section", "num_steps"]),
    "override without equals": ("", ["train.num_steps"], ["train.num_steps", "not of the form key=value"]),
    "override with blanks": ("", ["seed = 3"], ["'seed = 3'", "without blanks"]),
    "override with an empty name": ("", ["train..x=3"], ["train..x", "train.num_steps=100"]),
    "override that is not YAML": ("", ["seed=[1"], ["seed", "'[1' is not YAML", "quote it"]),
    "override of the base": ("", ["base=x.yaml"], ["base", "cannot be overridden"]),
    "interpolation of nothing": ("loss: {reference_kl: '${sed}'}", [], ["loss.reference_kl", "${seed}", "sed"]),
    "interpolation of a default": (
        "loss: {reference_kl: '${learner.beta1}'}",
        [],
        ["learner.beta1", "default): write its value"],
    ),
    "interpolation of itself": ("loss: {reference_kl: '${loss.reference_kl}'}", [], ["reference_kl", "Recursive"]),
    "section that the command line misspells": (
        "",
        ["trian.num_steps=3"],
        ["command line, trian.num_steps=3: trian: there is no such key", "did you mean train"],
    ),
    "section that a mapping on the command line misspells": ("", ["trian={num_steps: 3}"], ["command line, trian="]),
    "key in a mapping on the command line": (
        "",
        ["environments={math/Arithmetic-v0: {wieght: 2}}"],
        ["command line, environments={math", "math/Arithmetic-v0.wieght"],
    ),
    "key of the file beside a mapping on the command line": (
        "loss: {clip_lov: 0.1}",
        ["loss={reference_kl: 0.5}"],
        ["experiment.yaml, line 9: loss.clip_lov", "loss.clip_low"],
    ),
    "value of the file that the command line makes a section": ("", ["seed.x=3"], ["command line, seed.x=3: seed"]),
    "environments emptied by an override": ("", ["environments={}"], ["command line, environments={}", "at least 1"]),
    "section with a key that is needed, emptied": ("", ["train={}"], ["train.num_steps: is missing"]),
    "interpolation of what refers to nothing": (
        "loss: {reference_kl: '${seed}'}",
        ["seed=${a.b}"],
        ["loss.reference_kl", "'${seed}' refers to a.b, which is not set"],
    ),
    "second of two interpolations": (
        "",
        ["run_dir=x/${seed}/${sed}"],
        ["refers to sed, which", "did you mean ${seed}"],
    ),
    "interpolation relative to the section": ("", ["loss.reference_kl=${.b}"], ["'${.b}' cannot be resolved"]),
    "interpolation with a quote": ("", ["loss.reference_kl=${it's}"], ["loss.reference_kl", "cannot be read"]),
    "interpolation that is not closed": ("", ["loss.reference_kl=${seed"], ["loss.reference_kl", "cannot be read"]),
    "key given twice": ("seed: 2", [], ["line 9", "seed is given twice, first in line 3", "keep one"]),
    "bad indentation": (" x: 1", [], ["experiment.yaml, line", "correct the YAML"]),
    "tabs": ("loss:\n\treference_kl: 1", [], ["line 10", "indent with blanks"]),
    "two documents": ("---\nseed: 1", [], ["line 9", "but found another document"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_named_with_its_key_and_its_fix(name: str, tmp_path: Path) -> None:
    added, overrides, expected = BROKEN[name]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL + added, *overrides)
    message = str(caught.value)
    assert all(text in message for text in [*expected, "fix: "]), message
    assert "pydantic" not in message and "Traceback" not in message


def test_a_value_is_shown_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, "rollout.max_in_flight=many")
    assert "rollout.max_in_flight: many is not valid; the key takes: " in str(caught.value)


@pytest.mark.parametrize("key", ["run_dir", "seed", "policy", "environments", "train"])
def test_a_missing_key_without_default_is_named(key: str, tmp_path: Path) -> None:
    import yaml

    tree = yaml.safe_load(SMALL)
    del tree[key]
    with pytest.raises(ConfigError, match=rf"{key}: is missing and has no default") as caught:
        load(tmp_path, yaml.safe_dump(tree))
    assert f"python -m rl explain {key}" in str(caught.value)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL + "lerner: {}", "train.num_steps=x", "loss.clip=1")
    assert sorted(problem.key for problem in caught.value.problems) == ["lerner", "loss.clip", "train.num_steps"]


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="not a mapping of keys"):
        load(tmp_path, "- 1\n")
    with pytest.raises(ConfigError, match="run_dir: is missing"):
        load(tmp_path, "")


def test_defaults_fill_what_is_not_written(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert config.train.num_steps == 5
    assert config.train.group_size == 8
    assert config.environments["math/Arithmetic-v0"].weight == 2.0
    assert config.environments["math/Arithmetic-v0"].budget == {"unlimited": 1.0}
    assert config.loss == Grpo() and Grpo().clip_low is None


def test_overrides_come_last_and_take_environment_ids_with_slashes(tmp_path: Path) -> None:
    overrides = [
        "environments.math/Arithmetic-v0.weight=3",
        "environments.tools/Store-v0={budget: off}",
        "environments.math/Arithmetic-v0.options.digits=[1, 2]",
        "learner.learning_rate=1e-4",
        "run_dir=runs/a=b",
    ]
    config = load(tmp_path, SMALL, *overrides)
    assert config.environments["math/Arithmetic-v0"].weight == 3.0
    assert config.environments["math/Arithmetic-v0"].options == {"digits": [1, 2]}
    assert config.environments["tools/Store-v0"].budget == {"off": 1.0}
    assert config.learner.learning_rate == 1e-4
    assert config.run_dir == Path("runs/a=b")


def test_an_empty_override_empties_the_section_and_others_are_merged_into_it(tmp_path: Path) -> None:
    text = SMALL.replace("{build: {}}", "{build: {num_experts: 4, vocab_size: 500}}")
    build = load(tmp_path, text, "policy.build={num_experts: 6}").policy.build
    assert build is not None and (build.num_experts, build.vocab_size) == (6, 500)
    build = load(tmp_path, text, "policy.build={}", "policy.build.num_experts=6").policy.build
    assert build is not None and (build.num_experts, build.vocab_size) == (6, 768)
    assert load(tmp_path, SMALL, "learner={}") == load(tmp_path, SMALL)


def test_an_override_reaches_an_environment_whose_name_has_dots(tmp_path: Path) -> None:
    text = SMALL.replace("math/Arithmetic-v0", "my.package:Riddles")
    config = load(tmp_path, text, "environments.my.package:Riddles.weight=3")
    assert {name: env.weight for name, env in config.environments.items()} == {"my.package:Riddles": 3.0}


def test_off_is_text_and_numbers_read_as_yaml_1_2(tmp_path: Path) -> None:
    text = SMALL + "learner: {learning_rate: 1e-3, freeze_router: false}\nevaluation: {num_tasks: 1_000}"
    config = load(tmp_path, text, "environments.math/Arithmetic-v0.budget=off")
    assert config.environments["math/Arithmetic-v0"].budget == {"off": 1.0}
    assert config.learner.learning_rate == 0.001
    assert config.learner.freeze_router is False
    assert config.evaluation.num_tasks == 1000


def test_a_base_lies_under_the_file(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    write(tmp_path / "common", SMALL, "base.yaml")
    config = load(tmp_path, "base: common/base.yaml\nseed: 7\ntrain: {num_prompts: 4}", "train.group_size=2")
    assert (config.seed, config.train.num_steps) == (7, 5)
    assert (config.train.num_prompts, config.train.group_size) == (4, 2)


def test_a_mistake_in_the_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "lerner: {}", "base.yaml")
    with pytest.raises(ConfigError, match=r"base.yaml, line 9: lerner"):
        load(tmp_path, "base: base.yaml")


@pytest.mark.parametrize(
    ("base", "expected"),
    [("nothing.yaml", "there is no file"), ("second.yaml", "a base file has a base"), ("[a, b]", "is not a path")],
)
def test_a_bad_base_is_refused(base: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path, "base: third.yaml", "second.yaml")
    with pytest.raises(ConfigError, match=expected) as caught:
        load(tmp_path, f"base: {base}\n" + SMALL)
    assert "fix: " in str(caught.value)


def test_interpolations_are_resolved_after_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGYM_TEST_NAME", "here")
    text = SMALL.replace("runs/small", "runs/${oc.env:POLYGYM_TEST_NAME}-${seed}")
    config = load(tmp_path, text + "evaluation: {num_tasks: '${train.num_steps}'}", "seed=9")
    assert config.run_dir == Path("runs/here-9")
    assert config.evaluation.num_tasks == 5


@pytest.mark.parametrize("text", ["plain", "off", "1e-3", "${seed}", r"\${seed}", "null", "0x1F", "12:30", "a: b", ""])
def test_a_dumped_configuration_loads_to_an_equal_one(text: str, tmp_path: Path) -> None:
    tree = {
        "run_dir": "runs/x",
        "seed": 0,
        "policy": {"path": "models/x"},
        "precision": "bf16",
        "environments": {
            "a/B-v1": {"weight": 1e-7, "budget": "off", "options": {"text": text, "list": [text, 1, 0.5]}}
        },
        "train": {"num_steps": 1},
    }
    config = ExperimentConfig.model_validate(tree)
    dumped = dump_config(config)
    again = load(tmp_path, dumped)
    assert again == config
    assert dump_config(again) == dumped


def test_references_to_what_does_not_exist_are_refused(tmp_path: Path) -> None:
    text = SMALL.replace("Arithmetic-v0", "Arithmetik-v0").replace("{build: {}}", "{path: nowhere/model}")
    overrides = ["sft.data=nowhere/data.jsonl", "environments.math/Arithmetic-v0.options.levle=2"]
    config = load(tmp_path, text, *overrides)
    with pytest.raises(ConfigError) as caught:
        check_references(config)
    message = str(caught.value)
    assert f"{tmp_path}/experiment.yaml, line" in message
    assert "environments.math/Arithmetik-v0: no environment" in message
    assert "fix: write math/Arithmetic-v0; installed environments: " in message
    assert "environments.math/Arithmetic-v0.options: arithmetic has no option 'levle'" in message
    assert "policy.path: there is no folder nowhere/model" in message
    assert "sft.data: there is no file or folder nowhere/data.jsonl" in message
    assert len(caught.value.problems) == 4


def test_a_policy_folder_needs_its_config(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL.replace("{build: {}}", f"{{path: {tmp_path}}}"))
    with pytest.raises(ConfigError, match=r"has no config.json"):
        check_references(config)
    (tmp_path / "config.json").write_text("{}")
    check_references(config)


def test_explain_says_meaning_type_unit_and_default() -> None:
    text = explain("train.collect_timeout_s")
    assert "Deadline for collecting the groups of one step." in text
    assert "number, more than 0" in text and "seconds" in text and "900.0" in text
    assert "one of constant, linear, cosine" in explain("learner.schedule")
    assert "it must be given" in explain("train.num_steps")
    assert "relative to the other environments" in explain("environments.*.weight")
    assert (
        explain("environments.math/Arithmetic-v0.weight").splitlines()[1:]
        == (explain("environments.*.weight").splitlines()[1:])
    )


def test_the_unit_of_a_key_is_its_own() -> None:
    assert "unit:    engine steps" in explain("rollout.lockstep_steps")
    assert "unit:    optimiser steps" in explain("train.num_steps")
    assert "unit:    optimiser steps" in explain("train.checkpoint_every")
    assert "unit:" not in explain("train.group_size")


def test_explain_lists_the_keys_of_a_section() -> None:
    assert "max_staleness" in explain("train")
    assert "environments" in explain()
    assert "environments.*" in explain("environments")


def test_explain_names_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"train.num_steps"):
        explain("train.num_step")
    with pytest.raises(ConfigError, match=r"learner.learning_rate"):
        explain("learning_rate")


@pytest.mark.parametrize("key", all_keys())
def test_every_key_can_be_explained(key: str) -> None:
    lines = explain(key).splitlines()
    assert lines[0] == key
    assert len(lines[1].strip()) > 3, f"{key} has no docstring"
