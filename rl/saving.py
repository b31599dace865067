"""How is a checkpoint written while the loop goes on? In a thread, until the learner's next update."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rl.engine.work_times import Interval
from rl.parts import Parts
from rl.runs.checkpoint import Checkpoint, save_checkpoint


def begin_checkpoint(parts: Parts) -> None:
    """Begin to write one checkpoint with weights, optimiser state and ledger of the same step.

    It goes on while groups are collected, until the learner's next update, which would change what is written.
    """
    end_checkpoint(parts)
    train, folder = parts.config.train, parts.folder
    with_policy = train.saves_policy(parts.step)
    save = partial(
        save_checkpoint,
        folder.checkpoints,
        parts.step,
        partial(parts.learner.save, with_policy=with_policy),
        {"ledger": parts.ledger.state(), "curricula": parts.stream.state(), "canaries": parts.canaries.state()},
        keep=train.keep_checkpoints,
        known=folder.newest,
        needs_policy=with_policy,
    )
    executor = ThreadPoolExecutor(1, "checkpoint")
    parts.saving = executor.submit(_timed, save)
    executor.shutdown(wait=False)


def end_checkpoint(parts: Parts) -> None:
    """Wait for the checkpoint that was begun, if any. Raises what kept it from being written."""
    if parts.saving is None:
        return
    saving, parts.saving = parts.saving, None
    with parts.phase("checkpoint"):
        parts.folder.newest, interval = saving.result()  # the learner's part ends at train.update_timeout_s
    parts.times.saved(interval)
    parts.spool.saved(parts.ledger)  # tasks are finished by updates alone, so it is still the saved one


def checkpoint(parts: Parts) -> None:
    """Write a checkpoint now."""
    begin_checkpoint(parts)
    end_checkpoint(parts)


def _timed(save: Callable[[], Checkpoint]) -> tuple[Checkpoint, Interval]:
    begun = time.time()
    saved = save()
    return saved, (begun, max(begun, time.time()))
