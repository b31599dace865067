"""How is a judge asked? Through any OpenAI-compatible endpoint, with limited concurrency and retries.

The deadline of a question covers all of its attempts and starts when it is admitted. Waiting for a place among the
concurrent questions counts neither towards it nor towards the environment's deadline (`rewards.queue_clock`).
"""

import asyncio
import os
import weakref
from dataclasses import dataclass
from typing import Any

import httpx

from envs.chat_completions import openai_messages
from envs.messages import Message
from envs.text_env import EnvironmentOptionError
from rewards.judge import JudgeError
from rewards.queue_clock import in_queue

URL, MODEL, KEY = "POLYGYM_JUDGE_URL", "POLYGYM_JUDGE_MODEL", "POLYGYM_JUDGE_KEY"
NUM_ATTEMPTS = 3
BACKOFF_S = 0.5
TIMEOUT_S = 18.0
"""Less than the default of rollout.step_timeout_s, 20 s, so that the error names a judge that does not answer."""
AT_ONCE = 32
CONNECT_TIMEOUT_S = 5.0
MAX_CACHED = 10_000
MAX_TOLD = 300
"""Characters of what a judge that refuses says, in the error."""
PASSING = (408, 425, 429)
"""Codes of refusals that may be over at the next attempt."""


Question = str | tuple[Message, ...]
"""A text for one message of a user, or a conversation, for a judge whose own chat template asks the question."""


@dataclass(frozen=True, slots=True)
class Judge:
    """An OpenAI-compatible base URL, its model, the deadline of a question, and concurrent questions per process."""

    url: str
    model: str
    timeout_s: float
    at_once: int


_cache: dict[tuple[Judge, Question], str] = {}
_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Judge, asyncio.Semaphore]] = (
    weakref.WeakKeyDictionary()
)


def find_judge(url: str, model: str, timeout_s: float, at_once: int) -> Judge:
    """The judge of these options; URL and model may come from `os.environ`. Raises `EnvironmentOptionError`."""
    url, model = url or os.environ.get(URL, ""), model or os.environ.get(MODEL, "")
    if not url or not model:
        raise EnvironmentOptionError(
            "a judge is needed: give the options url (an OpenAI-compatible base URL, ending in /v1) and model, or set"
            f" {URL} and {MODEL} ({KEY} for a key)"
        )
    if timeout_s <= 0 or at_once < 1:
        raise EnvironmentOptionError(f"timeout_s must be above 0 and at_once at least 1, got {timeout_s} and {at_once}")
    return Judge(url.rstrip("/"), model, timeout_s, at_once)


async def ask_judge(question: Question, judge: Judge) -> str:
    """The judge's answer at temperature 0, cached for equal questions.

    Raises `JudgeError` after three failures, or if there is no answer within the judge's `timeout_s`.
    """
    if (cached := _cache.get((judge, question))) is not None:
        return cached
    slots = _slots.setdefault(asyncio.get_running_loop(), {}).setdefault(judge, asyncio.Semaphore(judge.at_once))
    with in_queue():
        await slots.acquire()
    try:
        answer = await _ask(question, judge)
    finally:
        slots.release()
    if len(_cache) >= MAX_CACHED:
        _cache.pop(next(iter(_cache)))
    _cache[judge, question] = answer
    return answer


async def _ask(question: Question, judge: Judge) -> str:
    failures: list[str] = []
    try:
        async with asyncio.timeout(judge.timeout_s):
            for attempt in range(NUM_ATTEMPTS):
                await asyncio.sleep(BACKOFF_S * (2**attempt - 1))
                try:
                    return await _post(question, judge)
                except httpx.HTTPStatusError as error:
                    code = error.response.status_code
                    failures.append(f"HTTP {code}: {error.response.text[:MAX_TOLD]}")
                    if code < 500 and code not in PASSING:  # the same question has the same answer again
                        break
                except (httpx.HTTPError, ValueError) as error:
                    failures.append(f"{type(error).__name__}: {error}")
    except TimeoutError:
        failed = f" after {failures[-1]}" if failures else ""
        raise JudgeError(f"the judge at {judge.url} gave no answer within {judge.timeout_s} s{failed}") from None
    raise JudgeError(f"the judge at {judge.url} gave no answer in {len(failures)} attempts: {failures[-1]}")


async def _post(question: Question, judge: Judge) -> str:
    messages = (Message("user", question),) if isinstance(question, str) else question
    body = {"model": judge.model, "temperature": 0, "messages": openai_messages(messages)}
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    timeout = httpx.Timeout(judge.timeout_s, connect=CONNECT_TIMEOUT_S)
    async with httpx.AsyncClient(timeout=timeout) as client:
        response = await client.post(f"{judge.url}/chat/completions", json=body, headers=headers)
        response.raise_for_status()
        return _content(response.json())


def _content(answer: Any) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise ValueError(f"not a chat completion: {answer!r:.200}") from None
    if not isinstance(content, str):
        raise ValueError(f"the content is not text: {content!r:.200}")
    return content
