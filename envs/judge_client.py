"""How is a judge asked? Through any OpenAI-compatible endpoint, so many questions at a time, with retries."""

import asyncio
import os
import weakref
from typing import Any

import httpx

from envs.text_env import EnvironmentOptionError
from rewards.judge import JudgeError

URL, MODEL, KEY = "POLYGYM_JUDGE_URL", "POLYGYM_JUDGE_MODEL", "POLYGYM_JUDGE_KEY"
NUM_ATTEMPTS = 3
DEADLINE_S = 60.0
BACKOFF_S = 0.5
MAX_AT_ONCE = 32
"""Questions of one process at the same time."""
MAX_CACHED = 10_000
_cache: dict[tuple[str, str, str], str] = {}
_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def judge_endpoint(url: str, model: str) -> tuple[str, str]:
    """Base URL and model from options, else from the environment. Raises `EnvironmentOptionError`."""
    url, model = url or os.environ.get(URL, ""), model or os.environ.get(MODEL, "")
    if not url or not model:
        raise EnvironmentOptionError(
            "a judge is needed: give the options url (an OpenAI-compatible base URL, ending in /v1) and model, or set"
            f" {URL} and {MODEL} ({KEY} for a key)"
        )
    return url, model


async def ask_judge(question: str, url: str, model: str) -> str:
    """The judge's answer at temperature 0, kept for equal questions. Raises `JudgeError` after three failures."""
    if (cached := _cache.get((url, model, question))) is not None:
        return cached
    slots = _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_AT_ONCE))
    async with slots:
        answer = await _ask(question, url, model)
    if len(_cache) >= MAX_CACHED:
        _cache.pop(next(iter(_cache)))
    _cache[url, model, question] = answer
    return answer


async def _ask(question: str, url: str, model: str) -> str:
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    failure = ""
    for attempt in range(NUM_ATTEMPTS):
        await asyncio.sleep(BACKOFF_S * (2**attempt - 1))
        try:
            async with httpx.AsyncClient(timeout=DEADLINE_S) as client:
                response = await client.post(f"{url.rstrip('/')}/chat/completions", json=body, headers=headers)
                response.raise_for_status()
                return _content(response.json())
        except (httpx.HTTPError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
    raise JudgeError(f"the judge at {url} gave no answer in {NUM_ATTEMPTS} attempts: {failure}")


def _content(answer: Any) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise ValueError(f"no chat completion: {answer!r:.200}") from None
    if not isinstance(content, str):
        raise ValueError(f"no text: {content!r:.200}")
    return content
