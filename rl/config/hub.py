"""Which folder does the id of a model on the Hugging Face hub mean? The newest snapshot in the local cache."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Files of a checkpoint; others hold the same weights in other formats."""
CONFIG = "config.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(path: Path) -> bool:
    """Whether this may be a hub id such as `Qwen/Qwen3-0.6B`: nothing is there, nor a folder that it would be in."""
    return HUB_ID.fullmatch(str(path)) is not None and not path.exists() and not path.parent.exists()


def cached_snapshot(name: str) -> Path | None:
    """The folder of this model in the cache; None if it is not there, or not all of it. Nothing is downloaded.

    The folder's name is the commit, so a run that saves the path starts from the same weights again.
    """
    if not _cache_folder(name).is_dir():  # importing huggingface_hub takes a while
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def downloaded_snapshot(name: str) -> Path | None:
    """The folder of this model in the cache, after a download; None, with a message, where it cannot be downloaded."""
    from huggingface_hub import snapshot_download

    return _downloaded(name, lambda: snapshot_download(name, allow_patterns=list(PATTERNS)))


def config_snapshot(name: str) -> Path | None:
    """A folder of this model in the cache with its config.json, perhaps without weights; only this file is downloaded.

    None, with a message, where it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, CONFIG)
    if isinstance(cached, str):
        return Path(cached).parent
    file = _downloaded(f"{CONFIG} of {name}", lambda: hf_hub_download(name, CONFIG))
    return file.parent if file else None


def _downloaded(what: str, download: Callable[[], str]) -> Path | None:
    from huggingface_hub.errors import HfHubHTTPError

    print(f"downloading {what} from the Hugging Face hub")
    try:
        return Path(download())
    except (HfHubHTTPError, OSError, ValueError) as error:
        print(f"{what} cannot be downloaded: {str(error).partition(chr(10))[0]}")
        return None


def download_command(name: str) -> str:
    """The command that puts the model into the cache, without weights in other formats."""
    return f"hf download {name} --include {' '.join(repr(pattern) for pattern in PATTERNS)}"


def config_command(name: str) -> str:
    """The command that puts the model's config.json alone into the cache."""
    return f"hf download {name} {CONFIG}"


def _is_whole(snapshot: Path) -> bool:
    """Whether a download of weights was not interrupted."""
    index = snapshot / "model.safetensors.index.json"
    files = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ()
    has_weights = any(snapshot.glob("*.safetensors")) or any(snapshot.glob("*.bin"))
    return (snapshot / CONFIG).is_file() and has_weights and all((snapshot / file).is_file() for file in files)


def _cache_folder(name: str) -> Path:
    """As huggingface_hub lays out its cache (HF_HUB_CACHE, HF_HOME)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"
    return Path(cache).expanduser() / f"models--{name.replace('/', '--')}"
