"""Where do the rows of training data come from: files, folders, or a data set of the Hugging Face hub?"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from envs.messages import valid
from rl.config.mixture import SourceConfig
from rl.config.supervised import hub_name
from sft.filling import without_filling
from sft.messages import BadRow
from sft.rows import FORMS, Conversation, SftDataError, read_row
from sft.saying import say

R = TypeVar("R")
Rows = Iterator[tuple[str, Any]]
"""Source and value of each row; the value of a line that cannot be read is a `BadRow`."""
FILES_OF_A_FOLDER = (".jsonl", ".jsonl.gz", ".parquet")
TABLES = (".csv", ".tsv", ".xlsx")
"""Endings of files that people have, and that hold no conversations."""
SPLITS = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})
"""Plain names of splits, which are words in the names of files; others, such as train_sft, begin a file's name."""


class Keys(NamedTuple):
    """The keys of a source in the configuration, for errors."""

    data: str
    split: str
    subset: str

    @classmethod
    def of(cls, section: str, place: int | None = None) -> "Keys":
        """Of the section's only source, or of the one at this place of its list."""
        if place is None:
            return cls(f"{section}.data", f"{section}.data_split", f"{section}.data_subset")
        return cls(*(f"{section}.data.{place}.{name}" for name in ("path", "split", "subset")))


def read_conversations(source: SourceConfig, keys: Keys, *, has_thinking: bool = True) -> list[Conversation]:
    """All conversations of a source that is a path.

    `has_thinking` says whether the chat format has a think block. Raises `SftDataError` as `read_all`.
    """

    def read(row: Any, place: str) -> Conversation:
        return read_row(row, place, has_thinking=has_thinking)

    return read_all(source, keys, read, "conversations", FORMS[("messages",)])


def read_all(source: SourceConfig, keys: Keys, read: Callable[[Any, str], R], what: str, example: str) -> list[R]:
    """All rows of a source that is a path, as `read` makes them of a row and its place; `read` raises `BadRow`.

    Raises `SftDataError` that counts the bad rows and tells the first, or if there are no rows of this kind (`what`).
    """
    found: list[R] = []
    first, num_bad = "", 0
    for place, row in _rows(source, keys):
        try:
            if isinstance(row, BadRow):
                raise row
            found.append(read(row, place))
        except BadRow as error:
            first, num_bad = first or f"{place}: {error}", num_bad + 1
    if num_bad:
        raise SftDataError(f"{num_bad} of {len(found) + num_bad} rows are bad; first: {first}")
    if not found:
        raise SftDataError(f"{source.path} holds no {what}: write one a line, such as {example}")
    return found


def _rows(source: SourceConfig, keys: Keys) -> Rows:
    data = source.path
    assert data is not None
    if data.is_dir():
        is_saved = any((data / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        yield from _saved_rows(data, source.split, keys) if is_saved else _folder_rows(data, _whole(source, keys))
    elif name := hub_name(data):
        yield from _hub_rows(name, source, keys)
    else:
        _whole(source, keys)
        yield from _file_rows(data)


def _whole(source: SourceConfig, keys: Keys) -> str:
    """The split of a source that is made of files. Raises `SftDataError` for a part of one."""
    if "[" in source.split:
        raise SftDataError(
            f"{keys.split} is {source.split!r}, but {source.path} is made of files, which are read whole: only a data"
            " set of the hub is cut so. Write the rows to train to a file"
        )
    return source.split


def _folder_rows(folder: Path, split: str) -> Rows:
    """Rows of the folder's files of this split in the order of their names. Tells which files these are."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(FILES_OF_A_FOLDER))
    chosen = [path for path in files if _is_of_split(path.name, split)]
    others = [path.name for path in files if path not in chosen]
    if not chosen:
        raise SftDataError(
            f"{folder} is no folder written by save_to_disk of datasets, and holds no {' or '.join(FILES_OF_A_FOLDER)}"
            f" file of split {split!r}{f', only {_some(others)}' if others else ''}"
        )
    left_out = f"; left out, as their names tell another split: {_some(others)}" if others else ""
    say(f"{folder}, split {split}: {_some([path.name for path in chosen])}{left_out}")
    for path in chosen:
        yield from _file_rows(path)


def _is_of_split(name: str, split: str) -> bool:
    """Whether a file's name begins with the split; for a plain word such as `train`, whether it tells no other one."""
    if split in SPLITS:
        return _split_words(name) in (frozenset(), {split})
    return re.match(re.escape(split) + r"(?![^\W_])", name) is not None


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _split_words(name: str) -> frozenset[str]:
    return SPLITS.intersection(re.split("[^a-z]+", name.lower()))


def _file_rows(path: Path) -> Rows:
    if path.suffix in TABLES:
        raise SftDataError(f"{path}: {path.suffix} files are not read; write JSONL, a JSON list or Parquet")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from _json_rows(file, path)
    except (OSError, EOFError, zlib.error) as error:  # the last two of a gzip file that is cut off or damaged
        raise SftDataError(f"{path} cannot be read: {error}") from None


def _json_rows(file: BufferedIOBase, path: Path) -> Rows:
    """One row a line; of a file named .json also the items of one list."""
    is_json = path.name.removesuffix(".gz").endswith(".json")
    if is_json and isinstance(whole := _parsed(file.read()), list):
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(whole, 1))
        return
    file.seek(0)
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}, row {number}", _parsed(line)


def _parsed(text: bytes) -> Any:
    try:
        return valid(json.loads(text.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8: {error}; convert the file")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {error}; write a row as one JSON object on a line")


def _parquet_rows(path: Path) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from _arrow_rows(rows, str(path))
    except ArrowException as error:
        raise SftDataError(f"{path} cannot be read: {error}") from None


def _saved_rows(folder: Path, split: str, keys: Keys) -> Rows:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # of datasets, pyarrow or json, as the folder is damaged
        raise SftDataError(f"{folder} cannot be read by datasets: {error}") from None
    if isinstance(data, DatasetDict):
        if split not in data:
            others = ", ".join(map(str, data))
            raise SftDataError(f"{folder} has no split {split!r}, only {others} ({keys.split})")
        data = data[split]
    yield from _arrow_rows(data, str(folder))


def _hub_rows(name: str, source: SourceConfig, keys: Keys) -> Rows:
    from datasets import load_dataset

    split, subset = source.split, source.subset
    try:
        data = load_dataset(name, subset, split=split)
    except ValueError as error:
        raise SftDataError(f"{name}: {error} ({keys.split}, {keys.subset})") from None
    except Exception as error:  # of datasets, huggingface_hub or the network
        folder = name.replace("/", "_")
        arguments = ", ".join(repr(argument) for argument in (name, subset) if argument is not None)
        raise SftDataError(
            f"{name} is no file or folder here, is not in the cache of datasets, and cannot be downloaded"
            f" ({type(error).__name__}: {error}). Run on a machine with network\n"
            f'  python -c "from datasets import load_dataset;'
            f" load_dataset({arguments}, split={split!r}).save_to_disk('{folder}')\"\n"
            f"copy the folder here and set {keys.data}={folder}"
        ) from None
    yield from _arrow_rows(data, name)


def _arrow_rows(rows: Iterable[Any], place: str) -> Rows:
    return ((f"{place}, row {number}", valid(without_filling(row))) for number, row in enumerate(rows, 1))
