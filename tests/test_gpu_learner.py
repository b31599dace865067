"""On one GPU the learner computes what it computes on the CPU: folding, updates, saved memory, slices, adapters.

Machines without a GPU skip all of it. Float32 comparisons are tight: cuBLAS sums float32 products in float32.
"""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig

from rl.learner.batching import make_batches, to_device
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.policy import load_policy
from rl.learner.sharding import load_sharded_policy
from rl.precision.formats import FORMATS
from rl.precision.number_format import NumberFormat
from rl.ranks import Ranks, leave_ranks, local
from tests.test_learner import config_with, hybrid_path, load, on_policy, uneven_samples, weights
from tests.test_trees import TAKE_TREES, assert_rounding_only, made, scored

__all__ = ["hybrid_path"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def updated(path: Path, num_updates: int = 2, precision: str = "float32", **learner: Any) -> tuple[Learner, list[Any]]:
    """A learner after some updates on the same rows, whose logprobs are those of the checkpoint."""
    made = Learner(path, config_with(precision=precision, **learner))
    rows = on_policy(load(path), uneven_samples())
    return made, [made.update(rows) for _ in range(num_updates)]


def worst(one: Learner, other: Learner) -> float:
    others = {name: value.cpu() for name, value in weights(other).items()}
    return max((value.cpu() - others[name]).abs().max().item() for name, value in weights(one).items())


def test_an_update_in_float32_is_the_cpus(hybrid_path: Path) -> None:
    (on_cpu, expected), (on_gpu, updates) = updated(hybrid_path), updated(hybrid_path, gpus=1)
    for update, reference in zip(updates, expected, strict=True):
        assert update.loss == pytest.approx(reference.loss, rel=1e-4, abs=1e-5)
        assert update.grad_norm == pytest.approx(reference.grad_norm, rel=1e-4)
        assert update.entropy == pytest.approx(reference.entropy, rel=1e-4)
    assert worst(on_cpu, on_gpu) < 2e-2  # AdamW's first steps have the rate's size, 1e-2, whatever the gradient's


@pytest.mark.parametrize("precision", ["float32", "bf16", "nvfp4"])
def test_layers_computed_again_give_the_same_update(hybrid_path: Path, precision: str) -> None:
    _, expected = updated(hybrid_path, precision=precision, gpus=1)
    _, updates = updated(hybrid_path, precision=precision, gpus=1, activation_checkpointing=True)
    for update, reference in zip(updates, expected, strict=True):
        assert update.loss == pytest.approx(reference.loss, rel=1e-2, abs=1e-4)
        assert update.grad_norm == pytest.approx(reference.grad_norm, rel=1e-2)


def test_moments_in_the_cpus_memory_give_the_same_update(hybrid_path: Path) -> None:
    held, expected = updated(hybrid_path, gpus=1)
    away, updates = updated(hybrid_path, gpus=1, offload_moments=True)
    assert {value.device.type for state in away._optimizer.state.values() for value in state.values()} >= {"cpu"}
    assert [update.loss for update in updates] == pytest.approx([update.loss for update in expected], rel=1e-4)
    assert worst(held, away) < 2e-2


def test_rounded_moments_train(hybrid_path: Path) -> None:
    learner, updates = updated(hybrid_path, num_updates=3, gpus=1, moments="bfloat16", offload_moments=True)
    moments = [value for state in learner._optimizer.state.values() for value in state.values() if value.dim()]
    assert {moment.dtype for moment in moments} == {torch.bfloat16}
    assert all(update.grad_norm > 0 for update in updates)


@pytest.mark.parametrize("config", [TAKE_TREES["llama"], TAKE_TREES["a sliding window"]], ids=["llama", "window"])
def test_shared_prefixes_through_flash_attention_differ_by_rounding_only(config: PretrainedConfig) -> None:
    model = made(config)
    model.to(torch.device("cuda"))  # type: ignore[arg-type]
    assert_rounding_only(model)
    gradients = []
    for shares in (False, True):
        model.set_attn_implementation("prefix_tree" if shares else "sdpa")
        _, gradient = scored(model, torch.bfloat16, shares=shares)
        gradients.append(torch.cat([part.flatten() for part in gradient.values()]))
    plain, shared = gradients
    assert (shared - plain).norm() < 0.03 * plain.norm()


def test_an_adapter_trains(hybrid_path: Path) -> None:
    _, expected = updated(hybrid_path, adapter={"rank": 4})
    _, updates = updated(hybrid_path, adapter={"rank": 4}, gpus=1)
    for update, reference in zip(updates, expected, strict=True):
        assert update.grad_norm == pytest.approx(reference.grad_norm, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"block": "16x16"}, {"four_over_six": "mse"}, {"tensor_scale": "float32"}])
def test_nvfp4_codes_on_the_card_are_the_cpus(options: dict[str, Any]) -> None:
    number_format: NumberFormat = FORMATS["nvfp4"](**options)
    weight = torch.randn(8, 64, 256, generator=torch.Generator().manual_seed(0))
    amax = weight.abs().amax(dim=(1, 2), keepdim=True).reshape(8)

    def parts(on: Tensor, amax: Tensor) -> dict[str, Tensor]:
        made = number_format.quantise(on, amax)
        return {**made, "folded": number_format.dequantise(made, torch.float32)}

    expected, made = parts(weight, amax), parts(weight.cuda(), amax.cuda())
    for name, part in made.items():
        assert part.is_cuda
        assert torch.equal(part.cpu().view(torch.uint8), expected[name].view(torch.uint8)), name


def test_a_learner_saves_on_the_card_and_goes_on_elsewhere(hybrid_path: Path, tmp_path: Path) -> None:
    on_gpu, _ = updated(hybrid_path, gpus=1)
    on_gpu.save_state(tmp_path)
    rows = on_policy(load(hybrid_path), uneven_samples())
    goes_on, on_cpu = (Learner(hybrid_path, config_with(gpus=gpus)) for gpus in (1, 0))
    for learner in (goes_on, on_cpu):
        learner.load_state(tmp_path)
    third = on_gpu.update(rows)
    assert goes_on.update(rows).loss == pytest.approx(third.loss, rel=1e-5)
    assert on_cpu.update(rows).loss == pytest.approx(third.loss, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_over_nccl_have_the_logprobs_and_gradients_of_one_process(hybrid_path: Path, dtype: torch.dtype) -> None:
    """One rank, because NCCL takes one rank a card: FSDP2's kernels and NCCL's collectives run, nothing is sliced."""
    (batch,) = (to_device(batch, torch.device("cuda")) for batch in make_batches(uneven_samples(), 4096, 0))
    plain = load_policy(hybrid_path)
    plain.to(torch.device("cuda"))  # type: ignore[arg-type]
    expected, _ = policy_logprobs(plain, batch, dtype, 1.0, 1024)
    expected.sum().backward()
    ranks = _one_rank()
    try:
        policy = load_sharded_policy(hybrid_path, ranks, torch.device("cuda"), dtype, 1.0, 1024, stays_whole=False)
        logprobs, _ = policy(batch)
        logprobs.sum().backward()
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(logprobs, expected, atol=tolerance, rtol=tolerance)
        gradients = dict(plain.named_parameters())
        for name, parameter in policy.model.named_parameters():
            if parameter.grad is not None:
                reference = gradients[name].grad
                assert reference is not None
                difference = (local(parameter.grad) - reference).norm() / reference.norm().clamp(min=1e-6)
                assert difference < (1e-3 if dtype == torch.float32 else 2e-2), name
    finally:
        leave_ranks()


def _one_rank() -> Ranks:
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1, device_id=device)
    return Ranks(0, 1, init_device_mesh("cuda", (1,), mesh_dim_names=("ranks",)))
