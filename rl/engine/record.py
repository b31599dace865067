"""What decided the course of an engine, and where is that recorded? One file of JSON lines an engine, in its order.

    {"step": 12, "load": 3}                        a version of the weights was loaded before step 12
    {"step": 12, "out": ["0-7/1/1/0"]}             requests were withdrawn before it
    {"step": 12, "in": ["0-8/0/1/0"], "ended": {"0-5/2/1/1": "9f3ac01b22de4f70"}}

The last kind names the requests that entered with the step, in their order, and the replies that ended in it with a
hash of their tokens; steps without either have no line. A request is named by group, member, attempt and turn
(`SamplingParams.name`). `rl.engine.script` makes an engine follow such a file.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import ArrayLike

from rl.engine.request import Request
from rl.record_file import RecordFile
from rl.weights.source import WeightSource

Load = tuple[WeightSource, "Future[str]"]


@dataclass(slots=True)
class Work:
    """What an engine's thread does next; a step, if it is nothing else."""

    rest: bool = False
    load: Load | None = None
    withdrawn: list[Request] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)


class Recorder:
    """Writes what an engine does; without a path, nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self._file, self._step = RecordFile(path), 0

    def loaded(self, version: int) -> None:
        self._file.write({"step": self._step, "load": version})

    def withdrawn(self, names: Sequence[str]) -> None:
        self._file.write({"step": self._step, "out": list(names)})

    def stepped(self, admitted: Sequence[str], ended: Mapping[str, str]) -> None:
        """A step was made. Comes before anyone hears of the replies: what others do with them has then its record."""
        if admitted or ended:
            self._file.write({"step": self._step, "in": list(admitted), "ended": dict(ended)})
        self._step += 1

    def close(self) -> None:
        self._file.close()


def reply_hash(request: Request) -> str:
    """`tokens_hash` of what was sampled for a request so far."""
    return tokens_hash(request.reply_ids, request.columns["logprob"], request.columns["version"])


def tokens_hash(ids: ArrayLike, logprobs: ArrayLike, versions: ArrayLike) -> str:
    """A hash of the ids, logprobs and versions of a reply, each [T]."""
    kinds = (np.int64, np.float32, np.int64)
    arrays = [np.asarray(values, kind) for values, kind in zip((ids, logprobs, versions), kinds, strict=True)]
    return xxhash.xxh3_64_hexdigest(b"".join(array.tobytes() for array in arrays))
