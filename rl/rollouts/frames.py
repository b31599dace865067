"""How do a worker and an episode's process tell each other something? In frames: a length, then a pickled value.

Requests are from the worker, whose objects the process may unpickle. Answers come from a process that runs the code of
an environment, so the worker reads only plain data and messages from them (`read_answer`).
"""

import asyncio
import io
import math
import pickle
import struct
from typing import Any

from envs.messages import Message, Reply, ToolCall, ToolSpec

LENGTH = struct.Struct("!Q")
MAX_ANSWER_BYTES = 64 * 2**20
"""The worker holds an answer in its own memory."""
TYPES = {(kind.__module__, kind.__name__): kind for kind in (Message, Reply, ToolCall, ToolSpec)}
"""What an answer may consist of, apart from None, truth values, numbers, text, tuples, lists and dicts."""


class FrameError(RuntimeError):
    """An answer that is no frame, or contains more than plain data."""


def frame(value: object) -> bytes:
    """The value as a frame. Raises what pickling raises."""
    data = pickle.dumps(value, protocol=5)
    return LENGTH.pack(len(data)) + data


async def next_frame(reader: asyncio.StreamReader, max_bytes: float = math.inf) -> bytes:
    """The data of the next frame. Raises `asyncio.IncompleteReadError` at the end, and `FrameError` if it is longer."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > max_bytes:
        raise FrameError(f"its process answered with {length} bytes, which is more than {max_bytes}")
    return await reader.readexactly(length)


def read_answer(data: bytes) -> tuple[str, Any]:
    """The kind and the value of an answer. Raises `FrameError`."""
    try:
        kind, value = _Plain(io.BytesIO(data)).load()
        return str(kind), value
    except Exception as error:
        raise FrameError(f"its process wrote what is no answer: {error}") from error


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in TYPES:
            raise pickle.UnpicklingError(f"a {module}.{name}, which is no plain data")
        return TYPES[module, name]
