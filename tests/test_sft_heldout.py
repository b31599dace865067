"""Held-out conversations: which they are, that they are never trained, and that their loss is the one of all tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from rl.chat.chat import load_chat
from rl.config.experiment import ExperimentConfig
from rl.config.section import Section
from rl.learner.policy import load_policy
from rl.precision.float32_weights import float32_weights
from rl.precision.folded import FoldedWeights
from rl.precision.formats.float32 import Float32
from rl.precision.formats.nvfp4 import Nvfp4
from rl.stop import StopRequested
from sft.data import Row, token_rows
from sft.rows import SftDataError
from tests.conversations import conversations_of
from tests.test_sft import SIZES
from tests.test_sft_stage import run_stage, stage, steps_of

pytestmark = pytest.mark.slow  # imports TRL


def rows_of(config: ExperimentConfig, policy: Path) -> list[Row]:
    assert config.sft is not None and isinstance(config.sft.data, Path)
    return token_rows(conversations_of(config.sft.data), load_chat(policy, config.policy.chat), config)


def test_the_split_is_a_function_of_seed_and_conversations() -> None:
    from sft.heldout import split_rows

    rows = [Row((number, 7), (-100, 7)) for number in range(100)]
    trained, heldout = split_rows(rows, 0.2, seed=1)
    assert (len(trained), len(heldout)) == (80, 20)
    assert not set(trained) & set(heldout)
    again, same = split_rows([*rows[::-1], *rows], 0.2, seed=1)
    assert set(same) == set(heldout) and set(again) == set(trained)
    assert (len(again), len(same)) == (160, 40)  # equal conversations are on one side
    assert set(split_rows(rows, 0.2, seed=2)[1]) != set(heldout)
    more = split_rows([*rows, *(Row((number, 8), (-100, 8)) for number in range(10))], 0.2, seed=1)[1]
    assert len(set(heldout) - set(more)) <= 3
    assert split_rows(rows, 0.0, seed=1) == (rows, [])
    assert len(split_rows(rows, 0.001, seed=1)[1]) == 1
    with pytest.raises(SftDataError, match=r"heldout_share \(0.01\) of 1 distinct conversations leaves none"):
        split_rows([rows[0], rows[0]], 0.01, seed=1)


@pytest.mark.parametrize("precision", [Float32(), Nvfp4()], ids=["float32", "nvfp4"])
def test_the_loss_is_that_of_all_held_out_tokens_and_they_are_never_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Section, capsys: pytest.CaptureFixture[str]
) -> None:
    import sft.train
    from sft.heldout import split_rows

    config = stage(tmp_path / "run", {"build": SIZES}, num_steps=5, heldout_share=0.3, heldout_every=2)
    # Padded rows are rounded as rows alone are; trees are compared with them elsewhere.
    learner = config.learner.model_copy(update={"share_prefixes": isinstance(precision, Float32)})
    config = config.model_copy(update={"precision": precision, "learner": learner})
    trained: list[Row] = []
    order = sft.train.training_order

    def recorded(rows: list[Row], *more: Any, **named: Any) -> Any:
        trained.extend(rows)
        return order(rows, *more, **named)

    monkeypatch.setattr(sft.train, "training_order", recorded)
    folder = sft.train.run(config)
    lines = [line for line in steps_of(folder) if "heldout_loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["step"] for line in steps_of(folder) if "loss" in line] == [1, 2, 3, 4, 5]
    assert f"held out {lines[-1]['heldout_loss']:.3f}" in capsys.readouterr().out

    rows = rows_of(config, folder)
    expected, heldout = split_rows(rows, 0.3, config.seed)
    assert trained == expected
    assert len(heldout) == 12 and len(heldout) % 8  # the last batch is not full
    model, dtype = load_policy(folder), getattr(torch, config.precision.arithmetic)
    FoldedWeights(model, config.precision).put_in()
    kept = float32_weights(model)
    for name, weight in model.named_parameters():  # rounded as the engine rounds
        weight.data = weight.data if name in kept else weight.data.to(dtype)
    total, num_tokens = 0.0, 0
    with torch.no_grad():
        for row in heldout:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
            labels = torch.tensor(row.labels[1:])
            total += functional.cross_entropy(logits, labels, reduction="sum").item()
            num_tokens += int((labels >= 0).sum())
    assert lines[-1]["heldout_loss"] == pytest.approx(total / num_tokens, rel=5e-5)


def test_measuring_changes_nothing_that_is_trained_and_a_stopped_stage_goes_on_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str, **sft: Any) -> ExperimentConfig:
        return stage(tmp_path / name, {"build": SIZES}, num_steps=7, heldout_share=0.3, **sft)

    whole = run_stage(config("whole", heldout_every=2), monkeypatch)
    seldom = run_stage(config("seldom", heldout_every=100), monkeypatch)
    assert (seldom / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(StopRequested):
        run_stage(config("stopped", heldout_every=2), monkeypatch, stop_at=3)
    resumed = run_stage(config("stopped", heldout_every=2), monkeypatch)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for key in ("loss", "heldout_loss"):
        first, second = ([(line["step"], line.get(key)) for line in steps_of(folder)] for folder in (whole, resumed))
        assert first == second


def test_a_stopped_stage_refuses_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage(tmp_path / "run", {"build": SIZES}, num_steps=7)
    with pytest.raises(StopRequested):
        run_stage(config, monkeypatch, stop_at=3)
    assert config.sft is not None and isinstance(config.sft.data, Path)
    text = config.sft.data.read_text()
    config.sft.data.write_text(text.replace("39 + 1", "39+1"))
    with pytest.raises(SftDataError, match=r"sft.partial holds a stage that was stopped after step 4, .* other rows"):
        run_stage(config, monkeypatch)
    config.sft.data.write_text(text)
    assert [line["step"] for line in steps_of(run_stage(config, monkeypatch))] == [1, 2, 3, 4, 5, 6, 7]


def test_the_report_draws_the_held_out_loss_beside_the_loss(tmp_path: Path) -> None:
    from rl.runs.figures import sft_figure
    from rl.runs.history import read_history

    (tmp_path / "sft").mkdir()
    lines: list[dict[str, float]] = [{"step": step, "loss": 2.0, "tokens_per_s": 9.0} for step in (1, 2, 3)]
    lines.insert(2, {"step": 2, "heldout_loss": 2.5, "seconds": 1.0})
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = sft_figure(read_history(tmp_path))
    assert figure is not None
    (drawn,) = [line for line in figure.axes[0].lines if line.get_label() == "held out"]
    assert np.array_equal(drawn.get_xydata(), [[2, 2.5]])
