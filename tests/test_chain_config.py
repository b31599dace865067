"""The YAML of a chain: order, what stages start from, references, the commands that are run, and mistakes."""

from pathlib import Path

import pytest

from rl.chain.checks import check_stages
from rl.config.chain import load_chain
from rl.config.chain_stage import Stage
from rl.config.errors import ConfigError
from rl.config.read import load_config
from tests.makers import ARITHMETIC

EXPERIMENT = f"""
run_dir: elsewhere
seed: 0
policy: {{build: {{}}}}
environments: {{{ARITHMETIC}: {{}}}}
sft: {{num_steps: 5}}
train: {{num_steps: 3}}
"""
CHAIN = """
run_dir: {folder}/chain
yaml: experiment.yaml
stages:
  first: {{command: sft train}}
  specialist: {{command: rl train, set: {{train.num_steps: 2, train: {{num_prompts: 4}}}}}}
  rows: {{command: sft from-rollouts, set: {{reward_min: 0.5, pairs: true}}}}
  preferred: {{command: sft dpo, set: {{"dpo": {{data: "${{stages.rows}}"}}}}}}
  student:
    command: rl train
    from: first
    set:
      teachers: {{one: {{path: "${{stages.specialist}}"}}}}
      loss: {{algorithm: mopd, teacher: one}}
"""


def write(folder: Path, chain: str = CHAIN, experiment: str = EXPERIMENT) -> Path:
    (folder / "experiment.yaml").write_text(experiment)
    path = folder / "chain.yaml"
    path.write_text(chain.format(folder=folder))
    return path


def stages_of(path: Path, *overrides: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in load_chain(path, overrides)[1]}


def fault(folder: Path, stages: str, *overrides: str) -> str:
    chain = f"run_dir: {folder}/chain\nyaml: experiment.yaml\nstages: {stages}\n"
    path = write(folder)
    path.write_text(chain)
    with pytest.raises(ConfigError) as wrong:
        load_chain(path, overrides)
    return str(wrong.value)


def test_a_stage_starts_from_the_last_policy_before_it_unless_it_names_another(tmp_path: Path) -> None:
    stages = stages_of(write(tmp_path))
    assert list(stages) == ["first", "specialist", "rows", "preferred", "student"]
    sources = {name: stage.source.name if stage.source else None for name, stage in stages.items()}
    assert sources == {
        "first": None,
        "specialist": "first",
        "rows": "specialist",
        "preferred": "specialist",  # rows are no policy
        "student": "first",
    }
    results = [stage.result.relative_to(tmp_path / "chain") for stage in stages.values()]
    assert list(map(str, results)) == [
        *("first/sft", "specialist/exported", "rows/rows.jsonl", "preferred/dpo", "student/exported")
    ]
    assert [stage.name for stage in stages["student"].sources] == ["first", "specialist"]


def test_from_null_starts_from_the_policy_of_the_yaml(tmp_path: Path) -> None:
    stages = stages_of(write(tmp_path), "stages.specialist.from=null")
    assert stages["specialist"].source is None
    assert stages["specialist"].overrides()[0] == "train.num_steps=2"


def test_the_commands_are_those_that_a_person_would_write(tmp_path: Path) -> None:
    stages, yaml, chain = stages_of(write(tmp_path)), tmp_path / "experiment.yaml", tmp_path / "chain"
    assert stages["first"].words == ["sft", "train", str(yaml), f"run_dir={chain}/first"]
    assert stages["specialist"].words == [
        *("rl", "train", str(yaml), "policy.build=null", f"policy.path={chain}/first/sft", "sft=null"),
        *("train.num_steps=2", 'train={"num_prompts": 4}', f"run_dir={chain}/specialist"),
    ]
    assert stages["rows"].words == [
        *("sft", "from-rollouts", str(chain / "specialist"), "--out", f"{chain}/rows/rows.jsonl"),
        *("--reward-min", "0.5", "--pairs"),
    ]
    config = load_config(yaml, stages["student"].overrides())
    assert config.teachers["one"].path == chain / "specialist" / "exported"
    assert config.policy.path == chain / "first" / "sft" and config.sft is None and config.policy.build is None
    train = load_config(yaml, stages["specialist"].overrides()).train
    assert (train.num_steps, train.num_prompts) == (2, 4)


def test_keys_of_all_stages_come_before_those_of_one_and_overrides_after(tmp_path: Path) -> None:
    path = write(tmp_path, "set: {{seed: 1, train.group_size: 4}}\n" + CHAIN)
    stages = stages_of(path, "stages.specialist.set.seed=2", "stages.student.set.train.group_size=2", "run_dir=x")
    seeds = {
        name: load_config(tmp_path / "experiment.yaml", stages[name].overrides()) for name in ("first", "specialist")
    }
    assert [config.seed for config in seeds.values()] == [1, 2]
    assert stages["first"].folder == Path("x/first")
    assert load_config(tmp_path / "experiment.yaml", stages["student"].overrides()).train.group_size == 2


def test_a_chain_may_be_based_on_another(tmp_path: Path) -> None:
    write(tmp_path)
    small = tmp_path / "small.yaml"
    small.write_text("base: chain.yaml\nstages: {specialist: {set: {train.num_steps: 1}}}\n")
    stages = stages_of(small)
    assert list(stages) == ["first", "specialist", "rows", "preferred", "student"]
    assert dict(stages["specialist"].values)["train.num_steps"] == 1


def test_a_yaml_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "small").mkdir()
    small = tmp_path / "small" / "chain.yaml"
    small.write_text("base: ../chain.yaml\nstages: {specialist: {yaml: own.yaml}}\n")
    stages = stages_of(small, "stages.student.yaml=given.yaml")
    found = {name: stage.yaml and stage.yaml.resolve() for name, stage in stages.items()}
    assert found["first"] == tmp_path / "experiment.yaml"
    assert found["specialist"] == tmp_path / "small" / "own.yaml"
    assert found["student"] == tmp_path / "small" / "given.yaml"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("{a: {command: rl train}, a: {command: rl train}}", r"stages.a is given twice"),
        ("{a: {command: rl trian}}", "no command that can be a stage\n    fix: did you mean rl train"),
        ("{a: {command: rl train, form: b}}", "stages.a.form: there is no such key\n    fix: did you mean from"),
        ("{a: {set: {}}}", "stages.a.command: is missing"),
        ("{}", "stages: Dictionary should have at least 1 item"),
        ("{a: {command: rl train, from: a}}", "stages.a.from: the stage refers to itself"),
        ("{a: {command: rl train, from: b}, b: {command: rl train}}", "refers to stage b, which comes after it"),
        ("{one: {command: rl train}, b: {command: rl train, from: on}}", "no stage 'on'\n    fix: did you mean one"),
        ('{a: {command: rl train, set: {judge.path: "${stages.z}"}}}', "stages.a.set: there is no stage 'z'"),
        ("{a: {command: rl train, set: {run_dir: x}}}", "a stage's folder is in that of the chain"),
        ("{a/b: {command: rl train}}", "'a/b' cannot be the name of a stage's folder"),
        ("{figures: {command: rl train}}", "'figures' cannot be the name"),
        ("{a: {command: sft from-rollouts}}", "no stage before it runs `rl train`"),
        ("{a: {command: sft train}, b: {command: sft from-rollouts, from: a}}", "a run of `rl train` is needed"),
        (
            "{a: {command: rl train}, b: {command: sft from-rollouts}, c: {command: rl train, from: b}}",
            "stages.c.from: stage b",
        ),
        (
            "{a: {command: rl train}, b: {command: sft from-rollouts, set: {reward: 1}}}",
            "stages.b.set.reward: not an option",
        ),
    ],
)
def test_mistakes_are_told_with_their_place_and_a_remedy(stages: str, said: str, tmp_path: Path) -> None:
    told = fault(tmp_path, stages)
    assert said in told
    assert "chain.yaml" in told and "fix: " in told


def test_a_stage_without_a_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text("run_dir: x\nstages: {a: {command: rl train}}\n")
    with pytest.raises(ConfigError, match=r"stages\.a: the stage has no YAML"):
        load_chain(path)


@pytest.mark.slow
def test_all_stages_are_checked_and_what_others_will_make_is_no_fault(tmp_path: Path) -> None:
    check_stages(load_chain(write(tmp_path))[1])
    typo = CHAIN.replace("train.num_steps: 2", "train.num_step: 2").replace("algorithm: mopd", "algorithm: mopt")
    typo = typo.replace("command: sft train", "command: sft train, yaml: none.yaml")
    with pytest.raises(ConfigError) as wrong:
        check_stages(load_chain(write(tmp_path, typo))[1])
    told = str(wrong.value)
    assert told.startswith("nothing was begun, because of first, specialist, student\n")
    assert "train.num_step: there is no such key" in told and "there is no file" in told


@pytest.mark.slow
def test_a_chain_whose_first_stage_has_no_policy_tells_it_once(tmp_path: Path) -> None:
    path = write(tmp_path, experiment=EXPERIMENT.replace("{build: {}}", "{max_tokens: 256}"))
    with pytest.raises(ConfigError, match=r"because of first\nstage first: .*\n.*neither path") as wrong:
        check_stages(load_chain(path)[1])
    assert str(wrong.value).count("problem in the configuration") == 1


@pytest.mark.slow
def test_a_teacher_that_no_stage_makes_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage student: .*\n.*teachers.one.path"):
        check_stages(load_chain(write(tmp_path, CHAIN.replace("${{stages.specialist}}", "nowhere")))[1])


@pytest.mark.slow
def test_rows_that_are_still_to_be_made_hide_no_other_fault(tmp_path: Path) -> None:
    path = write(tmp_path)
    rows = 'stages.student.set.sft={num_steps: 5, data: "${stages.rows}"}'
    check_stages(load_chain(path, [rows])[1])
    _, stages = load_chain(path, [rows, "stages.student.set.environments.math/Arithmetic-v0.options.levl=1"])
    with pytest.raises(ConfigError, match=r"because of student\nstage student: (.|\n)*levl"):
        check_stages(stages)
    missing = 'stages.student.set.sft={num_steps: 5, data: [{path: "${stages.rows}"}, {path: nowhere.jsonl}]}'
    with pytest.raises(ConfigError, match=r"because of student\nstage student: (.|\n)*nowhere.jsonl"):
        check_stages(load_chain(path, [missing])[1])


@pytest.mark.slow
def test_an_environment_that_is_not_there_is_told_before_the_first_stage(tmp_path: Path) -> None:
    path = write(tmp_path)
    _, stages = load_chain(path, ["stages.specialist.set.environments.math/Nothing-v0.weight=1"])
    with pytest.raises(ConfigError, match=r"because of specialist\nstage specialist: (.|\n)*math/Nothing-v0"):
        check_stages(stages)
