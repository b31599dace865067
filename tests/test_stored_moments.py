"""AdamW with smaller moments: the same update, and rounding whose mean is exact."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rl.learner.learner import Learner
from rl.learner.stored_moments import StoredMomentsAdamW, rounded
from tests.test_learner import config_with, hybrid_path, load, on_policy, uneven_samples, weights

__all__ = ["hybrid_path"]
GRADIENTS = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]


def trained(make, gradients: list[Tensor] = GRADIENTS) -> tuple[Tensor, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(8, 3))
    optimizer = make([{"params": [weight], "weight_decay": 0.1}])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer


def stored(groups, dtype: torch.dtype, beta2: float = 0.95) -> StoredMomentsAdamW:
    return StoredMomentsAdamW(groups, lr=1e-2, betas=(0.9, beta2), dtype=dtype, offload=True, seed=3)


def test_moments_that_are_kept_elsewhere_give_adamws_update_bit_by_bit() -> None:
    expected, _ = trained(lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True))
    assert torch.equal(trained(lambda groups: stored(groups, torch.float32))[0], expected)


def test_rounded_moments_give_nearly_adamws_update_at_half_the_bytes() -> None:
    expected, _ = trained(lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)))
    weight, optimizer = trained(lambda groups: stored(groups, torch.bfloat16))
    torch.testing.assert_close(weight, expected, atol=2e-3, rtol=0.0)
    assert not torch.equal(weight, expected)
    (state,) = optimizer.state.values()
    assert {state[name].element_size() for name in ("exp_avg", "exp_avg_sq")} == {2}
    assert torch.equal(trained(lambda groups: stored(groups, torch.bfloat16))[0], weight)


def test_rounding_is_to_a_neighbour_and_right_in_the_mean() -> None:
    """1 + 2**-9 lies a quarter of the way from 1 to the next number, 1 + 2**-7."""
    generator = torch.Generator().manual_seed(0)
    for sign in (1.0, -1.0):
        values = rounded(torch.full((100_000,), sign * (1 + 2**-9)), generator)
        assert set(values.tolist()) == {sign, sign * (1 + 2**-7)}
        share = (values == sign * (1 + 2**-7)).double().mean().item()
        assert share == pytest.approx(0.25, abs=0.006)  # four standard errors
    exact = torch.tensor([0.0, -0.0, 1.5, -3e38, 1e-40, torch.inf]).bfloat16().float()
    assert torch.equal(rounded(exact, generator), exact)


def test_a_moment_that_falls_slowly_does_fall() -> None:
    """By 0.1 % a step, which rounding to the nearest would never do: 0.999**1000 = 0.368 in the mean."""
    nothing = [torch.zeros(8, 3)] * 1000
    _, optimizer = trained(lambda groups: stored(groups, torch.bfloat16, beta2=0.999), [torch.ones(8, 3), *nothing])
    (state,) = optimizer.state.values()
    assert state["exp_avg_sq"].float().mean().item() == pytest.approx(0.001 * 0.999**1000, rel=0.1)
    nearest = torch.full((8, 3), 1.0, dtype=torch.bfloat16)
    assert torch.equal(nearest * 0.999, nearest)


def test_a_saved_learner_with_rounded_moments_goes_on_bit_by_bit(hybrid_path: Path, tmp_path: Path) -> None:
    samples = on_policy(load(hybrid_path), uneven_samples())
    learner = Learner(hybrid_path, config_with(moments="bfloat16"))
    learner.update(samples)
    learner.save_state(tmp_path)
    learner.update(samples)
    resumed = Learner(hybrid_path, config_with(moments="bfloat16"))
    resumed.load_state(tmp_path)
    resumed.update(samples)
    assert all(torch.equal(a, b) for a, b in zip(weights(learner).values(), weights(resumed).values(), strict=True))


def test_offloading_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"learner\.gpus is 0"):
        config_with(offload_moments=True)
