"""Can the policy call the right function with the right arguments? The Berkeley leaderboard's single-turn questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from envs.json_lines import read_rows
from envs.messages import Reply, ToolCall, ToolSpec
from envs.package_data import package_file
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError
from rewards.calls import judge_calls

SOURCES = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple", "irrelevance")
TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""The leaderboard's types that have another name in JSON Schema."""


def load_rows(source: str | Sequence[str] = ("simple_python", "multiple", "parallel")) -> list[Row]:
    """Questions with their functions and the right calls; a few that no call can answer are left out."""
    sources = [source] if isinstance(source, str) else list(source)
    if not sources or not set(sources) <= set(SOURCES):
        raise EnvironmentOptionError(f"source must be one or several of {', '.join(SOURCES)}, got {source!r}")
    return [row for name in sources for row in read_source(name)]


def read_source(name: str) -> list[Row]:
    questions = lines_of(f"BFCL_v4_{name}.json")
    answers: dict[str, Any] = {}
    if name != "irrelevance":
        answers = {line["id"]: line["ground_truth"] for line in lines_of(f"possible_answer/BFCL_v4_{name}.json")}
    rows = [make_row(question, answers.get(question["id"], [])) for question in questions if question["function"]]
    return [row for row in rows if judge_calls(as_pairs(row["gold_calls"]), row["wanted"]) == "right"]


def as_pairs(calls: Sequence[ToolCall]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(call.name, call.arguments) for call in calls]


def lines_of(path: str) -> list[dict[str, Any]]:
    return read_rows(package_file("bfcl_eval", f"data/{path}", "bfcl-eval==2026.3.23"), "id")


def make_row(question: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Row:
    wanted = [(name, allowed) for answer in answers for name, allowed in answer.items()]
    return {
        "prompt": question["question"][0],
        "tools": [
            ToolSpec(function["name"], function["description"], json_schema(function["parameters"]))
            for function in question["function"]
        ],
        "gold": "" if wanted else "None of the functions can do this.",
        "gold_calls": [ToolCall(name, gold_arguments(allowed)) for name, allowed in wanted],
        "wanted": wanted,
        "key": question["id"],
    }


def json_schema(schema: Any) -> Any:
    """The leaderboard's schema converted to JSON Schema."""
    if isinstance(schema, list):
        return [json_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: json_schema(value) for key, value in schema.items()}
    kind = schema.get("type")
    if kind == "any":
        del converted["type"]
    elif isinstance(kind, str):
        converted["type"] = TYPES.get(kind, kind)
    return converted


def gold_arguments(allowed: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The first allowed value of each parameter that may not be left out."""
    return {name: first_value(values[0]) for name, values in allowed.items() if values and "" not in values}


def first_value(value: Any) -> Any:
    """The first allowed value; in an allowed dict, each list is again a list of allowed values."""
    if isinstance(value, dict):
        lists = {key: values if isinstance(values, list) else [values] for key, values in value.items()}
        return {key: first_value(values[0]) for key, values in lists.items() if values and "" not in values}
    return [first_value(item) for item in value] if isinstance(value, list) else value


@scored(rows=load_rows)
def function_calls(reply: Reply, row: Row) -> dict[str, float]:
    """Answer a request with the right function calls, or with text if no function fits. Needs `bfcl-eval`.

    Name and arguments are compared as the Berkeley function-calling leaderboard v4 does (`rewards.calls`; Apache-2.0).
    It is an evaluation set: training on it invalidates it as a benchmark.

    Options: `source` is one or several of simple_python, multiple, parallel, parallel_multiple, live_simple,
    live_multiple, irrelevance; `row` plays one question.
    Reward parts: `right` 1 if all calls are right; otherwise a part of 0 is named after the error, such as
    `wrong_value`.
    """
    category = judge_calls(as_pairs(reply.tool_calls), row["wanted"])
    if category == "right" and not reply.tool_calls and not reply.text.strip():
        category = "no_call"
    return {"right": 1.0} if category == "right" else {"right": 0.0, category: 0.0}
