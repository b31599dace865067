"""Where does asynchronous environment code run? On an event loop in a thread of its own, apart from the engine's.

`settle` waits for what an environment gave, for code that is not asynchronous itself: checks, supervised data, people.
"""

import asyncio
import concurrent.futures
import inspect
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class EnvLoop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="environment-loop").start()

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Start the coroutine there; the future can be waited for from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def answers(self, within_s: float) -> bool:
        """Whether the loop still turns: code that blocks it starves everything else on it."""
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        return turned.wait(within_s)


_shared: EnvLoop | None = None
_lock = threading.Lock()


def shared_loop() -> EnvLoop:
    """The process's loop for `settle`: connections that an environment opens live on one loop."""
    global _shared
    with _lock:
        _shared = _shared or EnvLoop()
        return _shared


def settle(value: Any, timeout_s: float = 120.0) -> Any:
    """The value itself, or what it comes to where it is awaitable. Raises `TimeoutError`."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return shared_loop().submit(wait()).result(timeout_s)
