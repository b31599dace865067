"""How is AdamW's memory made smaller: moments in bfloat16, in the CPU's memory, or both?

The update itself is AdamW's, in float32, one parameter after the other. A moment in bfloat16 is rounded up or down at
random, so that its expected value is the exact one: rounded to the nearest, a moment that changes by less than 0.4 % a
step would not change at all (stochastic rounding; https://arxiv.org/abs/2010.06192, section 3).
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rl.ranks import local
from rl.tasks.seeds import derive_seed

MOMENTS = ("exp_avg", "exp_avg_sq")


class StoredMomentsAdamW(torch.optim.Optimizer):
    """AdamW; `dtype` is that of the moments between two updates, `offload` keeps them in the CPU's memory.

    What is rounded up depends only on `seed`, the number of updates and the parameter's place, so a resumed run goes on
    bit for bit, and ranks whose slices differ in length agree on the parameters that each of them holds whole.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        dtype: torch.dtype,
        offload: bool,
        seed: int,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8})
        self.dtype, self._offload, self._seed = dtype, offload, seed

    @property
    def host(self) -> torch.device | None:
        """Where moments are kept, unless it is where their parameters are."""
        return torch.device("cpu") if self._offload else None

    def kept(self, moment: Tensor) -> Tensor:
        """A moment as it is kept between two updates."""
        if not self._offload:
            return moment.to(self.dtype)
        kept = moment.to("cpu", self.dtype)
        return kept.pin_memory() if moment.is_cuda else kept

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "the learner computes gradients before the step"
        placed = ((group, parameter) for group in self.param_groups for parameter in group["params"])
        for place, (group, parameter) in enumerate(placed):
            if parameter.grad is None:
                continue
            values, gradient = local(parameter), local(parameter.grad)
            state = self.state[parameter]
            if not state:
                state |= {name: self.kept(torch.zeros_like(values)) for name in MOMENTS}
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = [state[name].to(parameter.device, torch.float32, copy=True) for name in MOMENTS]
            update(values, gradient, moments, state["step"], group)
            if self.dtype == torch.bfloat16:
                seed = derive_seed("moments", self._seed, int(state["step"]), place)
                generator = torch.Generator(parameter.device).manual_seed(seed)
                moments = [rounded(moment, generator) for moment in moments]
            for name, moment in zip(MOMENTS, moments, strict=True):
                state[name].copy_(moment)
        return None


def update(values: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor, group: dict[str, Any]) -> None:
    """One step of AdamW, in place."""
    mean, square = moments
    beta1, beta2 = group["betas"]
    adamw(
        [values],
        [gradient],
        [mean],
        [square],
        [],
        [step],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 values that bfloat16 holds: the next ones up or down, with the probabilities that make the mean exact."""
    bits = values.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=values.device, generator=generator)
    return ((bits + noise) & ~0xFFFF).view(torch.float32)
