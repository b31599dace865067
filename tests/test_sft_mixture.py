"""Sources are mixed as their weights and epochs say, in an order that the seed decides, and mistakes are told early."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.rollout_file import message_object
from rl.config.errors import ConfigError
from rl.config.explain import explain
from rl.config.read import dump_config, load_config, stage_problems
from rl.config.stages import load_stage
from rl.config.supervised import SftConfig
from rl.stop import StopRequested
from sft.data import Row, token_rows, training_conversations
from sft.micro_batches import training_order
from sft.mixture import drawn, read_source, rows_by_source
from sft.rows import SftDataError
from sft.sources import Keys
from tests.makers import make_config, make_rollout
from tests.test_sft import SIZES
from tests.test_sft_stage import ROWS, run_stage, stage, steps_of


def mixed(*sources: dict[str, Any], **keys: Any) -> SftConfig:
    data = [{"path": f"{number}.jsonl", **source} for number, source in enumerate(sources)]
    return SftConfig.model_validate({"data": data, "batch_size": 10, **keys})


def test_weights_share_the_rows_of_the_stage() -> None:
    config = mixed({"weight": 3}, {"weight": 1}, num_steps=4)
    assert rows_by_source([5, 1000], config) == [30, 10]
    assert rows_by_source([5, 1000], mixed({"weight": 2}, {"weight": 1}, num_steps=1)) == [7, 3]  # 6.67 and 3.33


def test_sources_with_epochs_alone_are_trained_that_often_and_weights_share_the_rest() -> None:
    config = mixed({"epochs": 2}, {"weight": 1}, {"weight": 3}, num_steps=6)
    assert rows_by_source([10, 7, 7], config) == [20, 10, 30]
    half = mixed({"epochs": 0.5}, {"weight": 1}, num_steps=1)
    assert rows_by_source([10, 7], half) == [5, 5]


def test_epochs_beside_a_weight_bound_it_and_the_others_take_over() -> None:
    config = mixed({"weight": 8, "epochs": 2}, {"weight": 1}, {"weight": 1}, num_steps=5)
    assert rows_by_source([10, 9, 9], config) == [20, 15, 15]  # and not 40, 5, 5
    assert rows_by_source([30, 9, 9], config) == [40, 5, 5]


def test_the_length_follows_from_epochs() -> None:
    config = mixed({"epochs": 2}, {"epochs": 1})
    assert config.num_steps is None
    assert rows_by_source([10, 5], config) == [24, 6]  # 25 rows, filled up to three steps in proportion
    assert rows_by_source([7], SftConfig(data=Path("a.jsonl"), num_epochs=3, batch_size=10)) == [30]
    assert rows_by_source([20, 10, 10], mixed({"epochs": 1}, {"weight": 1}, {"weight": 3}, num_epochs=2)) == [
        20,
        10,
        30,
    ]


def test_a_length_in_epochs_is_rounded_within_what_epochs_allow() -> None:
    both = mixed({"weight": 1, "epochs": 1}, {"weight": 1, "epochs": 1}, num_epochs=1)
    assert rows_by_source([9, 9], both) == [5, 5]  # two steps would be 20 rows of 18
    assert rows_by_source([18, 9], both) == [11, 9]  # the weights are equal, and the second has no more
    assert rows_by_source([10, 10], both) == [10, 10]
    half = mixed({"weight": 1, "epochs": 0.5}, num_epochs=0.5, batch_size=2)
    assert rows_by_source([9], half) == [4]  # 4.5
    # sources with epochs alone fill up the last step, and the others give each conversation once, and not more
    assert rows_by_source([20, 9], mixed({"epochs": 1}, {"weight": 1, "epochs": 1}, num_epochs=1)) == [21, 9]
    more = mixed({"weight": 1, "epochs": 1}, {"weight": 1}, num_epochs=1)
    assert rows_by_source([9, 9], more) == [9, 11]  # the one without takes over


@pytest.mark.parametrize(
    ("sizes", "config", "words"),
    [
        ([9, 9], mixed({"epochs": 1, "weight": 1}, {"epochs": 1, "weight": 1}, num_epochs=2),
         "have 18 rows, and the stage trains 40: raise epochs, or lower num_epochs"),
        ([4, 4], mixed({"epochs": 1, "weight": 1}, {"epochs": 1, "weight": 1}, num_epochs=1),
         "have 8 rows, and the stage trains 10: raise epochs, or set batch_size to at most 8"),
        ([4, 0], mixed({"weight": 1}, {"weight": 1}), "1.jsonl: no conversation is left to train"),
        ([9, 9], mixed({"epochs": 3}, {"weight": 1}, num_steps=2),
         "have 27 rows, .* only 20: set num_steps to at least 3"),
        ([9, 9], mixed({"epochs": 1, "weight": 1}, {"epochs": 1, "weight": 1}, num_steps=2),
         "have 18 rows, and the stage trains 20: raise epochs, or set num_steps to at most 1"),
        ([9, 9], mixed({"weight": 1000}, {"weight": 1}, num_steps=1), "1.jsonl: the stage trains 10 rows, .* for none"),
    ],
)  # fmt: skip
def test_what_the_sources_cannot_fill_is_told(sizes: list[int], config: SftConfig, words: str) -> None:
    with pytest.raises(SftDataError, match=words):
        rows_by_source(sizes, config)


def test_each_source_has_epochs_of_its_own_spread_evenly() -> None:
    parts, counts = [0] * 6 + [1] * 10, [24, 36]
    order = drawn(parts, counts, seed=0).tolist()
    own = {part: [index for index in order if parts[index] == part] for part in (0, 1)}
    assert [len(own[part]) for part in (0, 1)] == counts
    for begin in range(0, 24, 6):
        assert sorted(own[0][begin : begin + 6]) == list(range(6))
    assert sorted(own[1][:10]) == sorted(own[1][10:20]) == list(range(6, 16))
    for begin in range(0, 60, 10):  # in each step 4 of 10
        assert sum(parts[index] == 0 for index in order[begin : begin + 10]) == 4
    assert order == drawn(parts, counts, seed=0).tolist() != drawn(parts, counts, seed=1).tolist()


def test_one_source_is_drawn_as_ever() -> None:
    rng = np.random.default_rng([3, 0x0DE])
    epochs = np.concatenate([rng.permutation(7) for _ in range(math.ceil(20 / 7))])[:20]
    assert drawn([0] * 7, [20], seed=3).tolist() == epochs.tolist()
    rows = [Row((0,) * 5, (0,) * 5)] * 7
    assert [cut for step in training_order(rows, 5, 4, seed=3) for cut in step] == epochs.reshape(5, 4).tolist()


def write_sources(folder: Path) -> Path:
    """Two files of rows and a run with rollouts."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:12]))
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[12:]))
    (folder / "rollouts").mkdir()
    lines = []
    for seed, reward in ((1, 1.0), (2, 1.0), (3, 0.0)):
        rollout = make_rollout(reward)
        task = {"env_id": rollout.task.env_id, "seed": seed, "split": "train", "options": {}}
        messages = [message_object(message) for message in rollout.messages]
        lines.append(json.dumps({"task": task, "messages": messages, "reward": reward, "outcome": "ok"}))
    (folder / "rollouts" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


MIXTURE = """
run_dir: {folder}/run
seed: 3
policy: {{build: {sizes}, max_tokens: 400}}
environments: {{math/Arithmetic-v0: {{}}}}
sft:
  batch_size: 8
  warmup_steps: 1
  num_steps: 7
  num_conversations: 30
  data:
  - {{path: {folder}/a.jsonl, epochs: 1}}
  - {{path: {folder}/b.jsonl, weight: 0.3}}
  - {{gold: true, weight: 0.5}}
  - {{rollouts: {folder}/rollouts, weight: 0.2}}
"""


def write_mixture(folder: Path, sources: Path) -> Path:
    folder.mkdir(exist_ok=True)
    text = MIXTURE.format(folder=sources, sizes=json.dumps(SIZES)).replace(f"{sources}/run", f"{folder}/run")
    (folder / "stage.yaml").write_text(text)
    return folder / "stage.yaml"


def test_files_gold_conversations_and_rollouts_are_sources(tmp_path: Path) -> None:
    config = load_stage(write_mixture(tmp_path, write_sources(tmp_path)), [])
    assert config.sft is not None and stage_problems(config) == []
    conversations = training_conversations(config)
    assert Counter(one.part for one in conversations) == {0: 12, 1: 28, 2: 30, 3: 2}
    assert conversations[0].source == f"{tmp_path}/a.jsonl, row 1"
    assert conversations[-1].source == f"{tmp_path}/rollouts, math/Arithmetic-v0 seed 2"
    assert rows_by_source([12, 28, 30, 2], config.sft) == [12, 13, 22, 9]  # of the 44 that are left: 13.2, 22, 8.8
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config
    assert "Its share of each step's conversations" in explain("sft.data.1.weight")
    source = config.sft.sources[3].model_copy(update={"reward_min": 2.0})
    with pytest.raises(SftDataError, match=r"no rollout of a training task is sound .* at least 2: lower reward_min"):
        read_source(source, Keys.of("sft", 3), has_thinking=True)


@pytest.mark.parametrize(
    ("sft", "words"),
    [
        ("{data: [{path: a.jsonl}]}", r"line 5: sft.data.0: the source a.jsonl has neither weight nor epochs"),
        ("{data: [{path: a, gold: true, weight: 1}]}", "exactly one of path, gold and rollouts, .* path and gold"),
        ("{data: [{path: '', weight: 1}]}", r"sft.data.0.path: '' is not valid"),
        ("{data: [{rollouts: '', weight: 1}]}", r"sft.data.0.rollouts: '' is not valid"),
        ("{data: [{weight: 1}]}", "exactly one of path, gold and rollouts, this one has none"),
        (
            "{data: [{path: a, weight: 1, per_task: 2}]}",
            "per_task would change nothing of the source a, .* rollouts has",
        ),
        (
            "{data: [{gold: true, weight: 1, choose: diverse, reward_min: 0}]}",
            "reward_min and choose would change noth",
        ),
        ("{data: [{gold: true, weight: 1, split: test}]}", "split would change nothing of the source gold conv"),
        (
            "{data: [{rollouts: a, weight: 1, subset: b}]}",
            "subset would .* source rollouts of a, .* path has .* remove it",
        ),
        ("{data: [{path: a, wieght: 1}]}", r"sft.data.0.wieght: there is no such key\s+fix: did you mean .*weight"),
        ("{data: [{path: a, weight: 0}]}", r"sft.data.0.weight: 0 is not valid; .* more than 0"),
        ("{data: [a.jsonl]}", "sft.data.0: a.jsonl is not a section of keys"),
        ("{data: []}", "data is an empty list"),
        ("{data: {path: a}}", "the key takes: path or list of section or null"),
        ("{data: [{path: a, weight: 1}], data_split: test}", "data_split and data_subset belong to a single path"),
        ("{data: [{gold: true, weight: 1}, {gold: true, epochs: 1}]}", "two sources are gold"),
        ("{num_epochs: 2, num_steps: 3}", "num_steps and num_epochs are both set"),
        ("{num_steps: null}", "neither num_steps nor num_epochs is set"),
        ("{num_steps: 3, data: [{path: a, epochs: 1}]}", "epochs of all sources say how long the stage is"),
        ("{num_epochs: 3, data: [{path: a, epochs: 1}]}", "epochs of all sources .* and so does num_epochs"),
    ],
)
def test_mixtures_that_say_too_little_or_too_much_are_refused(tmp_path: Path, sft: str, words: str) -> None:
    (tmp_path / "stage.yaml").write_text(f"run_dir: r\nseed: 0\npolicy: {{build: {{}}}}\n\nsft: {sft}\n")
    with pytest.raises(ConfigError, match=words):
        load_stage(tmp_path / "stage.yaml", [])


def test_sources_that_are_not_there_are_told_with_their_place(tmp_path: Path) -> None:
    data = [{"path": "none.jsonl", "weight": 1}, {"path": "user/name", "weight": 1}, {"rollouts": "none", "weight": 1}]
    problems = stage_problems(make_config(tmp_path, policy={"build": {}}, sft={"data": data}))
    assert [problem.key for problem in problems] == ["sft.data.0.path", "sft.data.2.rollouts"]
    assert "there is no file or folder none.jsonl" in problems[0].wrong


@pytest.mark.slow
def test_a_mixture_is_trained_told_and_gone_on_with_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl.runs.report import write_report

    sources = write_sources(tmp_path)
    whole, stopped = (load_stage(write_mixture(tmp_path / name, sources), []) for name in ("whole", "stopped"))
    folder = run_stage(whole, monkeypatch)
    told = " ".join(capsys.readouterr().out.split())
    assert "b.jsonl: 28 conversations, " in told and "; 13 rows of the stage, 0.46 epochs" in told
    lines = [json.loads(line) for line in (folder / "sources.jsonl").read_text().splitlines()]
    assert [(line["conversations"], line["rows"]) for line in lines] == [(12, 12), (28, 13), (30, 22), (2, 9)]
    assert [line["epochs"] for line in lines] == [1.0, 0.464, 0.733, 4.5]
    report = write_report(tmp_path / "whole" / "run").read_text()
    assert "Sources of the supervised stage" in report and "<td>0.464</td>" in report
    with pytest.raises(StopRequested):
        run_stage(stopped, monkeypatch, stop_at=3)
    resumed = run_stage(stopped, monkeypatch)
    assert (resumed / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [line["tokens"] for line in steps_of(resumed)] == [line["tokens"] for line in steps_of(folder)]

    with pytest.raises(StopRequested):
        run_stage(stopped, monkeypatch, stop_at=3)
    moved = (sources / "b.jsonl").read_text().splitlines(keepends=True)
    (sources / "a.jsonl").write_text((sources / "a.jsonl").read_text() + moved[0])
    (sources / "b.jsonl").write_text("".join(moved[1:]))  # the same rows in the same order, of other sources
    with pytest.raises(SftDataError, match=r"of this configuration but other rows: .*a.jsonl or .*b.jsonl or gold"):
        run_stage(stopped, monkeypatch)


@pytest.mark.slow
def test_the_stage_lasts_as_many_epochs_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage(tmp_path / "run", {"build": SIZES}, num_steps=None, num_epochs=0.9)
    folder = run_stage(config, monkeypatch)
    assert len(steps_of(folder)) == 5  # 36 of 40 rows, in steps of 8
    from rl.chat.chat import load_chat

    rows = token_rows(training_conversations(config), load_chat(folder, "auto"), config)
    assert sum(line["tokens"] for line in steps_of(folder)) == sum(len(row.input_ids) for row in rows)
