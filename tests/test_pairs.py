"""Preference pairs: rows that are read, rows that are refused with file, row and key, and the ids that are trained."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rl.chat.chat import Chat
from rl.chat.formats import CHAT_FORMATS
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.preferences import DpoConfig, RewardModelConfig
from rl.config.read import pair_stage_problems
from rl.policies import train_tokenizer
from sft.checkpoints import prepare
from sft.data import Row, token_row
from sft.heldout import split_rows
from sft.micro_batches import training_order
from sft.pairs import Pair, PairRow, flat, read_pairs, token_pairs
from sft.rows import Conversation, SftDataError, read_row
from tests.makers import make_config
from tests.test_chat import CHATML

CONFIG = make_config(policy={"path": "x", "max_tokens": 400})
ASK: dict[str, Any] = {"role": "user", "content": "2 + 2?"}
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(["some text"], 384, NemotronFormat()), NemotronFormat())


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, *rows: Any, has_thinking: bool = True) -> list[Pair]:
    return read_pairs(DpoConfig(data=write(folder, *rows)), "dpo", has_thinking=has_thinking)


def trained_text(conversation: Conversation, chat: Chat) -> str:
    row = token_row(conversation, chat, CONFIG)
    return chat.text([label for label in row.labels if label >= 0])


def test_texts_lists_and_whole_conversations_are_the_same_pair(tmp_path: Path, chat: Chat) -> None:
    pairs = read(
        tmp_path,
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [ASK], "chosen": [said("4")], "rejected": [said("5")]},
        {"prompt": [ASK], "chosen": "4", "rejected": [said("5")], "tools": None},
        {"chosen": [ASK, said("4")], "rejected": [ASK, said("5")], "score": 3},
    )
    rows, skipped = token_pairs(pairs, chat, CONFIG)
    assert len(set(rows)) == 1 and len(rows) == 4 and not any(skipped.values())
    assert trained_text(pairs[0].chosen, chat) == "4<|im_end|>"
    assert trained_text(pairs[0].rejected, chat) == "5<|im_end|>"


def test_the_ids_are_those_of_the_supervised_stage_and_of_rollouts(tmp_path: Path, chat: Chat) -> None:
    call = said("", reasoning="I add.", tool_calls=[{"name": "add", "arguments": {"a": 2}}])
    chosen = [call, {"role": "tool", "content": "4", "name": "add"}, said("It is 4.", reasoning="Done.")]
    rejected = [said("It is <|im_end|> 5.", reasoning="No tool.")]
    (pair,) = read(tmp_path, {"prompt": [ASK], "chosen": chosen, "rejected": rejected, "tools": [TOOL]})
    (row,), _ = token_pairs([pair], chat, CONFIG)
    for found, messages in ((row.chosen, chosen), (row.rejected, rejected)):
        supervised = read_row({"messages": [ASK, *messages], "tools": [TOOL]}, "row", has_thinking=True)
        assert found == token_row(supervised, chat, CONFIG)
    dialogue = chat.begin(pair.chosen.messages[:1], pair.chosen.tools, "unlimited")
    assert row.chosen.input_ids[: len(dialogue.prompt_ids)] == dialogue.prompt_ids
    assert row.rejected.input_ids[: len(dialogue.prompt_ids)] == dialogue.prompt_ids
    trained = trained_text(pair.chosen, chat)
    assert "I add." in trained and "<function=add>" in trained and trained.endswith("It is 4.<|im_end|>")
    assert "tool_response" not in trained and trained.count("<|im_end|>") == 2
    control = chat.stop_ids[0]
    assert row.rejected.labels.count(control) == 1  # text of a row never becomes a control token


def test_the_prompt_of_both_sides_is_the_same_if_only_one_thinks(tmp_path: Path, chat: Chat) -> None:
    pairs = read(
        tmp_path,
        {"prompt": "2 + 2?", "chosen": [said("4", reasoning="Two and two.")], "rejected": "5"},
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    )
    assert [pair.rejected.budget for pair in pairs] == ["unlimited", "off"]
    thinking, silent = token_pairs(pairs, chat, CONFIG)[0]
    prompts = [
        row.input_ids[: next(place for place, label in enumerate(row.labels) if label >= 0)]
        for row in (thinking.chosen, thinking.rejected, silent.chosen)
    ]
    assert prompts[0] == prompts[1] != prompts[2]
    assert trained_text(pairs[0].rejected, chat).endswith("</think>\n5<|im_end|>")


def test_replies_in_a_prompt_are_not_trained(tmp_path: Path, chat: Chat) -> None:
    opening = [ASK, said("5"), {"role": "user", "content": "Sure?"}]
    explicit, implicit = read(
        tmp_path,
        {"prompt": opening, "chosen": "4", "rejected": "5"},
        {"chosen": [*opening, said("4")], "rejected": [*opening, said("5")]},
    )
    assert explicit.chosen.untrained == {1}
    assert trained_text(explicit.chosen, chat) == trained_text(implicit.chosen, chat) == "4<|im_end|>"
    assert len(set(token_pairs([explicit, implicit], chat, CONFIG)[0])) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "2 + 2?", "chosen": "4"}, "the row has no rejected; it must be like"),
        ({"prompt": "2 + 2?", "chosen": None, "rejected": None}, "has no chosen and no rejected"),
        (["2 + 2?", "4", "5"], "has no chosen and no rejected"),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": [said("4")]}, "chosen and rejected are equal"),
        ({"prompt": "2 + 2?", "chosen": [ASK, said("4")], "rejected": [ASK, said("5")]}, "chosen: .*role user does"),
        ({"chosen": [ASK, said("4")], "rejected": [{**ASK, "content": "3?"}, said("5")]}, "in common, but a message"),
        ({"chosen": [ASK, said("4")], "rejected": [ASK, said("4"), ASK, said("4")]}, "in common, but nothing does"),
        ({"chosen": "4", "rejected": "5"}, "chosen must be a list of messages, got str"),
        (
            {"prompt": "2 + 2?", "chosen": [], "rejected": "5"},
            "chosen must be text, or a list of messages, got an empty",
        ),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": [said("r</think>5")]}, r"rejected\[0\]: .*does not begin it"),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": [{"role": "bot"}]}, r"rejected\[0\]: a message's role must"),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "tools": [{"nam": "f"}]}, "a tool needs a name"),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": [said("5", weight=0)]}, "prompt and rejected: no assistant"),
        (
            {"chosen": [ASK, said("4", weight=0), ASK, said("4")], "rejected": [ASK, said("4"), ASK, said("5")]},
            "",  # weight 0 of a reply in the common prompt changes nothing
        ),
    ],
)
def test_bad_rows_are_counted_and_the_first_is_told_with_file_row_and_key(tmp_path: Path, row: Any, words: str) -> None:
    good = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    if not words:
        assert len(read(tmp_path, good, row)) == 2
        return
    with pytest.raises(SftDataError, match=rf"^2 of 3 rows are bad; first: .*pairs\.jsonl, row 2: .*{words}"):
        read(tmp_path, good, row, row)


def test_what_is_too_long_or_equal_in_the_chat_format_is_skipped_and_counted(tmp_path: Path, chat: Chat) -> None:
    short = make_config(policy={"path": "x", "max_tokens": 100})
    good = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    long = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5" * 200}
    alike = {"prompt": "2 + 2?", "chosen": [said("4", reasoning="a")], "rejected": [said("4", reasoning="b")]}
    rows, skipped = token_pairs(read(tmp_path, good, alike, long, long), chat, short)
    assert len(rows) == 2 and list(skipped.values()) == [2, 0]
    tokenizer = train_tokenizer(["text"], 384, NemotronFormat())
    tokenizer.chat_template = CHATML
    plain = Chat(tokenizer, CHAT_FORMATS["template"].for_tokenizer(tokenizer))  # has no think block
    rows, skipped = token_pairs(read(tmp_path, good, alike, long, long), plain, short)
    assert len(rows) == 1
    assert skipped == {"longer than policy.max_tokens": 2, "equal in this chat format": 1}
    with pytest.raises(SftDataError, match=r"no pair can be trained: 1 are longer than policy.max_tokens \(100 tokens"):
        token_pairs(read(tmp_path, long), chat, short)


def test_think_tags_stay_text_in_formats_without_a_think_block(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "chosen": "<think>r</think>4", "rejected": "r</think>4"}
    (pair,) = read(tmp_path, row, has_thinking=False)
    assert pair.rejected.messages[1].content == "r</think>4"
    with pytest.raises(SftDataError, match="row 1: rejected"):
        read(tmp_path, row)


def test_pairs_come_from_the_sources_of_the_supervised_stage(tmp_path: Path, chat: Chat) -> None:
    from datasets import Dataset

    row = {"prompt": [ASK], "chosen": [said("4", reasoning="r")], "rejected": [said("5", reasoning=None)]}
    line = json.dumps(row)
    (tmp_path / "pairs.json").write_text(f"[{line}]")
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    Dataset.from_list([row]).to_parquet(tmp_path / "pairs.parquet")
    Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
    sources = [tmp_path / name for name in ("pairs.json", "pairs.jsonl.gz", "pairs.parquet", "saved")]
    pairs = [pair for data in sources for pair in read_pairs(DpoConfig(data=data), "dpo", has_thinking=True)]
    assert len(pairs) == 4 and len(set(token_pairs(pairs, chat, CONFIG)[0])) == 1
    for section in (DpoConfig, RewardModelConfig):
        with pytest.raises(ValidationError, match="an empty path"):
            section.model_validate({"data": ""})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SftDataError, match="holds no pairs: write one a line, such as"):
        read_pairs(DpoConfig(data=tmp_path / "empty.jsonl"), "dpo", has_thinking=True)


def test_all_pairs_of_a_prompt_are_held_out_together(tmp_path: Path, chat: Chat) -> None:
    rows = [{"prompt": f"{n} + 1?", "chosen": str(n + 1), "rejected": wrong} for n in range(20) for wrong in "ab"]
    pairs, _ = token_pairs(read(tmp_path, *rows), chat, CONFIG)
    trained, heldout = split_rows(pairs, 0.2, 0, "dpo", "prompts")
    assert (len(trained), len(heldout)) == (32, 8)
    assert not {row.heldout_keys for row in trained} & {row.heldout_keys for row in heldout}
    ask = {"role": "user", "content": "0 + 1?"}
    alike = [
        {"prompt": "0 + 1?", "chosen": [said("1", reasoning="r")], "rejected": "a"},
        {"chosen": [ask, said("1"), ASK, said("4")], "rejected": [ask, said("1"), ASK, said("5")]},
    ]
    others = [{**rows[0], "tools": [TOOL]}, {"prompt": "0 + 1? ", "chosen": "1", "rejected": "a"}]
    found = [row.heldout_keys for row in token_pairs(read(tmp_path, rows[0], *alike, *others), chat, CONFIG)[0]]
    assert found[0] == found[1] == found[2] and len(set(found)) == 3
    with pytest.raises(SftDataError, match=r"dpo\.heldout_share \(0.1\) of 1 distinct prompts leaves none"):
        split_rows(pairs[:2], 0.1, 0, "dpo", "prompts")


def test_micro_batches_hold_as_many_padded_tokens_as_the_learner_allows(tmp_path: Path, chat: Chat) -> None:
    rows, _ = token_pairs(read(tmp_path, {"prompt": "2 + 2?", "chosen": "4", "rejected": "5" * 30}), chat, CONFIG)
    (row,) = rows
    assert isinstance(row, PairRow) and len(row) == 2 * len(row.rejected) > len(row.chosen) + len(row.rejected)
    (step,) = training_order(
        rows * 3 + [PairRow(row.chosen, row.chosen, ())], 1, 4, 0, tokens_per_micro_batch=2 * len(row), is_padded=True
    )
    assert sorted(place for cut in step for place in cut) == [0, 1, 2, 3] and list(map(len, step)) == [2, 2]


@pytest.mark.parametrize("name", ["dpo", "reward_model", "sft"])
def test_other_rows_or_another_policy_under_a_stopped_stage_are_told(tmp_path: Path, chat: Chat, name: str) -> None:
    pairs = read(tmp_path, *({"prompt": "2 + 2?", "chosen": "4", "rejected": wrong} for wrong in "56"))
    rows = flat(token_pairs(pairs, chat, CONFIG)[0])
    policy = tmp_path / "policy"
    policy.mkdir()
    for file in ("model.safetensors", "config.json"):
        (policy / file).write_text("{}")
    config = make_config(policy={"path": policy}, **{name: {"data": tmp_path / "pairs.jsonl"}})
    folder = tmp_path / f"{name}.partial"

    def prepared(rows: list[Row]) -> Path | None:
        return prepare(folder, rows, config, name, policy)

    assert prepared(rows) is None
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3/trainer_state.json").touch()
    assert prepared(rows) == folder / "checkpoint-3"
    told = r"after step 3, of this configuration but other "
    with pytest.raises(SftDataError, match=told + r"rows: .*pairs.jsonl changed"):
        prepared(rows[:1])
    for file in ("model.safetensors", "config.json"):  # such as a stage that wrote its result there meanwhile
        (policy / file).write_text("{ }")
        with pytest.raises(SftDataError, match=told + r"weights or configuration of the policy: .*policy changed"):
            prepared(rows)
        (policy / file).write_text("{}")
    assert prepared(rows) == folder / "checkpoint-3"


def test_what_a_stage_on_pairs_cannot_train_is_told_at_once(tmp_path: Path) -> None:
    def problems(**sections: Any) -> list[str]:
        config = make_config(**{"policy": {"path": tmp_path}, "dpo": {"data": tmp_path / "none.jsonl"}, **sections})
        return [f"{problem.key}: {problem.wrong}" for problem in pair_stage_problems(config, "dpo")]

    (tmp_path / "config.json").write_text("{}")
    assert problems() == [f"dpo.data: there is no file or folder {tmp_path / 'none.jsonl'}"]
    assert problems(dpo={"data": "user/name"}) == []
    assert problems(dpo={"data": tmp_path}, learner={"num_ranks": 2}) == [
        "learner.num_ranks: the stage of dpo trains as one process"
    ]
    built = problems(dpo={"data": tmp_path}, policy={"build": {}}, sft={})
    assert built == ["policy.build: a random policy has nothing to prefer"]


def test_reinforcement_learning_does_not_leave_a_stage_out_in_silence() -> None:
    from rl.checks import CHECKS
    from rl.config.errors import ConfigError

    CHECKS["other stages"](make_config())
    with pytest.raises(
        ConfigError, match=r"reward_model: .*does not run this stage\n.*python -m sft reward-model FILE"
    ):
        CHECKS["other stages"](make_config(reward_model={"data": "x"}))


@pytest.mark.parametrize("section", ["dpo", "reward_model"])
def test_quantised_weights_go_only_with_what_can_be_served(section: str) -> None:
    keys = {"data": "x"} | ({"adapter": {}} if section == "dpo" else {})
    with pytest.raises(ValueError, match=f"{section}.* does not go with precision nvfp4"):
        make_config(precision="nvfp4", **{section: keys})
    make_config(precision="nvfp4", dpo={"data": "x"})
