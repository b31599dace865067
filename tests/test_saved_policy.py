"""A checkpoint's folder tells which policy is in it, and an adapter's folder which weights it was trained beside."""

import shutil
from pathlib import Path

import pytest

from rl.config.saved_policy import BaseError, base_of, check_base, is_adapter, policy_in, weights_hash, write_base
from rl.runs.checkpoint import Checkpoint
from rl.runs.resume import differences
from tests.makers import make_config


def write_policy(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """In the checkpoint of a run; its base is `tmp_path/base`."""
    folder = tmp_path / "run" / "checkpoints" / "step_000001" / "learner" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    (folder / "tokenizer.json").write_text("{}")
    write_base(folder, write_policy(tmp_path / "base"), {"format": "bf16"})
    return folder


def test_a_checkpoint_holds_all_weights_or_an_adapter(adapter: Path) -> None:
    assert is_adapter(adapter) and policy_in(adapter.parent) == adapter
    whole = write_policy(adapter.parent / "model")  # as checkpoints with a merged copy have it
    assert policy_in(adapter.parent) == whole and not is_adapter(whole)
    assert policy_in(adapter.parent.parent) == adapter.parent.parent / "model"  # neither


def test_the_hash_covers_every_file_of_weights_and_nothing_else(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy")
    found = weights_hash(policy)
    (policy / "config.json").write_text('{"other": 1}')
    assert weights_hash(policy) == found
    (policy / "model-2.safetensors").write_bytes(b"")
    assert weights_hash(policy) != found
    assert weights_hash(write_policy(tmp_path / "other", b"Weights")) != found


def test_the_base_is_found_where_it_was_or_in_a_run_that_was_moved(adapter: Path, tmp_path: Path) -> None:
    base = base_of(adapter)
    assert base.path == tmp_path / "base" and base.precision == {"format": "bf16"}
    shutil.move(tmp_path / "base", tmp_path / "run" / "sft")
    assert base_of(adapter).path == tmp_path / "run" / "sft"
    shutil.move(tmp_path / "run" / "sft", tmp_path / "other")
    with pytest.raises(BaseError, match=r"is an adapter of .*base, which is not there"):
        base_of(adapter)
    check_base(adapter, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(BaseError, match=r"trained beside other weights than those in .*other; its base was .*base"):
        check_base(adapter, tmp_path / "other")


def test_an_adapter_of_another_tool_names_its_base_without_a_hash(adapter: Path, tmp_path: Path) -> None:
    (adapter / "base.json").unlink()
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path / "base"}"}}')
    assert base_of(adapter) == (tmp_path / "base", None, {"format": "float32"})
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseError, match="does not tell its base: KeyError"):
        base_of(adapter)


def test_a_run_does_not_go_on_beside_another_base(adapter: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(adapter.parents[1], 1, {})

    def told(path: Path) -> list[str]:
        saved, given = (make_config(policy={"path": one}, learner={"adapter": {}}) for one in (tmp_path / "base", path))
        return differences(saved, given, checkpoint)

    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    assert told(tmp_path / "copy") == []
    (line,) = told(write_policy(tmp_path / "other", b"Weights"))
    assert line.startswith("policy.path: was ") and "trained beside other weights than those in" in line
