"""Engines that receive an adapter alone serve the policy that the learner trains, as with merged weights."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.learner.actor import LearnerProcess
from rl.policies import build_policy
from rl.precision.formats import FORMATS
from rl.weights.merged import check_adapter, with_adapter
from rl.weights.names import checkpoint_tensors, restored_tensors
from rl.weights.shared_memory import read_weights
from rl.weights.source import BASE_VERSION, WeightsError
from tests.families import write_policy
from tests.test_adapter_training import config_of, samples_of
from tests.test_agreement import as_sample, differences
from tests.test_engine import sample_many

if TYPE_CHECKING:
    from rl.config.experiment import ExperimentConfig

pytestmark = pytest.mark.slow
LIMITS = {"float32": 1e-5, "bf16": 2e-3, "nvfp4": 2e-3}
"""Mean |delta logprob| of learner and engine; in bfloat16 both round in other orders."""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: write_policy(kind, tmp_path_factory.mktemp(kind)) for kind in ("qwen3", "llama")}
    folders["hybrid"] = tmp_path_factory.mktemp("hybrid")
    texts = ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200
    build_policy(TinyHybrid(), texts, folders["hybrid"], 0, NemotronFormat())
    return folders


def started(config: "ExperimentConfig", policy: Path) -> Iterator[LearnerProcess]:
    process = LearnerProcess(config, policy)
    process.start()
    yield process
    process.shutdown()


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("kind", ["qwen3", "hybrid"])
def test_what_engines_merge_is_what_the_learner_would(policies: dict[str, Path], kind: str, precision: str) -> None:
    config = config_of(policies[kind], precision=precision)
    dtype = getattr(torch, config.precision.arithmetic)
    for process in started(config, policies[kind]):
        learner = process._learner
        assert "; only an adapter of 0.0 M weights beside " in process.describe()
        learner.update(samples_of(policies[kind]))
        source = process.publish()
        assert source.version == 1 and source.base is not None and source.base.version == BASE_VERSION
        assert Path(str(source.place)).stat().st_size < Path(str(source.base.place)).stat().st_size / 2
        base = restored_tensors(read_weights(source.base).tensors, config.precision, dtype)
        received = dict(with_adapter(base, dict(read_weights(source).tensors), 2.0, torch.device("cpu")))
        expected = dict(checkpoint_tensors(learner.model, config.precision.arithmetic))  # of merged values
        assert received.keys() == expected.keys()
        assert all(torch.equal(received[name], expected[name].to(received[name].dtype)) for name in expected)
        learner.update(samples_of(policies[kind]))
        assert process.publish().base is source.base  # published once


def test_an_adapter_that_fits_another_base_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"1 matrices that fit no weight of its base, first b\.weight\.lora_A"):
        check_adapter(["a.weight.lora_A", "b.weight.lora_A"], ["a.weight", "c.weight"])


@pytest.mark.parametrize(
    ("kind", "precision", "experts"),
    [
        ("qwen3", "float32", False),
        ("llama", "float32", False),
        ("hybrid", "float32", False),
        ("hybrid", "float32", True),
        ("qwen3", "bf16", False),
        ("qwen3", "nvfp4", False),
    ],
)
def test_learner_and_engine_agree_before_and_after_updates(
    policies: dict[str, Path], kind: str, precision: str, experts: bool
) -> None:
    from rl.engine.vllm_core import VllmEngine

    adapter, rollout = {"rank": 4, "alpha": 8, "experts": experts}, {"max_in_flight": 12, "kv_cache_gib": 0.25}
    config = config_of(policies[kind], adapter, precision=precision, rollout=rollout)
    dtype, limit = getattr(torch, config.precision.arithmetic), LIMITS[precision]
    engine = VllmEngine(policies[kind], config, lockstep_steps=2)
    try:
        for process in started(config, policies[kind]):
            learner = process._learner
            if config.precision.is_quantised:
                asyncio.run(engine.load_weights(process.publish()))
            for version in range(3):
                turns = asyncio.run(sample_many(engine, 20, first_seed=1000 * version))
                assert set(turns[0].tokens.columns["version"].tolist()) == {version}
                samples = [as_sample(turn, 1.0 if number % 2 else -1.0) for number, turn in enumerate(turns)]
                mean = differences(learner.model, samples, dtype).abs().mean()
                assert mean < limit
                learner.update(samples)
                assert differences(learner.model, samples, dtype).abs().mean() > 2 * mean  # the update did something
                source = process.publish()
                assert asyncio.run(engine.load_weights(source)) == source.hash
    finally:
        engine.shutdown()
