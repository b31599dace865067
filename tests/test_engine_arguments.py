"""What vLLM gets from the experiment, on CPUs and on GPUs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from rl.config.environments import BudgetConfig
from rl.config.rollout import RolloutConfig
from rl.engine.arguments import ENVIRONMENT, engine_arguments
from rl.engine.endpoint.server import Endpoint, run_endpoint
from rl.engine.protocol import EngineError
from rl.engine.vllm_core import longest_silence_s
from tests.makers import make_config


def on_gpu(**rollout: Any) -> dict[str, Any]:
    return engine_arguments(make_config(rollout=rollout), is_cpu=False)


def test_cpus_get_a_cache_of_the_size_that_the_configuration_says() -> None:
    arguments = engine_arguments(make_config(rollout={"kv_cache_gib": 0.25}), is_cpu=True)
    assert arguments["kv_cache_memory_bytes"] == 2**28
    assert arguments["enforce_eager"] is True
    assert "gpu_memory_utilization" not in arguments
    assert engine_arguments(make_config(), is_cpu=True)["kv_cache_memory_bytes"] == 2**29


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.225), (0.5, 0.45), (1, 0.9), (4, 0.9)])
def test_engines_that_share_a_card_divide_its_memory(gpus: float, share: float) -> None:
    assert on_gpu(gpus_per_worker=gpus)["gpu_memory_utilization"] == pytest.approx(share)


def test_a_memory_share_that_is_given_is_taken() -> None:
    assert on_gpu(gpus_per_worker=0.5, gpu_memory_share=0.3)["gpu_memory_utilization"] == 0.3


def test_several_cards_are_used_by_tensor_parallelism() -> None:
    assert on_gpu(gpus_per_worker=4)["tensor_parallel_size"] == 4
    assert on_gpu(gpus_per_worker=4)["distributed_executor_backend"] == "mp"
    for gpus in (0.5, 1):
        assert "tensor_parallel_size" not in on_gpu(gpus_per_worker=gpus)


def test_a_cache_size_that_is_given_holds_on_gpus_too() -> None:
    assert on_gpu(gpus_per_worker=1, kv_cache_gib=2)["kv_cache_memory_bytes"] == 2**31
    assert "kv_cache_memory_bytes" not in on_gpu(gpus_per_worker=1)


@pytest.mark.parametrize("is_cpu", [True, False])
def test_what_replies_depend_on_is_the_same_everywhere(is_cpu: bool) -> None:
    config = make_config(
        precision="nvfp4",
        policy={"path": "p", "max_tokens": 10_000},
        learner={"tokens_per_micro_batch": 10_000},
        rollout={"max_in_flight": 7},
    )
    arguments = engine_arguments(config, is_cpu)
    assert (arguments["dtype"], arguments["seed"], arguments["max_num_seqs"]) == ("bfloat16", 0, 7)
    assert (arguments["max_model_len"], arguments["max_num_batched_tokens"]) == (10_000, 10_000)


@pytest.mark.parametrize("num", [1, 16])
def test_lanes_may_be_silent_for_two_deadlines_of_a_call_whatever_waits_for_a_place(num: int) -> None:
    counts = {"max_in_flight": 65, "num_env_threads": num, "num_env_processes": num}
    rollout = make_config(rollout={**counts, "reset_timeout_s": 10, "step_timeout_s": 20}).rollout
    assert longest_silence_s(rollout) == 2 * (10 + 20)


def test_only_an_engine_that_is_alone_on_a_gpu_during_updates_sleeps() -> None:
    assert on_gpu(gpus_per_worker=0.5, sleep=True)["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in on_gpu(gpus_per_worker=0.5)
    with pytest.raises(ValidationError, match="gpus_per_worker is 0"):
        make_config(rollout={"sleep": True})
    with pytest.raises(ValidationError, match=r"train\.max_staleness is 1"):
        make_config(rollout={"sleep": True, "gpus_per_worker": 0.5}, train={"num_steps": 2, "max_staleness": 1})


RUNNER = """
import os, sys
os.environ |= eval(sys.argv[1])
from types import SimpleNamespace
import vllm.config.vllm as module
module.HAS_TRITON = True  # as on a GPU
config = SimpleNamespace(
    attention_config=SimpleNamespace(hisparse_config=None), _get_v2_model_runner_unsupported_features=list
)
print("second" if module.VllmConfig.use_v2_model_runner.fget(config) else "first", "model runner")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "runner"), [({}, "second"), (ENVIRONMENT, "first")])
def test_gpus_get_the_model_runner_that_takes_our_logits_processor(environment: dict[str, str], runner: str) -> None:
    """vLLM's second one refuses it. Where the first case fails, vLLM's default has changed."""
    command = [sys.executable, "-c", RUNNER, repr(environment)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}  # of other tests
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited)
    assert done.stdout.endswith(f"{runner} model runner\n")


@pytest.mark.slow
@pytest.mark.parametrize("is_cpu", [True, False])
def test_endpoints_compile_on_gpus_only(is_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.launchers import launcher
    from vllm.platforms import current_platform

    def taken(*_: object, **__: object) -> None:
        raise OSError(98, "taken")

    monkeypatch.setattr(launcher, "setup_server", taken)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: is_cpu)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    endpoint = Endpoint(tmp_path, "mine", "127.0.0.1", 1, "float32", 64, RolloutConfig())
    with pytest.raises(EngineError, match="cannot listen on"):
        run_endpoint(endpoint, cast(Any, None), BudgetConfig())
    assert ("TORCHDYNAMO_DISABLE" in os.environ) == is_cpu
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
