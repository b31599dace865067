"""How does a process have a folder of its own that is removed after it, also if it is killed?

The next process that makes such a folder removes those whose process has ended.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


def own_folder(base: Path, prefix: str) -> Path:
    """A new folder in `base` whose name begins with `prefix`, removed when this process ends.

    Those of killed processes are removed here. Raises `OSError`.
    """
    for folder in base.glob(f"{prefix}*"):
        remove_if_abandoned(folder, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    # The lock lasts as long as the process, and is seen from other containers too, unlike a process id.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_if_abandoned(folder: Path, prefix: str) -> None:
    """Remove the folder unless the process that made it with this prefix lives."""
    assert prefix and folder.name.startswith(prefix), f"{folder} is not a folder of a process ({prefix}*)"
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone, no folder, or another user's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(descriptor)
