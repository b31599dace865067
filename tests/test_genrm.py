"""A policy that learns to judge: the reward by hand, pairs that are swapped, rows of a file, hostile verdicts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.chat.genrm import GenRM, draw_pair
from envs.json_lines import JsonLineError
from envs.messages import Reply
from envs.scored import RowError
from envs.text_env import EnvironmentOptionError
from rewards.judge import Comparison, read_comparison
from rewards.preference import preference_reward, swapped
from tests.hostile_replies import LONG_TEXTS, SHORT_TEXTS
from tests.test_judge import replies_in


def verdict(first: Any, second: Any, ranking: Any) -> str:
    return json.dumps({"score_1": first, "score_2": second, "ranking": ranking})


def test_the_reward_by_hand() -> None:
    # |4 - 5| + |2 - 4| = 3 and |3 - 2| = 1
    assert preference_reward(verdict(4, 2, 3), 2, (5, 4)) == {"format": 0.0, "helpfulness": -3.0, "ranking": -1.0}
    assert preference_reward(verdict(4, 2, 3), 2) == {"format": 0.0, "helpfulness": 0.0, "ranking": -1.0}
    assert sum(preference_reward(verdict(1, 5, 6), 1, (5, 1)).values()) == -13.0
    assert sum(preference_reward(f"Well.\n{verdict(5, 1, 1)}", 1, (5, 1)).values()) == 0.0
    assert preference_reward("The first.", 1, (5, 1)) == {"format": -10.0, "helpfulness": 0.0, "ranking": 0.0}


THREE = verdict(3, 3, 3)
WRONG_FORMS = (
    *(
        verdict(0, 3, 3),
        verdict(3, 6, 3),
        verdict(3, 3, 7),
        verdict(3.0, 3, 3),
        verdict(True, 3, 3),
        verdict("3", 3, 3),
    ),
    *(verdict(None, 3, 3), verdict(float("nan"), 3, 3), verdict([3], 3, 3), verdict(10**400, 3, 3)),
    *("[1, 2, 3]", "{}", f"{THREE} ok", f"</think>{THREE}", f"{THREE}\n</think>"),
    *(THREE.replace("{", '{"score_1": 4, '), "[" * 100_000, '{"a":' * 5000, "9" * 50_000),
    *(*SHORT_TEXTS, *LONG_TEXTS),
)


def test_any_other_form_costs_ten() -> None:
    for text in WRONG_FORMS:
        env = GenRM()
        env.reset(seed=0)
        _, reward, terminated, _, info = env.step(Reply(text))
        assert (reward, terminated, info["reward_parts"]["format"]) == (-10.0, True, -10.0)


def test_a_swapped_verdict_is_of_the_same_replies_in_the_other_order() -> None:
    assert swapped(Comparison(5, 2, 1)) == Comparison(2, 5, 6)
    assert all(swapped(swapped(one)) == one for one in (Comparison(1, 2, 3), Comparison(4, 4, 4)))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_drawn_pair_has_a_better_reply_and_gold_says_so(level: int) -> None:
    shown_first = []
    for seed in range(60):
        pair = draw_pair(np.random.default_rng(seed), level)
        assert pair.scores is not None
        facts = pair.task.split(". ", 1)[1].split(". ")
        num_right = [sum(fact.rstrip(".") in reply for fact in facts) for reply in pair.replies]
        assert num_right == [score - 1 for score in pair.scores]
        assert pair.scores[0] - pair.scores[1] >= (2 if level == 1 else 1)
        env = GenRM()
        messages, _ = env.reset(seed=seed, options={"level": level})
        _, first, _ = replies_in(messages[0].content)
        told = read_comparison(env.gold_reply().text)
        assert env.step(env.gold_reply())[1] == 0.0
        assert (told.first > told.second) == (told.ranking <= 3) == (first == env._pair.replies[0])
        shown_first.append(told.ranking <= 3)
    assert 15 < sum(shown_first) < 45


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"prompt": "Why is the sky blue?", "reply_1": "Air scatters blue light.", "reply_2": "Because.", "ranking": 1}


def test_rows_of_a_file_are_played_in_both_orders_and_missing_scores_do_not_count(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "A joke."},
    ]
    rows = [{**ROW, "split": "train"}, {**ROW, "prompt": talk, "split": "heldout", "score_1": 4, "score_2": 2}]
    options = {"rows": str(write(tmp_path / "rows.jsonl", *rows))}
    orders = set()
    for seed in range(20):
        env = GenRM()
        messages, _ = env.reset(seed=seed, options=options)
        task, first, _ = replies_in(messages[0].content)
        orders.add(first)
        assert task == ROW["prompt"]
        ranking = 1 if first == ROW["reply_1"] else 6
        assert env.step(Reply(verdict(1, 1, ranking)))[1] == env.step(env.gold_reply())[1] == 0.0
        assert env.step(Reply(verdict(1, 1, 7 - ranking)))[1] == -5.0
    assert orders == {ROW["reply_1"], ROW["reply_2"]}
    env = GenRM()
    messages, _ = env.reset(seed=0, options={**options, "split": "heldout"})
    assert replies_in(messages[0].content)[0] == "user: Hi\n\nassistant: Yes?\n\nuser: A joke."
    assert env.step(env.gold_reply())[1] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranking": 0}, r"rows\.jsonl, line 1: ranking must be a whole number from 1"),
        ({"ranking": 3.5}, "ranking must be"),
        ({"reply_1": 7}, "reply_1 must be text"),
        ({"score_1": 3}, "score_1 and score_2 must be whole numbers from 1 to 5, or both missing"),
        ({"score_1": 3, "score_2": True}, "score_1 and score_2"),
        ({"prompt": [{"role": "user"}]}, "prompt must be text or a list of messages"),
        ({"prompt": ""}, r"rows\.jsonl, line 1: prompt must be text or a list"),
        ({"split": "test"}, r"rows\.jsonl, line 1: split must be 'train' or 'heldout', got 'test'"),
        ({"split": []}, r"rows\.jsonl, line 1: split must be 'train' or 'heldout'"),
    ],
)
def test_a_wrong_row_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=message):
        GenRM().reset(seed=0, options={"rows": str(write(tmp_path / "rows.jsonl", {**ROW, **change}))})


def test_null_counts_as_missing(tmp_path: Path) -> None:
    def openings(name: str, **more: Any) -> list[Any]:
        rows = ({**ROW, "prompt": f"{n}?", **more} for n in range(20))
        path = str(write(tmp_path / name, *rows))
        return [GenRM().reset(seed=seed, options={"rows": path}) for seed in range(5)]

    found = openings("null.jsonl", split=None, key=None, score_1=None)
    assert found == openings("bare.jsonl") and found[0][1]["key"] != "None"


def test_a_missing_file_and_a_wrong_level_are_named(tmp_path: Path) -> None:
    with pytest.raises(JsonLineError, match=r"none\.jsonl cannot be read"):
        GenRM().reset(seed=0, options={"rows": str(tmp_path / "none.jsonl")})
    with pytest.raises(EnvironmentOptionError, match="level must be one of 1, 2, 3"):
        GenRM().reset(seed=0, options={"level": 9})
