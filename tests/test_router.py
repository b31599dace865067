"""The router's balancer alone: what its bias learns from, and which routers it refuses."""

from typing import Any

import pytest
import torch

from rl.learner.router import RouterBalancer, UnsupportedRouterError


class StandInRouter(torch.nn.Module):
    """Sends each token to the experts it names."""

    def __init__(self):
        super().__init__()
        self.e_score_correction_bias = torch.nn.Buffer(torch.zeros(4))

    def forward(self, chosen: torch.Tensor) -> Any:
        return torch.zeros(1), torch.zeros(1), chosen


def test_the_bias_falls_for_overloaded_experts_and_padding_does_not_count():
    router = StandInRouter()
    balancer = RouterBalancer(torch.nn.ModuleList([router]), rate=0.5, freeze=True)
    balancer.counts = torch.tensor([[True, True], [True, False]])
    router(torch.tensor([[0, 1], [0, 1], [0, 2], [3, 3]]))  # the last token is padding
    (load,) = balancer.loads()
    assert load.tolist() == [[3, 2, 1, 0], [0, 0, 0, 0]]
    balancer.update()  # mean load 1.5
    assert router.e_score_correction_bias.tolist() == [-0.5, -0.5, 0.5, 0.5]
    balancer.forget()
    balancer.update()
    assert router.e_score_correction_bias.tolist() == [-0.5, -0.5, 0.5, 0.5]


def test_tokens_that_stand_for_others_count_as_many():
    router = StandInRouter()
    balancer = RouterBalancer(torch.nn.ModuleList([router]), rate=0.5, freeze=True)
    for is_measuring, chosen in ((True, [[0, 1]]), (False, [[2, 3], [2, 3]])):
        balancer.is_measuring, balancer.counts = is_measuring, torch.ones((1, len(chosen)), dtype=torch.bool)
        router(torch.tensor(chosen))
    (load,) = balancer.loads()
    assert load.tolist() == [[0, 0, 2, 2], [1, 1, 0, 0]]
    balancer.update(measured_weight=5.0)  # loads 5, 5, 2, 2
    assert router.e_score_correction_bias.tolist() == [-0.5, -0.5, 0.5, 0.5]


def test_a_router_that_hides_its_choice_is_refused():
    class Mute(StandInRouter):
        def forward(self, chosen: torch.Tensor) -> Any:
            return torch.zeros(1)

    router = Mute()
    balancer = RouterBalancer(torch.nn.ModuleList([router]), rate=0.5, freeze=True)
    balancer.counts = torch.tensor([[True]])
    with pytest.raises(UnsupportedRouterError, match="expert_bias_rate: 0"):
        router(torch.tensor([[0, 1]]))
