"""How does a stage tell what it does? In the terminal and in the run's log."""

import logging

from rich.console import Console

logger = logging.getLogger(__name__)


def say(text: str) -> None:
    Console().print(text)
    logger.info("%s", text)
