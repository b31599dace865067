"""Environments over installed data and over the sandbox: their gold passes, and what is wrong fails."""

from pathlib import Path
from typing import Any

import pytest

from envs import package_data
from envs.code.human_eval import human_eval, load_rows
from envs.code.programs import programs
from envs.code.repair import Repair
from envs.loading import load_data
from envs.math.competition import competition, latex
from envs.math.gsm_templates import read_templates
from envs.math.multiple_choice import multiple_choice
from envs.messages import Message, Reply, ToolCall
from envs.registry import factory_of, make
from envs.sandbox import run_tests
from envs.text_env import EnvironmentOptionError
from envs.tool_class import ToolClassEnv
from envs.tool_use.function_calls import function_calls, json_schema, read_source
from envs.tool_use.python_tool import Python
from tests.makers import scored_env


def wrong_solution(row: Any) -> str:
    """The signature with a body that returns nothing of use."""
    return f"{row['prompt'].partition('```python')[2].removesuffix('```')}    return object\n"


@pytest.mark.slow
def test_all_164_gold_solutions_of_human_eval_pass_and_164_wrong_ones_fail() -> None:
    rows = load_rows()
    assert len(rows) == 164
    env = scored_env(human_eval)
    for row in rows:
        env.row = row
        assert env.step(env.gold_reply())[1] == 1.0, row["key"]
        assert env.step(Reply(wrong_solution(row)))[1] == 0.0, row["key"]


def test_human_evals_tests_are_out_of_the_candidates_reach() -> None:
    row = load_rows()[0]
    cheat = (
        f"import gc\ndef {row['name']}(*a):\n"
        "    return [o for o in gc.get_objects() if isinstance(o, str) and 'METADATA' in o]"
    )
    result = run_tests(cheat, row["name"], row["tests"])
    assert result.status == "error"


@pytest.mark.slow
def test_competition_problems_are_judged_as_mathematics() -> None:
    env = scored_env(competition)
    seen = {}
    for row in range(200):
        try:
            env.reset(seed=0, options={"row": row})
        except ValueError:
            break
        seen[env.row["answer"]] = env.row
        assert env.step(env.gold_reply())[1] == 1.0, env.row["key"]
        assert env.step(Reply(f"\\boxed{{{env.row['answer']}+1}}"))[1] == 0.0, env.row["key"]
    assert len(seen) > 40
    env.row = {"answer": "2^{n}"}
    assert env.step(Reply("so it is \\boxed{2 \\cdot 2^{n-1}}"))[1] == 1.0
    assert env.step(Reply("\\boxed{2^{n-1}}"))[1] == 0.0


def test_answers_become_latex() -> None:
    assert latex("2^(n-1)*x^3\u22121") == "2^{(n-1)} \\cdot x^{3}-1"


def test_a_missing_data_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        package_data.DataPackageError, match=r"the package nowhere is not installed; try: .* nowhere==1"
    ):
        package_data.package_file("nowhere", "x", "nowhere==1")
    with pytest.raises(package_data.DataPackageError, match=r"envs has no x\.json"):
        package_data.package_file("envs", "x.json", "envs==1")


@pytest.mark.parametrize("options", [{}, {"source": "words", "num_options": 10}, {"level": 4, "num_options": 2}])
def test_the_options_differ_and_one_is_right(options: dict[str, Any]) -> None:
    env = scored_env(multiple_choice)
    letters = set()
    for seed in range(40):
        env.reset(seed=seed, options=options)
        lines = env.row["prompt"].splitlines()[1:-1]
        assert len({line.partition(". ")[2] for line in lines}) == options.get("num_options", 4)
        letters.add(env.row["letter"])
        rewards = [env.step(Reply(f"Answer: {letter}"))[1] for letter in env.row["letters"]]
        assert sorted(rewards)[-2:] == [0.0, 1.0]
    assert letters == set(env.row["letters"])


@pytest.mark.slow
def test_a_program_is_paid_for_each_right_output() -> None:
    env = scored_env(programs)
    env.reset(seed=0)
    env.row = {"cases": [("1 2\n", "3"), ("5\n", "5"), ("\n", "0")]}
    assert env.step(Reply("print(sum(map(int, input().split())))"))[1] == 1.0
    assert env.step(Reply("```python\nprint(max(map(int, input().split())))\n```"))[1] == pytest.approx(0.1)
    assert env.step(Reply("print(3)\nwhile True: pass"))[1] == 0.0


def test_repair_tells_a_failing_case_and_pays_less_for_each_further_try() -> None:
    env = Repair()
    env.reset(seed=1)
    messages, reward, terminated, *_ = env.step(Reply("def f(x): return 12345"))
    assert (reward, terminated) == (0.0, False)
    assert messages[0].content.startswith("f(-7) gave 12345, expected ")
    messages, *_ = env.step(Reply("def f(x) return"))
    assert messages[0].content.startswith("It failed: error: SyntaxError")
    _, reward, terminated, _, info = env.step(env.gold_reply())
    assert (terminated, info["reward_parts"]) == (True, {"passed": 1.0, "tries": pytest.approx(-0.2)})
    assert reward == pytest.approx(0.8)


def test_code_that_fits_the_shown_cases_only_fails_the_hidden_ones() -> None:
    env = Repair()
    env.reset(seed=1)
    shown = {argument: env._description.values(argument)[-1] for argument in env._level.inputs[:3]}
    assert env.step(Reply(f"def f(x): return {shown}.get(x, 0)"))[1:3] == (0.0, True)


def test_the_python_tool_keeps_its_names() -> None:
    env = ToolClassEnv(Python)
    env.reset(seed=0)

    def run(code: str) -> tuple[Message, ...]:
        return env.step(Reply("", "", (ToolCall("run", {"code": code}),)))[0]

    assert run("x = 6")[0].content == ""
    assert run("print(x * 7)")[0].content == "42\n"
    assert "ZeroDivisionError" in run("1 / 0")[0].content
    assert run("print(x)")[0].content == "6\n"
    env.close()
    env.close()


@pytest.mark.slow
def test_every_data_package_is_installed_and_asks_something() -> None:
    for env_id in ("math/Competition-v0", "code/HumanEval-v0", "math/GradeSchool-v0"):
        messages, _ = make(env_id).reset(seed=0)
        assert messages[-1].role == "user" and messages[-1].content


@pytest.mark.slow
@pytest.mark.parametrize(
    "env_id", ["math/Competition-v0", "code/HumanEval-v0", "math/GradeSchool-v0", "tools/FunctionCalls-v0"]
)
def test_no_file_is_read_in_a_reset(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_templates.cache_clear()
    factory, _ = factory_of(env_id)
    if rows := getattr(factory, "_rows", None):
        rows._load.cache_clear()
    load_data(env_id, {})
    for method in ("read_text", "read_bytes", "open"):
        monkeypatch.setattr(Path, method, lambda path, *given: pytest.fail(f"{path} is read"))
    for split in ("train", "heldout"):
        make(env_id).reset(seed=0, options={"split": split})


def test_what_cannot_be_loaded_is_left_to_reset() -> None:
    load_data("math/GradeSchool-v0", {"source": "nowhere"})
    load_data("math/Nothing-v0", {})
    with pytest.raises(EnvironmentOptionError, match="source must be one or a list of"):
        make("math/GradeSchool-v0").reset(seed=0, options={"source": "nowhere"})


@pytest.mark.parametrize(
    ("source", "num_rows"),
    [
        ("simple_python", 400),
        ("multiple", 200),
        ("parallel", 200),
        ("parallel_multiple", 200),
        ("irrelevance", 240),
    ],
)
def test_the_leaderboards_questions_are_all_there_and_their_first_answers_are_right(source: str, num_rows: int) -> None:
    env = scored_env(function_calls)
    rows = read_source(source)
    assert len(rows) == num_rows
    for row in rows:
        env.row = row
        assert env.step(env.gold_reply())[1] == 1.0, row["key"]


def test_a_wrong_call_is_named_and_no_call_is_right_only_where_no_function_fits() -> None:
    env = scored_env(function_calls)
    env.row = {"wanted": [("f", {"x": [1]})]}
    assert env.step(Reply("", "", (ToolCall("f", {"x": 2}),)))[4]["reward_parts"] == {"right": 0.0, "wrong_value": 0.0}
    env.row = {"wanted": []}
    assert env.step(Reply("No function fits."))[1] == 1.0
    assert env.step(Reply(" "))[1] == 0.0
    assert env.step(Reply("", "", (ToolCall("f", {}),)))[4]["reward_parts"] == {"right": 0.0, "unexpected_call": 0.0}


def test_the_tools_of_a_row_are_the_environments_with_json_schema() -> None:
    env = function_calls()
    env.reset(seed=0)
    assert env.tools
    schema = json_schema({"type": "dict", "properties": {"a": {"type": "array", "items": {"type": "float"}}}})
    assert schema == {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}}
