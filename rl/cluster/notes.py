"""How is heard what an actor has to say? Warnings that its code logs go back with its results."""

import logging
from collections import deque

OURS = ("rl", "envs", "rewards")
MOST = 100
"""Notes that are kept until somebody asks; older ones are dropped."""


class Notes(logging.Handler):
    """Collects what the process logs from now on, as warnings or worse, under our packages' names."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: deque[str] = deque(maxlen=MOST)
        for name in OURS:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._said.append(text)

    def take(self) -> tuple[str, ...]:
        """What was said since the last time."""
        said = []
        while self._said:
            said.append(self._said.popleft())
        return tuple(said)
