"""Which layers of a checkpoint can have an adapter is told from its files, before anything starts."""

from pathlib import Path

import pytest

from rl.config.adapted import adapted_shapes
from rl.config.learner import AdapterConfig
from rl.plan.memory import published_bytes
from rl.plan.policy import checkpoint_shapes
from rl.policy_checks import check_policy
from rl.weights.transports.shared_memory import SharedMemory
from tests.makers import make_config
from tests.test_policy_checks import SHAPES, policy, problems, write

__all__ = ["policy"]
EXPERTS = {f"model.layers.0.mlp.experts.{number}.down_proj.weight": (4, 8) for number in range(2)}


def adapter_of(*targets: str) -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
    return {"learner": {"adapter": {"targets": targets}}}


def test_the_layers_of_an_adapter_are_read_off_the_headers(policy: Path) -> None:
    write(policy, {**SHAPES, **EXPERTS})
    adapter = AdapterConfig(rank=2, targets=("up_proj", "down_proj"))
    assert len(adapted_shapes(policy, adapter)) == 4


def test_an_adapter_needs_room_for_its_base_once(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.checks import check_room

    asked: list[int] = []
    monkeypatch.setattr(SharedMemory, "check_room", lambda self, num_bytes: asked.append(num_bytes))
    config = make_config(precision="bf16")
    check_room(config, policy)
    check_room(make_config(precision="bf16", learner={"adapter": {"publish": "merged"}}), policy)
    check_room(make_config(precision="bf16", learner={"adapter": {"rank": 2}}), policy)
    whole = published_bytes(checkpoint_shapes(policy), config.precision)
    assert asked == [3 * whole, 3 * whole, whole + 3 * 4 * 2 * (2 * (8 + 4))]


def test_experts_of_a_policy_without_any_are_refused(policy: Path) -> None:
    write(policy, SHAPES)
    told = problems(policy, learner={"adapter": {"targets": ("up_proj",), "experts": True}})
    assert "learner.adapter.experts" in told and "has no routed experts" in told


def test_experts_that_ranks_cannot_share_are_refused(policy: Path) -> None:
    write(policy, SHAPES)
    two = {"num_ranks": 2, "expert_parallel": 2}
    assert "learner.expert_parallel" in (told := problems(policy, learner=two)) and "no routed experts" in told
    write(policy, {**SHAPES, **EXPERTS})
    three = problems(policy, learner={"num_ranks": 3, "expert_parallel": 3})
    assert "experts a layer, which 3 ranks cannot share evenly" in three


def test_targets_that_cannot_have_an_adapter_are_refused(policy: Path) -> None:
    write(policy, {**SHAPES, **EXPERTS})
    check_policy(policy, make_config(**adapter_of("up_proj", "down_proj")))
    assert "match only routed experts, which are stacked" in problems(policy, **adapter_of("down_proj"))
    check_policy(policy, make_config(learner={"adapter": {"targets": ("down_proj",), "experts": True}}))
    told = problems(policy, **adapter_of("qkv"))
    assert (
        "learner.adapter.targets" in told
        and "qkv match no layer" in told
        and "linear layers: down_proj, up_proj" in told
    )
    assert "match lm_head; embeddings, heads and convolutions cannot" in problems(
        policy, **adapter_of("up_proj", "lm_.*")
    )
