"""Where may the numbers of a run be written? A sink is one class in a file here and one line in `SINKS`.

The class is the sink's section of the configuration and what it does, see `rl.runs.sinks.sink`. Libraries of trackers
are imported when a sink is opened, so that an experiment without it does not need them.
"""

from typing import Annotated

from pydantic import AfterValidator

from rl.config.section import OneOf
from rl.runs.sinks.jsonl import Jsonl
from rl.runs.sinks.sink import Sink
from rl.runs.sinks.tensorboard import TensorBoard

SINKS: dict[str, type[Sink]] = {"jsonl": Jsonl, "tensorboard": TensorBoard}


def _with_record(sinks: tuple[Sink, ...]) -> tuple[Sink, ...]:
    """The run's record is always kept, named or not."""
    return sinks if any(sink.is_record for sink in sinks) else (Jsonl(), *sinks)


Tracking = Annotated[tuple[Annotated[Sink, OneOf(SINKS, "sink", "jsonl")], ...], AfterValidator(_with_record)]
"""What the key `tracking` holds."""
