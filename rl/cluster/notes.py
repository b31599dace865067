"""How do warnings of an actor reach the driver? The actor returns the warnings it logged (notes) with its results."""

import logging
from collections import deque

OURS = ("rl", "envs", "rewards")
MOST = 100
"""Maximum notes that are kept until `take`; older ones are dropped."""


class Notes(logging.Handler):
    """Collects log records of our packages in this process, from level WARNING on."""

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
        """Notes since the last call."""
        said = []
        while self._said:
            said.append(self._said.popleft())
        return tuple(said)
