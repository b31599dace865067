"""How is a learner's state saved, and taken over again by any number of ranks?

Format 1 is written by a learner of one process: a Hugging Face folder of float32 weights and AdamW's moments as
safetensors. Format 2 is written by several ranks (`torch.distributed.checkpoint`): each writes its slices to `state/`,
and the Hugging Face folder, where it is wanted, is written layer by layer, so that no rank holds the whole policy. Both
are read by one rank and by several.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rl.file_hashes import files_in
from rl.learner.optimizer import (
    held_on,
    load_optimizer_tensors,
    new_optimizer_tensors,
    optimizer_tensors,
    spread_as,
)
from rl.ranks import Ranks
from rl.weights.names import checkpoint_parts

FORMAT, SHARDED_FORMAT = 1, 2
SLICES = "state"
"""Folder of format 2 with the slices of all ranks."""
SLICES_FILE = re.compile(r"__([0-9]+)_[0-9]+\.distcp")
"""What torch.distributed.checkpoint names the files of a rank."""
MOMENTS_FILE = "optimizer.safetensors"
"""Of format 1."""


class LearnerStateError(ValueError):
    """A saved state does not fit this learner."""


def write_version(folder: Path, policy_version: int, ranks: Ranks) -> None:
    """Write `learner.json`, which tells the format and the version of a state."""
    form = FORMAT if ranks.num == 1 else SHARDED_FORMAT
    if ranks.is_first:
        (folder / "learner.json").write_text(json.dumps({"format": form, "policy_version": policy_version}) + "\n")


def read_version(folder: Path) -> int:
    """The policy version of a saved state. Raises `LearnerStateError` if there is none, or in an unknown format."""
    try:
        saved = json.loads((folder / "learner.json").read_text())
    except FileNotFoundError as error:
        raise LearnerStateError(f"{folder} holds no learner state: {error.filename} is missing") from error
    if saved["format"] not in (FORMAT, SHARDED_FORMAT):
        raise LearnerStateError(
            f"{folder} has learner state format {saved['format']}, expected {FORMAT} or {SHARDED_FORMAT}"
        )
    return int(saved["policy_version"])


def save_weights(model: PreTrainedModel, folder: Path, ranks: Ranks) -> None:
    """Write the float32 weights as a Hugging Face folder, which transformers loads as it is."""
    if ranks.num == 1:
        model.save_pretrained(folder)
        return
    _write_layers(model, checkpoint_parts(model, "float32"), folder, ranks)


def save_moments(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, folder: Path, ranks: Ranks, *, with_weights: bool
) -> None:
    """Write AdamW's moments; several ranks write their slices of the weights with them, if these are trained."""
    moments = optimizer_tensors(optimizer, model)
    if ranks.num == 1:
        save_file(moments, folder / MOMENTS_FILE)
    else:
        weights = _weights(model) if with_weights else {}
        save({**weights, **_named("optimizer", moments)}, checkpoint_id=folder / SLICES)


def own_files(folder: Path, ranks: Ranks) -> list[Path]:
    """The files of a saved state that this rank wrote: its slices, and the first rank all that are no slices."""
    writers = {file: SLICES_FILE.fullmatch(file.name) for file in files_in(folder)}
    return [file for file, found in writers.items() if (int(found[1]) if found else 0) == ranks.rank]


def load_weights_and_moments(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    load_policy: Callable[[Path], PreTrainedModel],
    *,
    with_weights: bool,
) -> None:
    """Take over what was saved in either format; each rank reads its slices. Raises `LearnerStateError`.

    `load_policy` loads a Hugging Face folder as `model` is held.
    """
    try:
        if (folder / SLICES).is_dir():
            _load_slices(model, optimizer, folder / SLICES, with_weights=with_weights)
        else:
            if with_weights:
                _take_over(model, load_policy(folder / "model"))
            _load_whole_moments(model, optimizer, folder / MOMENTS_FILE)
    except (ValueError, RuntimeError, OSError) as error:
        raise LearnerStateError(f"{folder} holds the state of another policy: {error}") from error


def _load_slices(model: PreTrainedModel, optimizer: torch.optim.Optimizer, folder: Path, *, with_weights: bool) -> None:
    reader = FileSystemReader(folder)
    saved = set(reader.read_metadata().state_dict_metadata)
    weights = _sliced_weights(model, saved) if with_weights else {}
    moments = new_optimizer_tensors(optimizer, model)
    moments = {name: tensor for name, tensor in moments.items() if f"optimizer.{name}" in saved}
    _load({**weights, **_named("optimizer", moments)}, reader)
    load_optimizer_tensors(optimizer, model, moments)


def load_sliced_weights(model: PreTrainedModel, folder: Path) -> None:
    """Take over the weights alone from the state of several ranks, whole. Raises `LearnerStateError`."""
    reader = FileSystemReader(folder / SLICES)
    try:
        _load(_sliced_weights(model, set(reader.read_metadata().state_dict_metadata)), reader)
    except (ValueError, RuntimeError, OSError) as error:
        raise LearnerStateError(f"{folder} holds the state of another policy: {error}") from error


def _load(tensors: dict[str, Tensor], reader: FileSystemReader) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may read them alone
        load(tensors, storage_reader=reader)


def _sliced_weights(model: PreTrainedModel, saved: Iterable[str]) -> dict[str, Tensor]:
    """The model's weights by their names in the slices. Raises `LearnerStateError` if others were saved."""
    weights = _weights(model)
    _check_names({name for name in saved if name.startswith("weights.")}, weights)
    return weights


@torch.no_grad()
def _take_over(model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    saved, held = loaded.state_dict(), model.state_dict()
    _check_names(saved, held)
    for name, tensor in held.items():
        tensor.copy_(saved[name])


def _load_whole_moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer, file: Path) -> None:
    parameters = dict(model.named_parameters())
    with safe_open(file, framework="pt") as saved:
        moments = {}
        for name in saved.keys():  # noqa: SIM118
            parameter = parameters[name.rpartition(".")[0]]
            moments[name] = _read(saved, name, parameter, held_on(optimizer, parameter))
    load_optimizer_tensors(optimizer, model, moments)


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return _named("weights", model.state_dict())


def _named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}.{name}": tensor for name, tensor in tensors.items()}


def _check_names(saved: Iterable[str], held: Iterable[str]) -> None:
    if names := set(saved) ^ set(held):
        name = min(names)
        raise LearnerStateError(f"{name} is {'missing' if name in set(held) else 'unknown'}")


def _read(saved: Any, name: str, parameter: Tensor, device: torch.device) -> Tensor:
    """A moment of this parameter from an open file, as the parameter is held: in slices of the ranks, or whole."""
    stored = saved.get_slice(name)
    if not stored.get_shape():
        return saved.get_tensor(name).to(parameter.device)
    if not isinstance(parameter, DTensor):
        return saved.get_tensor(name).to(device)
    (chunk,) = parameter.__create_chunk_list__()  # what torch.distributed.checkpoint asks a tensor for
    part = stored[tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))]
    return spread_as(part.to(device), parameter)


def _write_layers(model: PreTrainedModel, parts: Iterable[Mapping[str, Tensor]], folder: Path, ranks: Ranks) -> None:
    """One file a layer; the first rank writes them, and all take part in gathering."""
    left = iter(parts)
    with ranks.together():
        try:
            if ranks.is_first:
                _write_parts(model, left, folder)
        finally:  # also after an error of the first rank, such as a full disk: the others would wait for ever
            for _ in left:
                pass


def _write_parts(model: PreTrainedModel, parts: Iterable[Mapping[str, Tensor]], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    num_bytes = 0
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        file = f"model-{number:05d}.safetensors"
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index: dict[str, Any] = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    model.config.save_pretrained(folder)
