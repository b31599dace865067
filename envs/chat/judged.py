"""Can the policy write what people like? An LLM judges by a rubric, or compares the replies of a group."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from envs.judge_client import AT_ONCE, TIMEOUT_S, ask_judge, find_judge
from envs.messages import Message, Reply
from envs.scored import Row, scored
from envs.text_env import StepResult, TextEnv, draw_in_split
from rewards.judge import (
    circular_pairs,
    circular_rewards,
    comparison_question,
    read_comparison,
    read_rubric_verdict,
    rubric_question,
    says_something,
)
from rewards.rubric import Rubric

KINDS = ("a letter", "a short story", "an explanation for a child", "a poem of four lines", "an advertisement")
SUBJECTS = (
    *("a lost umbrella", "the first snow", "how bread rises", "a lighthouse", "a late train", "a new neighbour"),
    *("growing tomatoes", "a broken clock", "the colour blue", "a quiet library", "an old bicycle", "the tide"),
)
CRITERIA = {
    "task": "It is what was asked for: the right kind of text about the right subject.",
    "clear": "It is clear and correct in its language.",
    "complete": "It is complete and does not break off.",
}
RUBRIC = Rubric({"task": 0.5, "clear": 0.25, "complete": 0.25})


def draw_request(rng: np.random.Generator) -> str:
    return f"Write {rng.choice(KINDS)} about {rng.choice(SUBJECTS)}."


def draw_row(
    rng: np.random.Generator, url: str = "", model: str = "", timeout_s: float = TIMEOUT_S, at_once: int = AT_ONCE
) -> Row:
    return {"prompt": draw_request(rng), "judge": find_judge(url, model, timeout_s, at_once)}


@scored(draw=draw_row)
async def judged(reply: Reply, row: Row) -> dict[str, float]:
    """Write a short text; a judge says which criteria of a rubric it fulfils. Needs an OpenAI-compatible endpoint.

    A reply that says nothing earns 0 without asking a judge. If a judge does not answer, or its verdict cannot be
    parsed, this is an environment error and not a reward.

    Options: `url` and `model` name the judge; the defaults are POLYGYM_JUDGE_URL and POLYGYM_JUDGE_MODEL. `timeout_s`
    is the deadline of a question with its retries (keep it below rollout.step_timeout_s); `at_once` is the number of
    concurrent questions of a worker. Waiting for a place is not counted.
    Reward parts: `task` 0.5, `clear` 0.25, `complete` 0.25.
    """
    if not says_something(reply.text):
        return RUBRIC(dict.fromkeys(CRITERIA, 0.0))
    answer = await ask_judge(rubric_question(row["prompt"], reply.text, CRITERIA), row["judge"])
    return RUBRIC(read_rubric_verdict(answer, list(CRITERIA)))


class Compared(TextEnv):
    """Write a short text; a judge compares each of the group's replies with the next, in a circle.

    Each reply is compared once as the first and once as the second; its reward is the mean of its two scores, from 0 to
    1, as in the RLHF stage of Nemotron 3 (`rewards.judge.circular_rewards`). A reply that says nothing earns 0 and is
    not compared; a reply that is left alone earns 0.5. Needs an OpenAI-compatible endpoint.

    Options: `url` and `model` name the judge; the defaults are POLYGYM_JUDGE_URL and POLYGYM_JUDGE_MODEL. `timeout_s`
    is the deadline of a question with its retries (keep it below rollout.step_timeout_s); `at_once` is the number of
    concurrent questions of a worker. Waiting for a place is not counted.
    Reward parts: `compared`, the whole reward, given after all members of the group have ended.
    """

    OPTIONS: ClassVar = {"url": "", "model": "", "timeout_s": TIMEOUT_S, "at_once": AT_ONCE}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        self._judge = find_judge(**chosen)
        self._request = draw_in_split(self.np_random, split, draw_request, str)
        return (Message("user", self._request),), {"key": self._request}

    def step(self, action: Reply) -> StepResult:
        return (), 0.0, True, False, {"reward_parts": {}}

    async def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[dict[str, float]]:  # type: ignore[override]
        texts = [conversation[-1].content for conversation in conversations]
        told = [place for place, text in enumerate(texts) if says_something(text)]
        questions = [
            comparison_question(self._request, texts[told[left]], texts[told[right]])
            for left, right in circular_pairs(len(told))
        ]
        answers = await asyncio.gather(*(ask_judge(question, self._judge) for question in questions))
        rewards = circular_rewards([read_comparison(answer) for answer in answers]) if answers else [0.5] * len(told)
        by_place = dict(zip(told, rewards, strict=True))
        return [{"compared": by_place.get(place, 0.0)} for place in range(len(texts))]
