"""Benchmarks of the learner, the engine, the supervised stage and the start run, in short form."""

from pathlib import Path

import pytest

from tests.test_benchmarks import run_short, smollm2

assert smollm2
pytestmark = pytest.mark.slow


def test_learner_measures_each_way_and_all_have_one_gradient(tmp_path: Path, smollm2: Path) -> None:
    report = run_short("learner", tmp_path, "--policy", str(smollm2), "--precision", "float32")
    for raw in report["raw"].values():
        assert raw["tokens"]["shared"] < raw["tokens"]["left_out"] <= raw["tokens"]["plain"]
        assert raw["grad_norm"]["shared"] == pytest.approx(raw["grad_norm"]["plain"], rel=1e-3)


def test_supervised_trains_the_same_rows_each_way_and_trl_too(tmp_path: Path, smollm2: Path) -> None:
    report = run_short("supervised", tmp_path, "--policy", str(smollm2), "--precision", "float32")
    for ways in report["raw"].values():
        aware, shared = ways["length_aware"][0], ways["polygym"][0]
        assert aware["tokens"] == shared["tokens"] > 0
        assert aware["last_loss"] == pytest.approx(shared["last_loss"], rel=1e-3)


def test_engine_measures_each_policy(tmp_path: Path, smollm2: Path) -> None:
    report = run_short("engine", tmp_path, "--policy", str(smollm2), "--precision", "float32")
    assert report["summary"].keys() == {"smollm2_2_in_flight", "tiny_hybrid_2_in_flight"}


def test_starting_measures_commands_and_a_run(tmp_path: Path) -> None:
    summary = run_short("starting", tmp_path)["summary"]
    moments = [summary[name] for name in ("until_folder_s", "until_ray_s", "until_engine_s", "run_s", "until_end_s")]
    assert moments == sorted(moments) and moments[0] > 0
    assert summary.keys() > {"envs_list_s", "explain_s", "yaml_error_s", "until_learner_s"}
