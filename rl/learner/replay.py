"""How does the learner send each token to the experts that the engine chose for it?

Rollout routing replay (R3, https://arxiv.org/abs/2510.11370): engine and learner compute a router's scores in different
orders, so rounding lets them choose other experts, and a token's logprob jumps. With recorded choices it cannot. A
hook replaces what a router chose; the weights of the experts are computed as the router does, from its own scores, so
that gradients flow as before. Where a choice is not known, the router's own stays.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl.data_types import Batch, Sample
from rl.learner.router import UnsupportedRouterError, routers_of
from rl.prefix_tree import PrefixTree
from rl.ranks import Ranks
from rl.tokens import ROUTES

T = TypeVar("T")
Scoring = Callable[[Tensor], Tensor]
SCORINGS: tuple[Scoring, ...] = (torch.sigmoid, partial(torch.softmax, dim=-1))
"""Scores of all experts from a router's logits."""


class RoutesError(ValueError):
    """Recorded choices are not of this policy."""


class RouteReplay:
    """Replays recorded choices in the routers of a model, and counts them.

    `use` a batch before its forward pass; its choices are replayed until the next `use`, also where layers are computed
    again for the gradient. Set `counts` as those of `rl.learner.router.RouterBalancer`, which must come after it: it
    counts the choices that were replayed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `UnsupportedRouterError` if there is no router, or one whose weights are not understood."""
        self.counts: Tensor | None = None
        self.is_measuring = False
        self._routes_NLk: Tensor | None = None
        self._routers = list(routers_of(model))
        if not self._routers:
            raise UnsupportedRouterError(f"{type(model).__name__} has no routers, so learner.routing_replay has no use")
        if min(router.top_k for router in self._routers) < 2:  # the check before the run knows the usual key only
            raise UnsupportedRouterError("learner.routing_replay needs routers that choose two experts a token or more")
        self._num_experts = max(router.num_experts for router in self._routers)
        device = next(model.parameters()).device
        self._loads = torch.zeros((2, len(self._routers), self._num_experts), dtype=torch.int64, device=device)
        # Choices that the router would not have made, and tokens with and without a record, over all layers.
        self._counted = torch.zeros((2, 3), dtype=torch.int64, device=device)
        for layer, router in enumerate(self._routers):
            scoring = scoring_of(router, model.config.get_text_config())
            router.register_forward_hook(partial(self._replay, layer, scoring))

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise `RoutesError` if the rows' choices cannot be those of this model."""
        wanted = (len(self._routers), self._routers[0].top_k)
        for sample in samples:
            routes = sample.tokens.columns.get(ROUTES)
            if routes is not None and (routes.shape[1:] != wanted or routes.max(initial=0) >= self._num_experts):
                raise RoutesError(
                    f"a row of {sample.env_id!r} has choices of {' x '.join(map(str, routes.shape[1:]))} experts"
                    f" (layers x experts a token) up to {routes.max(initial=0)}, but the policy chooses"
                    f" {wanted[0]} x {wanted[1]} of {self._num_experts}: its rollouts are of another policy"
                )

    def use(self, batch: Batch) -> None:
        """Replay this batch's choices from now on; without any, routers choose for themselves."""
        routes = batch.columns.get(ROUTES)
        if routes is None:
            self._routes_NLk = None
        elif batch.tree is None:
            self._routes_NLk = routes.flatten(0, 1).int()
        else:
            self._routes_NLk = node_routes(routes.int(), batch.attention_mask_BT, batch.tree)

    def replayed(self, score: Callable[[Batch], T]) -> Callable[[Batch], T]:
        """The forward pass of this model, with the choices of its batch."""

        def with_choices(batch: Batch) -> T:
            self.use(batch)
            return score(batch)

        return with_choices

    def measures(self, measured_weight: float, ranks: Ranks) -> dict[str, float]:
        """Of the passes since the last `forget`, on all ranks; `measured_weight` is what a token counts as that passed
        while `is_measuring`. Empty if no choice was known.

        `route_mismatch`: share of the recorded choices that the learner's router would not have made. `routes_known`:
        share of the tokens that have a record. The others are of the recorded choices: `expert_violation`, the largest
        load of an expert over the mean, less 1, the mean over layers (MaxVio, https://arxiv.org/abs/2408.15664);
        `expert_share_max` and `expert_share_min`, the largest and the smallest share of tokens that an
        expert got; `dead_experts`, how many got none.
        """
        for counts in (self._loads, self._counted):
            ranks.sum(counts)
        loads_LE = self._loads[0].double() + measured_weight * self._loads[1].double()
        different, known, unknown = (self._counted[0].double() + measured_weight * self._counted[1].double()).tolist()
        if not known:
            return {}
        shares_LE = loads_LE * len(self._routers) / known
        return {
            "route_mismatch": different / (known * self._routers[0].top_k),
            "routes_known": known / (known + unknown),
            "expert_violation": (loads_LE.max(dim=1).values / loads_LE.mean(dim=1) - 1).mean().item(),
            "expert_share_max": shares_LE.max().item(),
            "expert_share_min": shares_LE.min().item(),
            "dead_experts": float((loads_LE == 0).sum().item()),
        }

    def forget(self) -> None:
        """Count anew."""
        self.counts, self.is_measuring, self._routes_NLk = None, False, None
        self._loads.zero_()
        self._counted.zero_()

    def _replay(self, layer: int, scoring: Scoring, router: Any, _inputs: object, output: Any) -> Any:
        if self._routes_NLk is None:
            return None
        logits, weights, own_Nk = output
        recorded_Nk = self._routes_NLk[:, layer].long()
        known_N1 = (recorded_Nk[:, 0] != recorded_Nk[:, 1])[:, None]  # the experts of a token differ
        chosen_Nk = torch.where(known_N1, recorded_Nk, own_Nk)
        if self.counts is not None:
            self._count(layer, recorded_Nk, known_N1[:, 0], own_Nk)
        return logits, _weights(router, scoring, logits, chosen_Nk).to(weights.dtype), chosen_Nk

    @torch.no_grad()
    def _count(self, layer: int, recorded_Nk: Tensor, known_N: Tensor, own_Nk: Tensor) -> None:
        assert self.counts is not None
        counts_N = self.counts.flatten().long()
        known_N = known_N * counts_N
        differs_N = (recorded_Nk[:, :, None] != own_Nk[:, None, :]).all(dim=-1).sum(dim=-1)
        part = int(self.is_measuring)
        self._counted[part] += torch.stack([(differs_N * known_N).sum(), known_N.sum(), (counts_N - known_N).sum()])
        times_Nk = known_N[:, None].expand_as(recorded_Nk)
        self._loads[part, layer].scatter_add_(0, recorded_Nk.flatten(), times_Nk.flatten())


def node_routes(routes_BTLk: Tensor, mask_BT: Tensor, tree: PrefixTree) -> Tensor:
    """The choices of each node of the tree: those of the first row that knows them, since a node is computed once."""
    known_BT = mask_BT & (routes_BTLk[..., 0] != routes_BTLk[..., 1]).all(dim=-1)
    places = tree.nodes_BT[known_BT]
    numbers = torch.arange(len(places), device=places.device)
    num = tree.ids_1N.numel()
    first_N = torch.full((num,), len(places), device=places.device).scatter_reduce_(0, places, numbers, "amin")
    padded = nn.functional.pad(routes_BTLk[known_BT].flatten(1), (0, 0, 0, 1))  # the last one for nodes without any
    return padded[first_N].unflatten(1, routes_BTLk.shape[2:])


def scoring_of(router: nn.Module, config: object) -> Scoring:
    """How this kind of router scores experts: found out on a small random input. Raises `UnsupportedRouterError`."""
    kind = type(router).__name__
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            twin: Any = type(router)(config)  # type: ignore[call-arg]
            twin.weight.normal_(std=0.1)
            logits, weights, chosen = twin(torch.randn(8, twin.weight.shape[1]))
            for scoring in SCORINGS:
                if torch.equal(_weights(twin, scoring, logits, chosen), weights):
                    return scoring
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UnsupportedRouterError(f"learner.routing_replay: {kind} cannot be tried: {error}") from error
    raise UnsupportedRouterError(
        f"{kind} weighs experts in a way that learner.routing_replay does not know: set it to false for this policy"
    )


def _weights(router: Any, scoring: Scoring, logits: Tensor, chosen_Nk: Tensor) -> Tensor:
    """The weights of the chosen experts, as transformers' routers compute them."""
    weights = scoring(logits.float()).gather(1, chosen_Nk)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * getattr(router, "routed_scaling_factor", 1.0)
