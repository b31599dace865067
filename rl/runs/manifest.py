"""What does a checkpoint's manifest say of its files, and are they so?"""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import xxhash

from envs.json_lines import JsonObject
from rl.file_hashes import WrittenFile, file_hash, files_in, in_threads
from rl.runs.files import sync, sync_folder


class CheckpointError(ValueError):
    """Checkpoints exist but none of them can be used, or what is to be saved is not what it should be."""


class InvalidError(Exception):
    """A checkpoint cannot be trusted; the text says why."""


def write_manifest(path: Path, step: int, state: JsonObject, files: Mapping[str, WrittenFile]) -> None:
    """Write the manifest of these files, which are on the disk, and sync it and the folders.

    Raises `CheckpointError` if there are other files, or files of another size.
    """
    _check_told(path, files)
    listed = {name: file._asdict() for name, file in sorted(files.items())}
    text = json.dumps({"step": step, "state": state, "files": listed})
    with (path / "manifest.json").open("w", encoding="utf-8") as manifest:
        manifest.write(json.dumps({"xxh3": xxhash.xxh3_64_hexdigest(text.encode()), "content": text}) + "\n")
        sync(manifest)
    for directory in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
        sync_folder(directory)


def _check_told(path: Path, files: Mapping[str, WrittenFile]) -> None:
    found = {str(file.relative_to(path)) for file in files_in(path)}
    wrong = [f"{name} was written, and no process told its hash" for name in sorted(found - files.keys())]
    for name, file in files.items():
        try:
            # Opened: only then must a network file system ask for the size that another machine wrote.
            with (path / name).open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
        except FileNotFoundError:
            wrong.append(f"{name} is missing, of {file.size} bytes")
            continue
        if size != file.size:
            wrong.append(f"{name} has {size} bytes and was written with {file.size}")
    if wrong:
        listed = "\n".join(f"  - {one}" for one in wrong)
        raise CheckpointError(
            f"{path} is not what the learner wrote\n{listed}\n"
            "    fix: see that run_dir is the same shared folder on all nodes, and that no one else writes there"
        )


def read_manifest(path: Path) -> JsonObject:
    """`step`, `state` and `files` of a checkpoint. Raises `InvalidError` if there is no whole manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        text, expected = manifest["content"], manifest["xxh3"]
    except FileNotFoundError:
        raise InvalidError("manifest.json is missing, so it was not written whole") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidError("manifest.json is damaged") from None
    if xxhash.xxh3_64_hexdigest(str(text).encode()) != expected:
        raise InvalidError("manifest.json was changed after it was written")
    return json.loads(text)


def check_sizes(path: Path, files: Mapping[str, JsonObject]) -> None:
    """Raise `InvalidError` unless all files are there with their sizes."""
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            raise InvalidError(f"{name} is missing")
        if file.stat().st_size != entry["size"]:
            raise InvalidError(f"{name} has {file.stat().st_size} bytes and was written with {entry['size']}")


def check_hashes(path: Path, files: Mapping[str, JsonObject]) -> None:
    """Read every byte of the files. Raises `InvalidError` if one was changed."""
    for _ in in_threads(partial(_check_hash, path), files.items()):
        pass


def _check_hash(path: Path, listed: tuple[str, JsonObject]) -> None:
    name, entry = listed
    try:
        is_as_written = file_hash(path / name) == entry["xxh3"]
    except OSError as error:
        raise InvalidError(f"{name} cannot be read: {error.strerror}") from None
    if not is_as_written:
        raise InvalidError(f"{name} was changed after it was written")
