"""Output of libraries that no user can act on is left out; other warnings are shown, and a user's own settings kept."""

import os
import subprocess
import sys

import pytest

from rl.library_output import VARIABLES, quieten_libraries

PROGRAM = """
import logging
from tqdm.auto import tqdm
list(tqdm([1], desc="a bar"))
import warnings
for module in ("vllm.triton_utils.dispatcher", "my_environment"):
    warnings.warn_explicit(f"old name in {module}", FutureWarning, module, 1, module=module)
import torch
logging.getLogger("torch._library.triton").warning("no Triton")
logging.getLogger("torch.nested").warning("a warning of torch")
"""


def shown(**variables: str) -> str:
    environment = {**os.environ, **VARIABLES, **variables}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stderr


@pytest.mark.slow
def test_bars_and_known_warnings_are_left_out_and_others_are_shown() -> None:
    seen = shown()
    assert "a bar" not in seen and "no Triton" not in seen and "vllm.triton_utils" not in seen
    assert "FutureWarning: old name in my_environment" in seen and "a warning of torch" in seen
    assert "a bar" in shown(TQDM_DISABLE="")


def test_what_a_user_sets_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TORCH_LOGS": "+dynamo"}
    monkeypatch.setattr(os, "environ", environment)
    quieten_libraries()
    assert environment == {**VARIABLES, "TORCH_LOGS": "+dynamo"}
