"""Recorded experts in the learner: its own change nothing, others act as a router that chooses them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from rl.data_types import Sample
from rl.learner.batching import make_batches
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.replay import SCORINGS, RouteReplay, RoutesError, _weights, node_routes, scoring_of
from rl.learner.router import UnsupportedRouterError
from rl.learner.trees import take_trees
from rl.precision.float32_weights import ROUTER_BIAS
from rl.prefix_tree import tree_of
from rl.ranks import ALONE
from rl.tokens import ROUTES, Tokens
from tests.ranks import on_ranks
from tests.test_learner import config_with, hybrid_path, load, on_policy, tiny_llama, uneven_samples, weights
from tests.test_ranks import assert_near, config_of, policy, samples_of, trained
from tests.test_trees import EXPERTS, SMALL, rows

assert hybrid_path and policy
LAYERS, TOP_K, NUM_EXPERTS = 2, 2, 4


def with_routes(sample: Sample, routes: np.ndarray) -> Sample:
    tokens = sample.tokens
    return replace(sample, tokens=Tokens.make(tokens.ids, tokens.sampled, {**tokens.columns, ROUTES: routes}))


def routers(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("Router")]


def chosen_by(model: Any, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the experts that this model's routers choose."""
    told: list[Tensor] = []
    hooks = [one.register_forward_hook(lambda _m, _i, output: told.append(output[2])) for one in routers(model)]
    found = []
    for sample in samples:
        told.clear()
        with torch.no_grad():
            model(torch.tensor(sample.tokens.ids[None], dtype=torch.long), use_cache=False)
        found.append(with_routes(sample, torch.stack(told, dim=1).numpy().astype(np.uint8)))
    for hook in hooks:
        hook.remove()
    return found


def biased(path: Path) -> Any:
    """The hybrid with a bias that makes its routers prefer other experts."""
    model = load(path)
    for router in routers(model):
        getattr(router, ROUTER_BIAS).copy_(torch.tensor([0.0, 0.3, -0.2, 0.5]))
    return model


def scored(
    model: Any, samples: Sequence[Sample], replay: RouteReplay | None = None, *, shares: bool = False
) -> tuple[dict[bytes, Tensor], dict[str, Tensor]]:
    """Logprobs of each row, and the gradients of their sum with weights."""
    found = {}
    for batch in make_batches(samples, 100, 0, shares_prefixes=shares):
        if replay is not None:
            replay.use(batch)
        logprobs_BT, _ = policy_logprobs(model, batch, torch.float32, 1.0, 7)
        (logprobs_BT * (1 + torch.arange(logprobs_BT.shape[1])) / 10).sum().backward()
        for ids_T, mask_T, own_T in zip(batch.token_ids_BT, batch.attention_mask_BT, logprobs_BT, strict=True):
            found[ids_T[mask_T].numpy().tobytes()] = own_T[mask_T].detach()
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> float:
    assert one.keys() == other.keys() and one
    return max((one[key] - other[key]).abs().max().item() for key in one)


def differences(one: Any, other: Any) -> tuple[float, float]:
    """Of logprobs and of gradients."""
    return largest_difference(one[0], other[0]), largest_difference(one[1], other[1])


def are_within(one: Any, other: Any, limits: tuple[float, float]) -> bool:
    return all(found <= limit for found, limit in zip(differences(one, other), limits, strict=True))


@pytest.mark.parametrize("shares", [False, True])
def test_own_choices_change_nothing_and_others_act_as_a_router_that_makes_them(hybrid_path: Path, shares: bool) -> None:
    models = [load(hybrid_path), load(hybrid_path), load(hybrid_path), biased(hybrid_path)]
    plain, owner, other, forced = models
    for model in models:
        take_trees(model)
    replays = [RouteReplay(model) for model in (owner, other)]
    reference = scored(plain, rows(), shares=shares)
    own = scored(owner, chosen_by(load(hybrid_path), rows()), replays[0], shares=shares)
    assert are_within(own, reference, (0.0, 0.0) if not shares else (1e-5, 1e-4))
    others = scored(other, chosen_by(biased(hybrid_path), rows()), replays[1], shares=shares)
    asked = scored(forced, rows(), shares=shares)
    # Padding goes where the routers send it, so gradients of experts are added up in other orders.
    assert are_within(others, asked, (0.0, 1e-5) if not shares else (1e-5, 1e-4))
    assert min(differences(others, reference)) > 1e-2
    assert any("gate" in name for name in others[1])  # the scores of the chosen experts have a gradient


def test_a_softmax_router_replays_too() -> None:
    torch.manual_seed(0)
    model, other = (AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SMALL, **EXPERTS)).eval() for _ in range(2))
    samples = chosen_by(other, rows())
    reference = scored(model, rows())
    model.zero_grad()
    replay = RouteReplay(model)
    own = scored(model, chosen_by(model, rows()), replay)
    assert differences(own, reference) == (0.0, 0.0)
    replay.forget()
    assert largest_difference(scored(model, samples, replay)[0], reference[0]) > 1e-2


def test_weights_of_chosen_experts_by_hand() -> None:
    logits, chosen = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[2, 0]])
    sigmoid = SimpleNamespace(norm_topk_prob=True, routed_scaling_factor=2.5)
    # sigmoid(-1) = 0.268941, sigmoid(0) = 0.5; together 0.768941
    expected = torch.tensor([[2.5 * 0.349755, 2.5 * 0.650245]])
    assert torch.allclose(_weights(sigmoid, SCORINGS[0], logits, chosen), expected, atol=1e-5)
    softmax = SimpleNamespace(norm_topk_prob=False)
    # exp(-1), exp(0), exp(1) = 0.367879, 1, 2.718282; together 4.086161
    assert torch.allclose(
        _weights(softmax, SCORINGS[1], logits, chosen), torch.tensor([[0.090031, 0.244728]]), atol=1e-5
    )


def test_where_no_choice_is_known_the_routers_own_stays(hybrid_path: Path) -> None:
    model, (sample,) = load(hybrid_path), chosen_by(biased(hybrid_path), rows()[5:6])
    routes = sample.tokens.columns[ROUTES].copy()
    routes[3:7] = 0
    own: list[Tensor] = []
    taken: list[Tensor] = []
    for router in routers(model):
        router.register_forward_hook(lambda _m, _i, output: own.append(output[2]))
    replay = RouteReplay(model)
    for router in routers(model):
        router.register_forward_hook(lambda _m, _i, output: taken.append(output[2]))
    (batch,) = make_batches([with_routes(sample, routes)], 100, 0)
    replay.use(batch)
    replay.counts = batch.attention_mask_BT
    policy_logprobs(model, batch, torch.float32, 1.0, 7)
    measures = replay.measures(0.0, ALONE)
    num = len(routes)
    for layer in range(LAYERS):
        assert torch.equal(taken[layer][3:7], own[layer][3:7])
        assert np.array_equal(
            np.delete(taken[layer].numpy(), range(3, 7), 0), np.delete(routes[:, layer], range(3, 7), 0)
        )
    assert measures["routes_known"] == pytest.approx((num - 4) / num)
    different = sum(
        len(set(kept) - set(mine))
        for layer in range(LAYERS)
        for place, (kept, mine) in enumerate(zip(routes[:, layer].tolist(), own[layer].tolist(), strict=True))
        if not 3 <= place < 7
    )
    assert measures["route_mismatch"] == pytest.approx(different / (LAYERS * TOP_K * (num - 4)))
    loads = np.stack(
        [np.bincount(np.delete(routes, range(3, 7), 0)[:, layer].ravel(), minlength=4) for layer in (0, 1)]
    )
    assert measures["expert_share_max"] == pytest.approx(loads.max() / (num - 4))
    assert measures["expert_share_min"] == pytest.approx(loads.min() / (num - 4))
    assert measures["expert_violation"] == pytest.approx((loads.max(1) / loads.mean(1) - 1).mean())
    assert measures["dead_experts"] == (loads == 0).sum()


def test_a_node_of_several_rows_has_the_choices_of_the_first_row_that_knows_them() -> None:
    tree = tree_of([np.array([5, 6, 7]), np.array([5, 6, 8, 9])])
    known = [[[0, 0], [1, 2], [1, 3], [0, 0]], [[3, 2], [3, 1], [2, 0], [0, 0]]]
    routes = torch.tensor(known)[:, :, None]
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    nodes = node_routes(routes, mask, tree)[:, 0].tolist()
    assert [nodes[node] for node in tree.nodes_BT[0, :3]] == [[3, 2], [1, 2], [1, 3]]
    assert [nodes[node] for node in tree.nodes_BT[1]] == [[3, 2], [1, 2], [2, 0], [0, 0]]


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}, {"share_prefixes": False}])
def test_a_learner_replays_and_tells_how_often_its_router_differs(hybrid_path: Path, changes: dict[str, Any]) -> None:
    samples = on_policy(load(hybrid_path), uneven_samples())
    keys = {"freeze_router": False, "expert_bias_rate": 0.0}
    reference, learner = (
        Learner(hybrid_path, config_with(**keys, **changes, routing_replay=replays)) for replays in (False, True)
    )
    expected = reference.update(samples)
    update = learner.update(chosen_by(load(hybrid_path), samples))
    assert largest_difference(weights(learner), weights(reference)) == 0.0
    assert update.measures["route_mismatch"] < 0.01 and update.measures["routes_known"] == 1.0
    assert "route_mismatch" not in expected.measures
    again = learner.update(chosen_by(biased(hybrid_path), samples))
    assert 0.1 < again.measures["route_mismatch"] < 1.0


@pytest.mark.parametrize("adapter", [None, {"rank": 2}])
def test_a_policy_that_is_still_its_reference_has_no_divergence_from_it(
    hybrid_path: Path, adapter: dict[str, Any] | None
) -> None:
    keys = {"freeze_router": True, "expert_bias_rate": 0.0, "adapter": adapter, "routing_replay": True}
    learner = Learner(hybrid_path, config_with(loss={"reference_kl": 0.1}, **keys))
    samples = on_policy(load(hybrid_path), uneven_samples())
    update = learner.update(chosen_by(biased(hybrid_path), samples))
    assert update.measures["route_mismatch"] > 0.1
    assert update.measures["reference_kl"] == pytest.approx(0.0, abs=1e-9)
    assert learner.update(chosen_by(biased(hybrid_path), samples)).measures["reference_kl"] > 1e-7


def test_rows_that_are_measured_stand_for_those_that_are_left_out(hybrid_path: Path) -> None:
    first, other = on_policy(load(hybrid_path), uneven_samples(2))
    (trained,), (idle,) = chosen_by(load(hybrid_path), [first]), chosen_by(biased(hybrid_path), [other])
    samples = [trained, *4 * [replace(idle, advantage=0.0)]]
    keys = {"freeze_router": True, "expert_bias_rate": 0.0, "routing_replay": True}
    every, one_in_four = (
        Learner(hybrid_path, config_with(**keys, measured_share=share)).update(samples).measures
        for share in (1.0, 0.25)
    )
    names = ("route_mismatch", "routes_known", "expert_violation", "expert_share_max", "dead_experts")
    assert every["route_mismatch"] > 0.05
    assert {name: one_in_four[name] for name in names} == pytest.approx({name: every[name] for name in names})


def test_the_load_that_moves_biases_is_that_of_the_replayed_choices(hybrid_path: Path) -> None:
    learner = Learner(hybrid_path, config_with(routing_replay=True, expert_bias_rate=0.1))
    samples = on_policy(load(hybrid_path), uneven_samples())
    told = np.tile(np.array([1, 3], np.uint8), (1, LAYERS, 1))
    learner.update([with_routes(sample, np.repeat(told, len(sample.tokens), axis=0)) for sample in samples])
    for router in routers(learner.model):
        assert getattr(router, ROUTER_BIAS).sign().tolist() == [1.0, -1.0, 1.0, -1.0]


def test_choices_of_another_policy_and_policies_without_routers_are_refused(hybrid_path: Path, tmp_path: Path) -> None:
    replay = RouteReplay(load(hybrid_path))
    (sample,) = uneven_samples(1)
    for shape, value in (((3, 2), 0), ((2, 3), 0), ((2, 2), NUM_EXPERTS)):
        wrong = with_routes(sample, np.full((len(sample.tokens), *shape), value, np.uint8))
        with pytest.raises(RoutesError, match=r"chooses 2 x 2 of 4: its rollouts are of another policy"):
            replay.check([wrong])
    replay.check([sample])
    with pytest.raises(UnsupportedRouterError, match="LlamaForCausalLM has no routers"):
        RouteReplay(AutoModelForCausalLM.from_config(tiny_llama()))
    single = Qwen3MoeConfig(**SMALL, **EXPERTS | {"num_experts_per_tok": 1})
    with pytest.raises(UnsupportedRouterError, match="two experts a token or more"):
        RouteReplay(AutoModelForCausalLM.from_config(single))

    class Odd(type(routers(load(hybrid_path))[0])):
        def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
            logits, weights, chosen = super().forward(hidden)
            return logits, weights.square(), chosen

    with pytest.raises(UnsupportedRouterError, match="Odd weighs experts in a way"):
        scoring_of(Odd(load(hybrid_path).config), load(hybrid_path).config)


@pytest.mark.slow
@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_ranks_replay_as_one(policy: Path, expert_parallel: int) -> None:
    if policy.name.startswith("llama"):
        pytest.skip("it has no experts")
    config = config_of(policy, "float32", num_ranks=2, expert_parallel=expert_parallel, routing_replay=True)
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    generator = torch.Generator().manual_seed(0)
    for router in routers(model):
        router.weight.data += 0.1 * torch.randn(router.weight.shape, generator=generator)
    samples = chosen_by(model, samples_of(policy))
    alone = trained(policy, config, samples, ALONE)
    results = on_ranks(2, lambda ranks: trained(policy, config, samples, ranks), expert_parallel)
    assert all(isinstance(result, dict) for result in results), results
    assert all(result["updates"] == results[0]["updates"] for result in results)
    assert_near(results[0], alone, is_rounded=False)
    told, expected = (one["updates"][0]["measures"] for one in (results[0], alone))
    assert told == pytest.approx(expected) and told["route_mismatch"] > 0.01
