"""How is the expert load of a mixture-of-experts policy balanced during RL, with frozen routers?

Auxiliary-loss-free balancing (https://arxiv.org/abs/2408.15664): each expert has a bias that affects the choice
of experts but not their weights. It rises if the expert got fewer tokens than the mean, and falls if it got more.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rl.config.adapted import is_expert
from rl.precision.float32_weights import ROUTER_BIAS


class UnsupportedRouterError(ValueError):
    """A router that has an expert bias but does not say which experts it chose, or one that is not found."""


class RouterBalancer:
    """Counts tokens an expert through forward hooks and moves the biases. Does nothing for models without such routers.

    Set `counts` before each forward pass that counts, to what each coming token counts for (0 for padding), and to None
    for passes that do not. Rows that stand for others are counted apart, while `is_measuring`.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.counts: Tensor | None = None
        self.is_measuring = False
        self._rate = rate
        self._loads: dict[nn.Module, Tensor] = {}
        if rate > 0:
            for router in _biased(model):
                self._loads[router] = _bias(router).new_zeros((2, *_bias(router).shape), dtype=torch.int64)
                router.register_forward_hook(self._count)

    def loads(self) -> list[Tensor]:
        """Tokens each expert got since the last `forget`, one [2, experts] tensor a router, in the model's order: those
        that count as one, and those that count as `update` is told."""
        return list(self._loads.values())

    @torch.no_grad()
    def update(self, measured_weight: float = 0.0) -> None:
        """bias += rate * sign(mean load - load) for each router. Without counts nothing moves.

        `measured_weight` is what each token counts as that passed while `is_measuring`.
        """
        for router, (trained, measured) in self._loads.items():
            load = trained.double() + measured_weight * measured.double()  # counts are whole: no order of sums
            _bias(router).add_(torch.sign(load.mean() - load).to(_bias(router).dtype), alpha=self._rate)

    def forget(self) -> None:
        """Count anew."""
        self.counts, self.is_measuring = None, False
        for load in self._loads.values():
            load.zero_()

    def _count(self, router: nn.Module, _inputs: tuple[object, ...], output: object) -> None:
        if self.counts is None:
            return
        # A router returns (logits, weights of the chosen experts, their indices [tokens, experts a token]).
        chosen = output[-1] if isinstance(output, tuple) else None
        if not isinstance(chosen, Tensor) or chosen.is_floating_point():
            raise UnsupportedRouterError(
                f"{type(router).__name__} does not return the indices of the chosen experts;"
                " set learner.expert_bias_rate: 0 to train this policy without balancing"
            )
        load = self._loads[router][int(self.is_measuring)]
        counts = self.counts.flatten().double()[:, None].expand_as(chosen)  # whole numbers, so without rounding
        load += torch.bincount(chosen.flatten(), counts.flatten(), minlength=load.numel()).long()


def freeze_routers(model: nn.Module) -> None:
    """Do not train the routers, whether they have an expert bias or not.

    Raises `UnsupportedRouterError` if the model has experts and no router is found: it would be trained all the same.
    """
    routers = {*routers_of(model), *_biased(model)}
    if not routers and any(is_expert(name) for name, _ in model.named_parameters()):
        raise UnsupportedRouterError(
            f"{type(model).__name__} has experts, but no router that learner.freeze_router knows; set it to false to"
            " train the routers too"
        )
    for router in routers:
        router.requires_grad_(False)


def routers_of(model: nn.Module) -> Iterator[Any]:
    """In the order of the layers."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "top_k") and hasattr(module, "num_experts") and isinstance(weight, Tensor):
            yield module


def _biased(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(getattr(module, ROUTER_BIAS, None), Tensor))


def _bias(router: nn.Module) -> Tensor:
    bias = getattr(router, ROUTER_BIAS)
    assert isinstance(bias, Tensor)
    return bias
