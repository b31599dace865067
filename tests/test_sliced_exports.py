"""A checkpoint of several ranks' slices, without the policy's folder: it is exported, and otherwise told about."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rl.config.checkpoint_files import CHAT_FILES
from rl.config.errors import ConfigError
from rl.export import ExportError, export_policy
from rl.file_hashes import WrittenFile, files_in, sync_and_hash
from rl.learner.learner import Learner
from rl.ranks import Ranks
from rl.runs.checkpoint import save_checkpoint
from rl.runs.newest import newest_policy
from tests.families import write_policy
from tests.makers import write_run
from tests.ranks import on_ranks
from tests.test_ranks import config_of, samples_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy("qwen3_moe", tmp_path_factory.mktemp("policy"))


def stopped_run(run_dir: Path, policy: Path, precision: str) -> Any:
    """Its checkpoints hold the same weights: that of step 2 as a policy too, that of step 3 in slices alone."""
    config = config_of(policy, precision, num_ranks=2).model_copy(update={"run_dir": run_dir})
    write_run(config, 3)
    samples, written = samples_of(policy), run_dir / "written"

    def train(ranks: Ranks) -> Any:
        learner = Learner(policy, config, ranks)
        learner.update(samples)
        for step in (2, 3):
            learner.save_state(written / str(step), with_policy=step == 2)

    assert on_ranks(2, train) == [None, None]
    for step in (2, 3):

        def copy(folder: Path, saved: Path = written / str(step)) -> dict[str, WrittenFile]:
            shutil.copytree(saved, folder, dirs_exist_ok=True)
            (folder / "model").mkdir(exist_ok=True)
            for pattern in CHAT_FILES:
                for file in policy.glob(pattern):
                    shutil.copy(file, folder / "model")
            return sync_and_hash(folder, files_in(folder))

        save_checkpoint(run_dir / "checkpoints", step, copy, {})
    return config


@pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
def test_slices_are_exported_as_the_policy_would_be(policy: Path, tmp_path: Path, precision: str) -> None:
    run_dir = tmp_path / "run"
    stopped_run(run_dir, policy, precision)
    whole = export_policy(run_dir / "checkpoints" / "step_000002", tmp_path / "whole")
    command = [sys.executable, "-m", "rl", "export", str(run_dir), str(tmp_path / "slices")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"policy: {tmp_path / 'slices'}\n", "")
    slices = export_policy(run_dir / "checkpoints" / "step_000003", tmp_path / "named")
    for one in (tmp_path / "slices", slices):
        assert {file.name for file in one.iterdir()} == {file.name for file in whole.iterdir()}
        tensors, expected = load_file(one / "model.safetensors"), load_file(whole / "model.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_who_needs_the_policy_is_told_how_it_is_made_and_what_is_missing(policy: Path, tmp_path: Path) -> None:
    base = shutil.copytree(policy, tmp_path / "base")
    config = stopped_run(tmp_path / "run", base, "nvfp4")
    newest = tmp_path / "run" / "checkpoints" / "step_000003"
    with pytest.raises(ConfigError) as caught:
        newest_policy(config)
    words = (f"{newest}, holds the slices", f"rl export {newest} FOLDER", "--policy FOLDER precision=bf16")
    assert all(word in str(caught.value) for word in words), caught.value
    shutil.rmtree(base)
    with pytest.raises(
        ExportError, match=r"the policy that the run started from, and .*base is not there; put it back"
    ):
        export_policy(newest, tmp_path / "out")
    write_policy("qwen3", base)
    with pytest.raises(ExportError, match=r"holds the state of another policy.* put back the policy that the run"):
        export_policy(newest, tmp_path / "out")
