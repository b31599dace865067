"""How is the expert load of a mixture-of-experts policy balanced during RL, with frozen routers?

Auxiliary-loss-free balancing (https://arxiv.org/abs/2408.15664): each expert has a bias that affects the choice
of experts but not their weights. It rises if the expert got fewer tokens than the mean, and falls if it got more.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rl.precision.float32_weights import ROUTER_BIAS


class UnsupportedRouterError(ValueError):
    """A router that has an expert bias but does not say which experts it chose."""


class RouterBalancer:
    """Counts tokens an expert through forward hooks and moves the biases. Does nothing for models without such routers.

    Counting needs the mask of the tokens that are coming: set `token_mask_BT` before each forward pass that counts, and
    to None for passes that do not.
    """

    def __init__(self, model: nn.Module, rate: float, freeze: bool) -> None:
        self.token_mask_BT: Tensor | None = None
        self._rate = rate
        self._loads: dict[nn.Module, Tensor] = {}
        for router in _routers(model):
            if freeze:
                router.requires_grad_(False)
            if rate > 0:
                self._loads[router] = torch.zeros_like(_bias(router), dtype=torch.int64)
                router.register_forward_hook(self._count)

    def loads(self) -> list[Tensor]:
        """Tokens each expert got since the last `forget`, one [experts] tensor a router, in the model's order."""
        return list(self._loads.values())

    @torch.no_grad()
    def update(self) -> None:
        """bias += rate * sign(mean load - load) for each router. Without counts nothing moves."""
        for router, load in self._loads.items():
            _bias(router).add_(torch.sign(load.double().mean() - load).to(_bias(router).dtype), alpha=self._rate)

    def forget(self) -> None:
        """Count anew."""
        self.token_mask_BT = None
        for load in self._loads.values():
            load.zero_()

    def _count(self, router: nn.Module, _inputs: tuple[object, ...], output: object) -> None:
        if self.token_mask_BT is None:
            return
        # A router returns (logits, weights of the chosen experts, their indices [tokens, experts a token]).
        chosen = output[-1] if isinstance(output, tuple) else None
        if not isinstance(chosen, Tensor) or chosen.is_floating_point():
            raise UnsupportedRouterError(
                f"{type(router).__name__} does not return the indices of the chosen experts;"
                " set learner.expert_bias_rate: 0 to train this policy without balancing"
            )
        load = self._loads[router]
        load += torch.bincount(chosen[self.token_mask_BT.flatten()].flatten(), minlength=load.numel())


def _routers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(getattr(module, ROUTER_BIAS, None), Tensor))


def _bias(router: nn.Module) -> Tensor:
    bias = getattr(router, ROUTER_BIAS)
    assert isinstance(bias, Tensor)
    return bias
