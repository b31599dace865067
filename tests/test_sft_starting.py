"""How the ranks of the supervised stage are started, learn which they are, end together and tell an error once."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rl.cluster.rank_variables import NAMES, RankVariables, exit_code_of_all, rank_variables
from rl.config.errors import ConfigError
from rl.config.read import stage_problems
from rl.ranks import PeerFailed, Ranks
from sft import ranks as sft_ranks
from tests.makers import make_config
from tests.ranks import on_ranks
from tests.test_sft import SIZES
from tests.test_sft_stage import stage


def test_a_rank_reads_what_its_starter_wrote_as_torchrun_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert rank_variables() is None
    for address in ("10.0.0.1:29500", "[fd00::1]:29500"):
        written = RankVariables(3, 4, address, 1)
        for name, value in written.as_environment().items():
            monkeypatch.setenv(name, value)
        assert rank_variables() == written
    assert os.environ["MASTER_ADDR"] == "fd00::1"


def test_another_number_of_ranks_than_the_configuration_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in RankVariables(0, 2, "127.0.0.1:1", 0).as_environment().items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=r"as 2 processes \(WORLD_SIZE\), but learner\.num_ranks is 3"),
        sft_ranks.joined_ranks(make_config(learner={"num_ranks": 3})),
    ):
        pass


def test_steps_that_ranks_cannot_share_are_refused(tmp_path: Path) -> None:
    def problems(num_ranks: int) -> list[str]:
        sections = {"sft": {"batch_size": 8}, "policy": {"build": {}}, "learner": {"num_ranks": num_ranks}}
        return [f"{problem.wrong}; {problem.fix}" for problem in stage_problems(make_config(tmp_path, **sections))]

    assert problems(1) == problems(2) == problems(8) == []
    (problem,) = problems(3)
    assert "8 conversations a step" in problem and "learner.num_ranks, such as 9" in problem


def test_the_exit_code_of_all_is_that_of_the_cause() -> None:
    assert [exit_code_of_all(codes) for codes in ((0, 0), (1, 2), (0, 143), (1, -9), (-9, 0))] == [0, 2, 143, 1, -9]


@pytest.mark.slow
def test_the_ranks_of_a_command_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_ranks, "GRACE_S", 0.5)
    assert sft_ranks.run_ranks(["tests.rank_command", "ends"], 3) == 0
    assert sft_ranks.run_ranks(["tests.rank_command", "refuses"], 2) == 2
    with pytest.raises(sft_ranks.RankDied, match="rank 1 of the supervised stage was ended by SIGKILL"):
        sft_ranks.run_ranks(["tests.rank_command", "dies"], 2)
    threading.Timer(1.0, signal.raise_signal, [signal.SIGTERM]).start()
    assert sft_ranks.run_ranks(["tests.rank_command", "waits"], 2) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_one_rank_tells_its_error() -> None:
    def tells(ranks: Ranks) -> list[bool]:
        echo = ranks.tells(PeerFailed("rank 9"))
        ranks.gather(0)
        return [echo, ranks.tells(ValueError("mine"))]

    told = on_ranks(3, tells)
    assert [echo for echo, _ in told] == [False, False, False]
    assert sum(own for _, own in told) == 1


@pytest.mark.slow
def test_the_command_trains_with_its_ranks_and_tells_everything_once(tmp_path: Path) -> None:
    config = stage(tmp_path / "run", {"build": SIZES}, num_steps=2).model_dump(mode="json")
    keys = {key: config[key] for key in ("run_dir", "seed", "policy", "environments", "train")}
    sft = {"num_steps": 2, "batch_size": 8, "data": config["sft"]["data"]}
    yaml = tmp_path / "stage.yaml"
    yaml.write_text(json.dumps({**keys, "sft": sft, "learner": {"num_ranks": 2}}))
    command = [sys.executable, "-m", "sft", "train", str(yaml)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint: ") == done.stdout.count("supervised step 2/2") == 1
    assert (tmp_path / "run" / "sft" / "model.safetensors.index.json").is_file()
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "1 + 1"}]}\n')
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.count("no assistant message to train on") == 1
