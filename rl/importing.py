"""How do processes that import torch, transformers or vLLM start sooner? Without Python's cyclic garbage collector.

Importing makes hundreds of thousands of objects that stay. The collector walks over them again and again, and frees
almost nothing: a quarter of the time that vLLM and the supervised stage take to import (measured: 3.9 s, not 5.4 s).
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Import or start something large. Afterwards the collector leaves alone what there is by then."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # collections that vLLM asks for, and those during the run, would take a third of a second each
        if was_enabled:
            gc.enable()
