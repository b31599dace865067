"""Which sinks (trackers) can receive the metrics of a run? One file each, registered in `SINKS`.

The class of a sink is its configuration section and its code, see `rl.runs.sinks.sink`. A sink imports its tracker's
library when it is opened, so experiments without the sink do not need the library.
"""

from typing import Annotated

from pydantic import AfterValidator

from rl.config.section import OneOf
from rl.runs.sinks.jsonl import Jsonl
from rl.runs.sinks.mlflow_run import MLflow
from rl.runs.sinks.sink import Sink
from rl.runs.sinks.tensorboard import TensorBoard
from rl.runs.sinks.trackio_run import Trackio
from rl.runs.sinks.wandb_run import WeightsAndBiases

SINKS: dict[str, type[Sink]] = {
    "jsonl": Jsonl,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def _with_record(sinks: tuple[Sink, ...]) -> tuple[Sink, ...]:
    """Add the record of the run if the configuration does not name it."""
    return sinks if any(sink.is_record for sink in sinks) else (Jsonl(), *sinks)


Tracking = Annotated[tuple[Annotated[Sink, OneOf(SINKS, "sink", "jsonl")], ...], AfterValidator(_with_record)]
"""Type of the key `tracking`."""
