"""Weights through shared memory: what is written is read, and what is damaged is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xxhash

from rl.cluster.own_folder import remove_if_abandoned
from rl.weights import shared_memory
from rl.weights.shared_memory import read_weights, remove_weights, write_weights
from rl.weights.source import WeightsError, WeightSource


def some_tensors() -> list[tuple[str, torch.Tensor]]:
    return [
        ("a.weight", torch.arange(6, dtype=torch.float32).view(2, 3)),
        ("b.weight", torch.randn(5, 7).to(torch.bfloat16).T),  # not contiguous
        ("c.packed", torch.tensor([1, 2, 255], dtype=torch.uint8)),
        ("d.scale", torch.tensor(0.5)),
    ]


def file_of(source: WeightSource) -> Path:
    return Path(str(source.place))


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    tensors = some_tensors()
    source = write_weights(tensors, 3, tmp_path)
    read = read_weights(source)
    assert source.version == 3
    assert [name for name, _ in read.tensors] == [name for name, _ in tensors]
    for (_, expected), (_, found) in zip(tensors, read.tensors, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)


def test_the_hash_covers_every_byte_of_the_file(tmp_path: Path) -> None:
    source = write_weights(some_tensors(), 1, tmp_path)
    assert source.hash == xxhash.xxh3_64_hexdigest(file_of(source).read_bytes())
    assert read_weights(source).hash == source.hash
    (_, tensor), *others = some_tensors()
    assert write_weights([("renamed", tensor), *others], 1, tmp_path / "other").hash != source.hash


def test_tensors_outlive_the_removed_file(tmp_path: Path) -> None:
    source = write_weights(some_tensors(), 1, tmp_path)
    read = read_weights(source)
    remove_weights(source)
    remove_weights(source)
    assert list(tmp_path.iterdir()) == []
    assert read.tensors[0][1].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_flipped_byte_a_cut_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    source = write_weights(some_tensors(), 1, tmp_path)
    whole = file_of(source).read_bytes()
    file_of(source).write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(WeightsError, match="damaged or cut off"):
        read_weights(source)
    file_of(source).write_bytes(whole[:-20])
    with pytest.raises(WeightsError, match="damaged or cut off"):
        read_weights(source)
    file_of(source).write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot map"):
        read_weights(source)
    remove_weights(source)
    with pytest.raises(WeightsError, match="cannot map"):
        read_weights(source)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    source = write_weights(some_tensors(), 1, tmp_path)
    with pytest.raises(WeightsError, match="holds version 1, not 2"):
        read_weights(WeightSource(2, source.place, source.hash))


def test_a_name_that_comes_twice_leaves_no_file(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    with pytest.raises(WeightsError, match="a comes twice"):
        write_weights([("a", tensor), ("a", tensor)], 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_room_names_the_version_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"version 1 .*No space left"):
        write_weights(some_tensors(), 1, tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_weights_of_a_killed_process_are_removed_by_the_next_and_those_of_a_living_one_are_not() -> None:
    program = (
        "import os, signal, sys, torch\n"
        "from rl.weights.shared_memory import write_weights\n"
        "print(write_weights([('a', torch.ones(2))], 1).place, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    remove_if_abandoned(path.parent, shared_memory._FOLDER_PREFIX)
    assert path.exists()
    process.kill()
    process.communicate()
    assert path.exists()
    remove_if_abandoned(path.parent, shared_memory._FOLDER_PREFIX)
    assert not path.parent.exists()


def test_only_folders_of_published_weights_are_ever_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(AssertionError, match="not a folder of a process"):
        remove_if_abandoned(tmp_path / "precious", shared_memory._FOLDER_PREFIX)
    with pytest.raises(AssertionError):
        remove_if_abandoned(Path(""), shared_memory._FOLDER_PREFIX)
    assert (tmp_path / "precious").is_dir()


def test_checkpoint_tensors_are_what_is_saved_without_copies(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from rl.weights.names import checkpoint_tensors
    from tests.test_engine import random_policy

    model = random_policy(tmp_path, seed=0)
    saved = load_file(tmp_path / "model.safetensors")
    live = dict(checkpoint_tensors(model, "float32"))
    assert live.keys() == saved.keys()
    assert all(torch.equal(live[name], saved[name]) for name in saved)
    storages = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert {tensor.untyped_storage().data_ptr() for tensor in live.values()} == storages


def test_rounding_to_bfloat16_spares_vectors_and_routers(tmp_path: Path) -> None:
    from rl.weights.names import checkpoint_tensors
    from tests.test_engine import random_policy

    tensors = dict(checkpoint_tensors(random_policy(tmp_path, seed=0), "bfloat16"))
    layer = "backbone.layers.1.mixer"
    assert tensors[f"{layer}.experts.0.up_proj.weight"].dtype == torch.bfloat16
    assert tensors[f"{layer}.gate.weight"].dtype == torch.float32
    assert tensors[f"{layer}.gate.e_score_correction_bias"].dtype == torch.float32
    assert tensors["backbone.layers.0.mixer.A_log"].dtype == torch.float32
