"""Activation checkpointing: the same gradient from fewer kept activations, with the experts of the first pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rl.learner import recompute
from rl.learner.batching import make_batches
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.policy import load_policy
from rl.learner.recompute import recompute_layers
from tests.test_learner import config_with, hybrid_path, load, on_policy, uneven_samples, weights

__all__ = ["hybrid_path"]


def gradients(path: Path, dtype: torch.dtype, *, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of a loss, and bytes that the forward pass kept for them besides weights."""
    model = load_policy(path)
    if recompute:
        assert recompute_layers(model) == 4
    names = [name for name, _ in model.named_parameters()]
    (batch,) = make_batches(uneven_samples(), 4096, 0)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs, _ = policy_logprobs(model, batch, dtype, 1.0, 1024)
    logprobs.sum().backward()
    assert [name for name, _ in model.named_parameters()] == names
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_the_same_and_less_is_kept(dtype: torch.dtype, hybrid_path: Path) -> None:
    whole, kept = gradients(hybrid_path, dtype, recompute=False)
    again, kept_again = gradients(hybrid_path, dtype, recompute=True)
    assert whole.keys() == again.keys() and len(whole) > 30
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert kept_again < kept / 3


def test_a_learner_makes_the_same_updates_and_counts_tokens_of_experts_once(hybrid_path: Path) -> None:
    samples = on_policy(load(hybrid_path), uneven_samples())
    plain, sparing = (
        Learner(hybrid_path, config_with(expert_bias_rate=0.1, activation_checkpointing=on)) for on in (False, True)
    )
    loads = []
    for learner in (plain, sparing):
        learner._balancer.forget, forget = (lambda learner=learner: None), learner._balancer.forget
        updates = [learner.update(samples)]
        loads.append([load.clone() for load in learner._balancer.loads()])
        forget()
        updates.append(learner.update(samples))
        loads[-1] += [torch.tensor(update.loss) for update in updates]
    assert all(torch.equal(a, b) for a, b in zip(*loads, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(sparing).values(), strict=True))


class Router(nn.Module):
    """Its logits differ between the passes, as rounding may do: the choice must not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.chosen: list[list[int]] = []

    def forward(self, hidden: Tensor, **_: object) -> Tensor:
        sign = -1.0 if self.chosen else 1.0
        values, indices = torch.topk(hidden * self.scale * sign, 1)
        self.chosen.append(indices.flatten().tolist())
        return values.exp()  # its gradient needs the second pass


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = Router(), nn.Linear(1, 1)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mixture()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mlp.router(hidden)


def test_experts_of_the_first_pass_are_those_of_the_second() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer()])
            self.base_model = self

    model = Model()
    recompute_layers(model)  # type: ignore[arg-type]
    hidden = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    model.layers[0](hidden).sum().backward()
    (layer,) = model.layers
    assert isinstance(layer, Layer) and layer.mlp.router.chosen == [[2], [2]]


def test_only_layers_with_experts_keep_results(hybrid_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would be slow on GPUs: Python would see each of their operations."""
    calls: list[object] = []
    make = recompute.create_selective_checkpoint_contexts
    monkeypatch.setattr(
        recompute, "create_selective_checkpoint_contexts", lambda kept: (calls.append(kept), make(kept))[1]
    )
    model = load_policy(hybrid_path)
    recompute_layers(model)
    (batch,) = make_batches(uneven_samples(), 4096, 0)
    policy_logprobs(model, batch, torch.float32, 1.0, 1024)
    assert len(calls) == 2  # of the layers M, E, * and E
