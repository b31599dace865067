"""Can the policy solve a competition problem with a free-form answer? CHAMP's problems, judged by value."""

import json
import re

from envs.messages import Reply
from envs.package_data import package_file
from envs.scored import Row, scored
from rewards.math_answer import answer_correct

WORDS = re.compile(r"[A-Za-z]{2,}|[±=,\[…]|\.\.\.|C\(|f\(")
"""Signs that an answer is not one expression: words, lists, equations, binomials in words."""
HINT = "Give the answer as \\boxed{...}."


def load_rows(category: str = "") -> list[Row]:
    """The problems whose answer is one number or expression, with their worked solutions."""
    file = package_file("champ_dataset", "dataset_files/v0.json", "champ-dataset==1.0.0")
    problems = json.loads(file.read_text())["problems"].values()
    return [
        {
            "prompt": f"{problem['_text']}\n{HINT}",
            "gold": f"{worked(problem)}\n\\boxed{{{latex(problem['_answer'])}}}",
            "answer": latex(problem["_answer"]),
            "key": problem["_text"],
        }
        for problem in problems
        if not WORDS.search(problem["_answer"]) and category in ("", problem["category"])
    ]


def worked(problem: dict) -> str:
    return "\n".join(step["_text"] for step in problem["solution"]["steps"])


def latex(answer: str) -> str:
    """The answer as LaTeX: exponents in braces, `-` as the minus sign."""
    text = answer.replace("\u2212", "-").replace("*", " \\cdot ")
    return re.sub(r"\^(\([^()]*\)|\d+|\w)", lambda power: f"^{{{power[1]}}}", text)


@scored(rows=load_rows)
def competition(reply: Reply, row: Row) -> dict[str, float]:
    """Solve a competition problem; the answer is a number or an expression. Needs the package `champ-dataset`.

    The answer is read from the last `####` line, else from the last `\\boxed{}`, else it is the last value
    (`rewards.final_answer`); `rewards.math_answer` decides whether it equals the expected one. About 110 problems in
    combinatorics, inequalities, number theory, polynomials and sequences, with worked solutions (CHAMP, Mao et al.
    2024, arXiv:2401.06961; MIT licence).

    Options: `category` keeps one of Combinatorics, Inequality, Number-Theory, Polynomial, Sequence; `row` plays one.
    Reward parts: `correct` 1 if the answer is right.
    """
    return {"correct": answer_correct(reply.text, row["answer"])}
