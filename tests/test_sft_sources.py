"""Where rows come from: lines, lists, gzip, Parquet, folders, the hub; what cannot be read is told with its place."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.chat import Chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.errors import ConfigError
from rl.config.mixture import SourceConfig
from rl.config.read import check_references
from rl.config.supervised import hub_name
from rl.policies import train_tokenizer
from sft.mixture import read_source
from sft.rows import SftDataError
from sft.sources import Keys
from tests.conversations import conversations_of
from tests.makers import make_config

ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
ROWS = [
    {"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"city": "x"}}]}], "tools": [TOOL]},
    {"messages": [ASK, {**ANSWER, "thinking": "r"}]},
]


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2))


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode()))


def write_gzip_list(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_saved(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(path)


def write_saved_splits(path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(path)


def write_folder(path: Path) -> None:
    path.mkdir()
    write_parquet(path / "train-00000.parquet", ROWS[:1])
    (path / "train-00001.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    (path / "test.jsonl").write_text("not read\n")
    (path / "README.md").write_text("not read")


SOURCES: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": write_lines,
    "lines.json": write_lines,
    "list.json": write_list,
    "rows.jsonl.gz": write_gzip,
    "list.json.gz": write_gzip_list,
    "rows.parquet": write_parquet,
    "saved": write_saved,
    "splits": write_saved_splits,
    "folder": write_folder,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_each_source_gives_the_same_conversations(name: str, tmp_path: Path) -> None:
    SOURCES[name](tmp_path / name)
    first, second = conversations_of(tmp_path / name)
    assert first.messages == (Message("user", "hi"), Message("assistant", "yo", "", (ToolCall("f", {"city": "x"}),)))
    assert first.tools == (ToolSpec("f", "", TOOL["parameters"]),)
    assert second.messages == (Message("user", "hi"), Message("assistant", "yo", "r"))
    assert (first.tools, second.tools) == ((ToolSpec("f", "", TOOL["parameters"]),), ())
    assert first.source.startswith(str(tmp_path / name)) and first.source.endswith(", row 1")


@pytest.mark.slow
def test_a_split_is_chosen_and_a_missing_one_is_told(tmp_path: Path) -> None:
    write_saved_splits(tmp_path / "splits")
    assert len(conversations_of(tmp_path / "splits", split="test")) == 1
    with pytest.raises(SftDataError, match=r"no split 'dev', only train, test \(sft.data_split\)"):
        conversations_of(tmp_path / "splits", split="dev")
    mixed = SourceConfig(path=tmp_path / "splits", split="dev", weight=1.0)
    with pytest.raises(SftDataError, match=r"no split 'dev', only train, test \(sft.data.2.split\)"):
        read_source(mixed, Keys.of("sft", 2), has_thinking=True)
    write_folder(tmp_path / "folder")
    with pytest.raises(SftDataError, match=r"test.jsonl, row 1: not JSON"):
        conversations_of(tmp_path / "folder", split="test")
    with pytest.raises(SftDataError, match=r"no .* file of split 'dev', only test.jsonl, train-00000.parquet"):
        conversations_of(tmp_path / "folder", split="dev")


def test_files_of_a_folder_are_chosen_by_the_whole_name_of_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("train_sft-0.jsonl", "train_sft.jsonl", "train_sft2.jsonl", "train_gen.jsonl", "dev-team-chats.jsonl")
    for name in names:
        said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": name}]
        (tmp_path / name).write_text(json.dumps({"messages": said}) + "\n")

    def read(split: str) -> tuple[list[str], str]:
        found = [conversation.messages[1].content for conversation in conversations_of(tmp_path, split=split)]
        return found, " ".join(capsys.readouterr().out.split())

    found, told = read("train_sft")
    assert found == ["train_sft-0.jsonl", "train_sft.jsonl"]
    assert "split train_sft: train_sft-0.jsonl, train_sft.jsonl; left out" in told
    assert told.endswith("tell another split: dev-team-chats.jsonl, train_gen.jsonl, train_sft2.jsonl")
    found, told = read("train")
    assert found == sorted(names)[1:]
    assert told.endswith("tell another split: dev-team-chats.jsonl")
    with pytest.raises(SftDataError, match=r"of split 'test_sft', only dev-team-chats\.jsonl"):
        read("test_sft")


def test_a_part_of_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    for path in (tmp_path, tmp_path / "train.jsonl"):
        with pytest.raises(SftDataError, match=r"sft\.data_split is 'train\[:1%\]', but .* read whole"):
            conversations_of(path, split="train[:1%]")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": "caf\xe9"}', "row 2: not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "row 2: not UTF-8"),
        (b"\x1f\x8b\x08\x00", "row 2: not UTF-8"),
        (b"[" * 100_000, "row 2: not JSON"),
        (b'{"messages": ' + b"9" * 10_000 + b"}", "row 2: not JSON"),
    ],
)
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps({"messages": [ASK, ANSWER]}).encode() + b"\n" + line + b"\n")
    with pytest.raises(SftDataError, match=f"rows.jsonl, {words}"):
        conversations_of(path)


def test_a_byte_order_mark_and_other_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": [ASK, ANSWER]}).encode() + b"\r\n\r\n")
    assert len(conversations_of(path)) == 1


def test_all_lines_that_are_no_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "{", "", "[]", json.dumps(ROWS[1]), "}"]))
    with pytest.raises(SftDataError, match=r"3 of 5 rows are bad; first: .*rows.jsonl, row 2: not JSON"):
        conversations_of(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("rows.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:12] + b"xyz", "cannot be read"),
        ("rows.parquet", b"PAR1", "cannot be read"),
        ("rows.parquet", b"x" * 100, "cannot be read"),
        ("rows.json", b"[{}", "row 1: not JSON"),
        ("rows.json", b"[3]", "row 1: a row must have one of these forms, got int"),
        ("rows.json", b"[]", "holds no conversations"),
        ("rows.jsonl", b"\n \n", "holds no conversations"),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SftDataError, match=f"{name}.*{words}"):
        conversations_of(path)


def test_missing_and_foreign_sources_are_told(tmp_path: Path) -> None:
    with pytest.raises(SftDataError, match=r"rows.jsonl cannot be read: .*No such file"):
        conversations_of(tmp_path / "rows.jsonl")
    with pytest.raises(SftDataError, match=r"is no folder written by save_to_disk of datasets, and holds no .jsonl or"):
        conversations_of(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(SftDataError, match="cannot be read by datasets"):
        conversations_of(tmp_path)


def test_columns_of_other_types_are_bad_rows(tmp_path: Path) -> None:
    import datetime

    write_parquet(tmp_path / "rows.parquet", [{"messages": [datetime.date(2020, 1, 1)]}, {"messages": []}])
    with pytest.raises(
        SftDataError, match=r"2 of 2 rows .* row 1: messages\[0\]: a message must be an object, got date"
    ):
        conversations_of(tmp_path / "rows.parquet")


def test_a_name_of_the_hub_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    assert hub_name(Path("user/name-1.0")) == "user/name-1.0"
    for path in ("data/mine", "data/rows.jsonl", "/user/name", "../name", "name", "a/b/c", "data/x.parquet", "~/x"):
        assert hub_name(Path(path)) is None, path
    for data, is_missing in (("user/name", False), ("data/mine", False), ("data/rows.jsonl", True)):
        with pytest.raises(ConfigError) as error:
            check_references(make_config(environments={"none": {}}, sft={"data": data}))
        assert ("sft.data: there is no file or folder" in str(error.value)) == is_missing


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_read_from_the_cache_and_its_absence_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    from huggingface_hub import constants

    for module in (datasets.config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with pytest.raises(SftDataError) as error:
        conversations_of(Path("user/name"), subset="math", split="test")
    command = """load_dataset('user/name', 'math', split='test').save_to_disk('user_name')"""
    assert command in str(error.value) and "not in the cache" in str(error.value)
    assert str(error.value).endswith("copy the folder here and set sft.data=user_name")
    # a data set as `datasets` caches what it downloads
    write_lines(tmp_path / "rows.jsonl")
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "made"))
    (made,) = (tmp_path / "made").glob("json/default-*/0.0.0/*/")
    (made / "json-train.arrow").rename(made / "name-train.arrow")
    info = json.loads((made / "dataset_info.json").read_text())
    (made / "dataset_info.json").write_text(json.dumps({**info, "config_name": "default", "dataset_name": "name"}))
    (cache / "user___name" / "default" / "0.0.0").mkdir(parents=True)
    made.rename(cache / "user___name" / "default" / "0.0.0" / made.name)
    first, second = conversations_of(Path("user/name"))
    assert first.source == "user/name, row 1"
    assert second.messages == (Message("user", "hi"), Message("assistant", "yo", "r"))
    with pytest.raises(SftDataError, match=r"user/name: .*test.* \(sft.data_split, sft.data_subset\)"):
        conversations_of(Path("user/name"), split="test")


@pytest.mark.slow
def test_calls_of_a_datasets_folder_are_read_back_by_the_chat_as_they_were_meant(tmp_path: Path) -> None:
    chat = Chat(train_tokenizer(["some text"], 384, NemotronFormat()), NemotronFormat())
    from datasets import Dataset

    rows = [
        {"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"o": {"x": 1}}}]}]},
        {"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "g", "arguments": {"o": {"y": "2"}, "n": 3}}]}]},
        {"messages": [ASK, ANSWER]},
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    first, second, third = conversations_of(tmp_path / "folder")
    assert first.messages[1].tool_calls == (ToolCall("f", {"o": {"x": 1}}),)
    assert second.messages[1].tool_calls == (ToolCall("g", {"o": {"y": "2"}, "n": 3}),)
    assert third.messages[1] == Message("assistant", "yo")
    tool = ToolSpec("g", "", {"properties": {"o": {"type": "object"}, "n": {"type": "integer"}}})
    said = second.messages[1]
    dialogue = chat.begin([Message("user", "hi")], (tool,), "off")
    reply = Reply(said.content, "", said.tool_calls)
    assert dialogue.take(dialogue.reply_ids(reply)) == reply
