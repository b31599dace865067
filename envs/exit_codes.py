"""With which exit code does a command end? One rule for `rl`, `envs` and `sft` (docs/troubleshooting.md).

0: done. 1: the work was begun and failed, or found a fault. 2: arguments, configuration or input are wrong or missing,
and nothing was begun. An error with another code says so in its `exit_code`. An error of a foreign type is a bug of
ours: it shows its traceback, and Python ends with 1.
"""

import sys
from collections.abc import Callable

import typer

from envs.errors import exit_code, is_ours, told
from envs.unread import unread


def run_command(app: Callable[[], object]) -> int:
    """Run a command line's app, print an error of ours as a sentence, and return the exit code.

    Usage errors end the process inside typer, with 2. An error's `headline` replaces the word error before its text.
    """
    try:
        app()
    except BaseException as error:
        if not is_ours(error):
            raise
        say_end(f"{getattr(error, 'headline', 'error')}: {told(error)}")
        return exit_code(error)
    return 0


def say_end(text: str) -> None:
    """Print to stderr why a command ends. Its exit code is the same if nobody reads that."""
    with unread(sys.stderr):
        typer.echo(text, err=True)
