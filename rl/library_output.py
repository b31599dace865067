"""Which output of libraries is left out of terminals and logs? What no user can act on: progress bars, known warnings.

All other warnings and errors are shown. These are environment variables, because libraries read them when they are
imported, and because processes that libraries start inherit them. One that is already set is kept.
"""

import os

VARIABLES = {
    "TQDM_DISABLE": "1",  # bars of loading and saving; a download at a terminal still shows its own
    "TORCH_LOGS": "-torch._library",  # CPUs have no Triton; this leaves errors
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # memory is bound to a NUMA node; warnings of operations go through Python
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # it tells of every table that it creates
    "PYTHONWARNINGS": ",".join(
        (
            "ignore::FutureWarning:vllm.triton_utils.dispatcher",  # vLLM reads all attributes of torch, old ones too
            "ignore::UserWarning:multiprocessing.resource_tracker",  # it says that it tidies up after vLLM
        )
    ),
}


def quieten_libraries() -> None:
    """Set the variables. Call it before the libraries are imported."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
