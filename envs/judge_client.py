"""How is a judge asked? Through any OpenAI-compatible endpoint, so many questions at a time, with retries."""

import asyncio
import os
import weakref
from dataclasses import dataclass
from typing import Any

import httpx

from envs.text_env import EnvironmentOptionError
from rewards.judge import JudgeError

URL, MODEL, KEY = "POLYGYM_JUDGE_URL", "POLYGYM_JUDGE_MODEL", "POLYGYM_JUDGE_KEY"
NUM_ATTEMPTS = 3
BACKOFF_S = 0.5
MAX_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class Judge:
    """An OpenAI-compatible base URL, its model, the deadline of an answer, and questions of one process at once."""

    url: str
    model: str
    timeout_s: float
    at_once: int


_cache: dict[tuple[Judge, str], str] = {}
_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Judge, asyncio.Semaphore]] = (
    weakref.WeakKeyDictionary()
)


def find_judge(url: str, model: str, timeout_s: float, at_once: int) -> Judge:
    """The judge of these options; URL and model may come from the environment. Raises `EnvironmentOptionError`."""
    url, model = url or os.environ.get(URL, ""), model or os.environ.get(MODEL, "")
    if not url or not model:
        raise EnvironmentOptionError(
            "a judge is needed: give the options url (an OpenAI-compatible base URL, ending in /v1) and model, or set"
            f" {URL} and {MODEL} ({KEY} for a key)"
        )
    return Judge(url.rstrip("/"), model, timeout_s, at_once)


async def ask_judge(question: str, judge: Judge) -> str:
    """The judge's answer at temperature 0, kept for equal questions. Raises `JudgeError` after three failures."""
    if (cached := _cache.get((judge, question))) is not None:
        return cached
    slots = _slots.setdefault(asyncio.get_running_loop(), {}).setdefault(judge, asyncio.Semaphore(judge.at_once))
    async with slots:
        answer = await _ask(question, judge)
    if len(_cache) >= MAX_CACHED:
        _cache.pop(next(iter(_cache)))
    _cache[judge, question] = answer
    return answer


async def _ask(question: str, judge: Judge) -> str:
    body = {"model": judge.model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    failure = ""
    for attempt in range(NUM_ATTEMPTS):
        await asyncio.sleep(BACKOFF_S * (2**attempt - 1))
        try:
            async with httpx.AsyncClient(timeout=judge.timeout_s) as client:
                response = await client.post(f"{judge.url}/chat/completions", json=body, headers=headers)
                response.raise_for_status()
                return _content(response.json())
        except (httpx.HTTPError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
    raise JudgeError(f"the judge at {judge.url} gave no answer in {NUM_ATTEMPTS} attempts: {failure}")


def _content(answer: Any) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise ValueError(f"no chat completion: {answer!r:.200}") from None
    if not isinstance(content, str):
        raise ValueError(f"no text: {content!r:.200}")
    return content
