"""Which policy did a learner save: a folder with all weights, or a folder with an adapter, and what is its base?

An adapter's folder is in peft's format. In `base.json` it names the base by its path, a hash of its weights, and the
number format in which the base was held.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from rl.config.errors import ConfigError

ADAPTER_FILE, BASE_FILE = "adapter_config.json", "base.json"
BLOCK_BYTES = 1 << 22


class BaseError(ConfigError):
    """The base of an adapter is missing, or it is another one."""


class Base(NamedTuple):
    """What the folder of an adapter says about its base."""

    path: Path
    xxh3: str | None
    """None if the adapter is not ours."""
    precision: Mapping[str, Any]
    """The section `precision`."""


def policy_in(learner: Path) -> Path:
    """The policy's folder in the learner's part of a checkpoint."""
    has_only_adapter = is_adapter(learner / "adapter") and not (learner / "model").exists()
    return learner / ("adapter" if has_only_adapter else "model")


def holds_policy(policy: Path) -> bool:
    """Whether this folder holds weights, all or an adapter's: of a state in slices it may hold the tokenizer only."""
    return (policy / "config.json").is_file() or is_adapter(policy)


def is_adapter(policy: Path) -> bool:
    """Whether this folder holds an adapter, without its base."""
    return (policy / ADAPTER_FILE).is_file() and not (policy / "config.json").is_file()


def write_base(adapter: Path, base: Path, precision: Mapping[str, Any]) -> None:
    """Write `base.json` for an adapter of this base."""
    written = {"path": str(base.resolve()), "xxh3": weights_hash(base), "precision": precision}
    (adapter / BASE_FILE).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def base_of(adapter: Path) -> Base:
    """The base of an adapter, whose hash was checked.

    Its path is the saved one, or the supervised policy of the run folder around the adapter: a run may be moved. Raises
    `BaseError`.
    """
    base = _saved_base(adapter)
    for path in (base.path, *(folder / "sft" for folder in adapter.resolve().parents[3:4])):
        if (path / "config.json").is_file():
            check_base(adapter, path)
            return base._replace(path=path)
    raise BaseError(f"{adapter} is an adapter of {base.path}, which is not there; put that policy back")


def check_base(adapter: Path, base: Path) -> None:
    """Raise `BaseError` if the adapter was trained beside other weights than those of this policy."""
    saved = _saved_base(adapter)
    if saved.xxh3 is not None and weights_hash(base) != saved.xxh3:
        raise BaseError(
            f"{adapter} was trained beside other weights than those in {base}; its base was {saved.path}. Give that"
            " policy, or begin a new run from this one"
        )


def weights_hash(policy: Path) -> str:
    """Hash (xxh3, 64 bits) of all files of weights in the folder, by name."""
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in policy.glob(pattern))
    return _hash(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def _saved_base(adapter: Path) -> Base:
    try:
        if (adapter / BASE_FILE).is_file():
            saved = json.loads((adapter / BASE_FILE).read_bytes())
            return Base(Path(saved["path"]), saved["xxh3"], saved["precision"])
        by_peft = json.loads((adapter / ADAPTER_FILE).read_bytes())
        return Base(Path(by_peft["base_model_name_or_path"]), None, {"format": "float32"})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseError(f"{adapter} does not tell its base: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=8)
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Kept, because a base of many gigabytes takes seconds to read and each checkpoint asks for it."""
    digest = xxhash.xxh3_64()
    for file, size, _ in files:
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
