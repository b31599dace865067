"""The plan of a learner with several ranks, and on several nodes: counted by hand, and as two real ranks have it."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.learner.learner import Learner
from rl.plan.cards import CARDS
from rl.plan.engine import engine_memory
from rl.plan.fit import Plan, make_plan
from rl.plan.gathered import gathered_weights, largest_gathered
from rl.plan.memory import FLOAT32, PROCESS_BYTES, learner_parts, published_bytes, total
from rl.plan.nodes import Nodes, lay_out
from rl.plan.policy import policy_shapes
from rl.plan.shapes import PolicyShapes
from rl.plan.show import show_plan
from rl.plan.speed import publish_s, step_speed
from rl.policies import hybrid_config, random_hybrid
from rl.ranks import local
from tests.families import write_policy
from tests.makers import make_config
from tests.published_models import PUBLISHED, long_config, shapes_of
from tests.ranks import on_ranks
from tests.test_learner import make_sample

H100 = CARDS["h100-80gb"]
SMALL, NANO = shapes_of(PUBLISHED["Qwen3-0.6B"]()), shapes_of(PUBLISHED["Nemotron-3-Nano"]())
NUM, LAYER, ROOT = 596_049_920, 15_730_944, 151_936 * 1024 + 1024
"""Weights of Qwen3-0.6B, of one of its 28 layers, and of its embeddings, which are its head, with the last norm."""


def parts_of(shapes: PolicyShapes, config: ExperimentConfig) -> dict[str, float]:
    return {part.name: part.num_bytes for part in learner_parts(shapes, config)}


# Memory of a rank


def test_a_rank_holds_its_share_and_gathers_two_layers() -> None:
    assert 28 * LAYER + ROOT == NUM
    config = long_config(learner={"gpus": 1, "num_ranks": 8}, loss={"reference_kl": 0.01})
    parts, alone = parts_of(SMALL, config), parts_of(SMALL, long_config(learner={"gpus": 1}))
    assert parts["master weights"] == parts["gradients"] == parts["reference policy"] == 4 * NUM / 8
    assert parts["AdamW moments"] == 8 * NUM / 8
    assert parts["whole layers"] == 2 * 2 * LAYER
    assert parts["whole embeddings"] == 2 * 2 * ROOT  # of both policies
    assert parts["whole gradients"] == (2 + 4) * ROOT  # more than a layer has
    assert "rounded weights" not in parts
    for name in ("activations", "logits", "gradient of the head", "process"):  # of its own micro-batch
        assert parts[name] == alone[name]


def test_ranks_divide_rows_and_whole_experts() -> None:
    """Nano's layers have 128 experts; of 96 ranks some hold two of them, and of 256 some hold one and others none."""
    experts = 23 * 2 * 1856 * 2688
    for num_ranks, num_experts in ((8, 16), (96, 2), (256, 1)):
        assert NANO.on_rank(num_ranks).num_expert_weights == num_experts * experts
    held = NANO.on_rank(8)
    assert held.num_embedding_weights == 131_072 // 8 * 2688
    assert {shape for name, shape in held.tensors.items() if name.endswith(".A_log")} == {(64,)}  # each has all of A
    names = {f"model.layers.0.mlp.experts.{expert}.up_proj.weight": (32, 16) for expert in range(6)}
    unstacked = PolicyShapes(names, {"num_experts": 6, "num_experts_per_tok": 1})
    assert len(unstacked.on_rank(4).tensors) == 2


def test_folded_weights_and_offloaded_moments_are_divided_too() -> None:
    config = long_config(learner={"gpus": 1, "num_ranks": 8, "offload_moments": True}, precision="nvfp4")
    parts = parts_of(NANO, config)
    quantised = 23 * 16 * 2 * 1856 * 2688 + 23 * 2 * 3712 * 2688 / 8
    assert parts["folded weights"] == quantised * (4 + 4.5 / 8)
    assert "AdamW moments" not in parts
    host = make_plan(NANO, config, H100, None).places[-1]
    trained = NANO.on_rank(8).num_trained(config.learner)
    ranks = [num_bytes for name, num_bytes in host.tenants if name == "learner"]
    slices = NANO.on_rank(8).num_weights
    assert ranks == 8 * [PROCESS_BYTES + FLOAT32 * slices + 8 * trained]


def test_experts_that_cannot_be_dealt_evenly_are_read_whole() -> None:
    for num_ranks, read in ((8, NANO.on_rank(8)), (96, NANO)):
        plan = make_plan(NANO, long_config(learner={"gpus": 1, "num_ranks": num_ranks}), H100, None)
        ranks = {num_bytes for name, num_bytes in plan.places[-1].tenants if name == "learner"}
        assert ranks == {PROCESS_BYTES + FLOAT32 * read.num_weights}


def test_ranks_that_exchange_once_a_step_hold_all_layers_and_their_gradients_whole() -> None:
    parts = parts_of(NANO, long_config(learner={"num_ranks": 16, "exchange": "step"}))
    root = 2 * 131_072 * 2688 + 2688
    assert parts["whole layers"] + parts["whole embeddings"] == 2 * NANO.num_weights
    assert parts["whole gradients"] == 4 * NANO.num_weights + 2 * largest_gathered(NANO)
    assert parts["whole embeddings"] == 2 * root


@pytest.mark.parametrize(
    ("transport", "versions", "buffers"), [("object_store", 4, 0), ("shared_memory", 3, 0), ("nccl", 0, 2**29)]
)
def test_transports_take_memory_of_hosts_or_of_cards(transport: str, versions: int, buffers: int) -> None:
    config = long_config(learner={"gpus": 1}, rollout={"gpus_per_worker": 1}, weights=transport)
    plan = make_plan(SMALL, config, H100, None)
    assert dict(plan.places[-1].tenants)["published versions"] == versions * plan.published
    assert {part.name: part.num_bytes for part in plan.engine.parts}.get("buffers", 0) == buffers


def test_ranks_with_an_adapter_hold_the_whole_base() -> None:
    adapter = {"adapter": {"rank": 16}}
    assert parts_of(SMALL, long_config(learner={**adapter, "num_ranks": 8})) == parts_of(
        SMALL, long_config(learner=adapter)
    )


def test_experts_that_are_dealt_are_gathered_in_part() -> None:
    """Nano's largest layer has 128 experts, of which a rank gathers 16; the layer before it is Mamba-2."""
    experts, mamba = 128 * 2 * 1856 * 2688, 2688 * (2 * 4096 + 2 * 8 * 128 + 64) + 4096 * 2688 + 4096 + 3 * 64 + 2688
    mamba += (4096 + 2 * 8 * 128) * (4 + 1)  # the convolution and its bias
    rest = 2 * 3712 * 2688 + 128 * 2688 + 2688  # the shared expert, router and norm
    assert gathered_weights(NANO)[1] == experts + rest + mamba
    assert gathered_weights(NANO, 8)[1] == experts / 8 + rest + mamba
    root = 2 * 131_072 * 2688 + 2688
    assert (largest_gathered(NANO), largest_gathered(NANO, 8)) == (experts + rest, root)
    parts = parts_of(NANO, long_config(learner={"num_ranks": 16, "expert_parallel": 8}))
    assert parts["whole layers"] == 2 * (experts / 8 + rest + mamba)
    assert parts["whole gradients"] == (2 + 4) * root
    assert parts["master weights"] == parts_of(NANO, long_config(learner={"num_ranks": 16}))["master weights"]


def test_a_layer_that_is_made_whole_to_save_may_be_the_peak() -> None:
    """In float32, with all experts: where experts are dealt and few tokens are trained at a time."""
    tensors = {
        "model.embed_tokens.weight": (100, 8),
        "model.layers.0.mlp.experts.up_proj": (64, 1000, 8),
        "lm_head.weight": (100, 8),
    }
    shapes = PolicyShapes(tensors, {"num_experts": 64, "num_experts_per_tok": 1})
    for dealt, whole in ((1, 0), (16, 4 * 64 * 1000 * 8)):
        learner = {"num_ranks": 16, "expert_parallel": dealt, "tokens_per_micro_batch": 64, "logprob_chunk_tokens": 64}
        parts = parts_of(shapes, long_config(64, learner=learner, rollout={"max_reply_tokens": 8}))
        passes = ("layers", "embeddings", "gradients")
        needed = sum(parts[f"whole {name}"] for name in passes)
        needed += sum(parts[name] for name in ("activations", "logits", "gradient of the head"))
        assert parts.get("saving, publishing", 0) == max(0, whole - needed)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16", "nvfp4"])
@pytest.mark.parametrize(("kind", "dealt"), [("hybrid", 1), ("qwen3_moe", 1), ("qwen3_moe", 2)])
def test_two_real_ranks_have_parts_of_these_sizes(kind: str, dealt: int, precision: str, tmp_path: Path) -> None:
    if kind == "hybrid":
        random_hybrid(hybrid_config(TinyHybrid()), seed=0).save_pretrained(tmp_path)
    else:
        write_policy(kind, tmp_path)
    config = make_config(
        precision=precision,
        policy={"path": tmp_path, "max_tokens": 256},
        learner={"warmup_steps": 0, "num_ranks": 2, "freeze_router": False, "expert_parallel": dealt},
    )
    for rank in on_ranks(2, lambda ranks: sizes_of(Learner(tmp_path, config, ranks)), dealt):
        assert isinstance(rank, dict), rank
        shapes = policy_shapes(config)
        parts = parts_of(shapes, config)
        assert rank["weights"] == parts["master weights"]
        assert rank["gradients"] == parts["gradients"]
        assert rank["moments"] == parts["AdamW moments"]
        assert rank["folded"] == pytest.approx(parts.get("folded weights", 0), rel=0.001)
        root, layers = gathered_weights(shapes, dealt)
        assert (rank["root"], max(map(sum, zip(rank["layers"], rank["layers"][1:], strict=False)))) == (root, layers)


def sizes_of(learner: Learner) -> dict[str, Any]:
    """Bytes that this rank holds, and weights that each module makes whole."""
    gradients: list[int] = []

    def count(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients.append(sum(local(p.grad).nbytes for p in learner.model.parameters() if p.grad is not None))

    learner._optimizer.register_step_pre_hook(count)
    learner.update([make_sample([1, 2, 3, 4, 5], advantage=1.0)])
    states = learner._optimizer.state.values()
    folded = [*learner.folded._folded.values(), *(p for q in learner.folded.quantised.values() for p in q.values())]
    layers = [set(layer.parameters()) for layer in learner.model.base_model.layers]  # type: ignore[union-attr]
    assert all(isinstance(layer, FSDPModule) for layer in learner.model.base_model.layers)  # type: ignore[union-attr]
    root = set(learner.model.parameters()).difference(*layers)
    return {
        "weights": sum(local(parameter).nbytes for parameter in learner.model.parameters()),
        "gradients": gradients[0],
        "moments": sum(local(state[name]).nbytes for state in states for name in ("exp_avg", "exp_avg_sq")),
        "folded": sum(tensor.nbytes for tensor in folded),
        "root": sum(map(num_gathered, root)),
        "layers": [sum(map(num_gathered, layer)) for layer in layers],
    }


def num_gathered(parameter: torch.Tensor) -> int:
    """Weights of the parameter that one rank makes whole: of dealt experts only its share."""
    mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
    is_dealt = mesh is not None and "ep" in (mesh.mesh_dim_names or ())
    return parameter.numel() // (mesh["ep"].size() if mesh is not None and is_dealt else 1)


# Nodes


def run_of(num_ranks: int, num_engines: int, tensor_parallel: float, gpus: float = 1) -> ExperimentConfig:
    learner = {"gpus": gpus, "num_ranks": num_ranks}
    return long_config(learner=learner, rollout={"num_workers": num_engines, "gpus_per_worker": tensor_parallel})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (run_of(4, 1, 4), [(1, 4)]),
        (run_of(8, 2, 4), [(2, 0), (0, 8)]),
        (run_of(10, 3, 3), [(2, 2), (1, 5), (0, 3)]),  # the third engine does not span two nodes
        (run_of(8, 8, 0.4, 0.6), [(8, 8)]),  # each on a card with another one
        (run_of(2, 16, 0.5), [(12, 2), (4, 0)]),
        (run_of(3, 2, 8, 0), [(1, 3), (1, 0)]),
    ],
)
def test_engines_and_ranks_are_laid_out_on_nodes_of_eight(
    config: ExperimentConfig, expected: list[tuple[int, int]]
) -> None:
    assert [(node["engine"], node["learner"]) for node in lay_out(config, 8)] == expected


def plan_on(config: ExperimentConfig, *nodes: int) -> Plan:
    return make_plan(SMALL, config, H100, None, Nodes(*nodes))


def test_a_run_that_fits_its_node_is_told_no_problem() -> None:
    plan = plan_on(run_of(4, 2, 2), 1, 8)
    assert plan.fits and plan.layout == [Counter(engine=2, learner=4)]
    host = plan.places[-1]
    assert (host.name, host.count("learner"), host.count("engine")) == ("the fullest node's host", 4, 2)


def test_too_few_nodes_are_told_with_the_numbers_that_fit() -> None:
    wrong, ways = next(plan_on(run_of(16, 3, 4), 3, 8).problems())
    assert wrong == "the run's processes need 4 nodes with 8 GPUs each, and there are 3"
    assert ways == ["learner.num_ranks, to 12 or less", "rollout.num_workers, to 2 or less"]


def test_an_engine_never_spans_nodes() -> None:
    plan = plan_on(run_of(4, 1, 8), 4, 4)
    ((wrong, ways),) = plan.problems()
    assert wrong == "rollout.gpus_per_worker is 8, and a node has 4 GPUs: no engine and no rank spans nodes"
    assert ways == ["rollout.gpus_per_worker, to 4 or less"]
    assert plan.layout == []


def test_several_nodes_need_a_transport_that_reaches_them() -> None:
    ((wrong, ways),) = plan_on(run_of(8, 2, 4), 2, 8).problems()
    assert "are on 2 nodes, and weights.transport shared_memory publishes only" in wrong
    assert ways == ["weights.transport, to one that reaches other nodes"]


def test_two_ranks_may_not_share_a_card() -> None:
    ((wrong, ways),) = plan_on(run_of(2, 1, 0.5, 0.5), 1, 8).problems()
    assert "two ranks would share a card" in wrong and ways == ["learner.gpus, to more than 0.5"]


def test_more_ranks_are_proposed_for_a_card_that_is_too_small() -> None:
    config = long_config(learner={"gpus": 1, "num_ranks": 8, "activation_checkpointing": True})
    plan = make_plan(NANO, config, CARDS["a100-40gb"], None)
    _, ways = next(plan.problems())
    saved = (total(learner_parts(NANO, config)) - total(learner_parts(NANO, doubled(config)))) / 2**30
    assert f"learner.num_ranks=16 saves {saved:,.1f} GiB" in ways
    assert any(way.startswith("learner.expert_parallel=8 saves") for way in ways)
    assert any(way.startswith("all of these: each rank needs") for way in ways)


def doubled(config: ExperimentConfig) -> ExperimentConfig:
    return config.model_copy(update={"learner": config.learner.model_copy(update={"num_ranks": 16})})


# Speed


def test_ranks_train_at_the_same_time() -> None:
    seconds = []
    for num_ranks in (1, 4):
        config = long_config(learner={"gpus": 1, "num_ranks": num_ranks})
        seconds.append(step_speed(SMALL, config, engine_memory(SMALL, config, None), H100, H100).train_s)
    assert seconds[0] == pytest.approx(4 * seconds[1])


def test_publishing_copies_once_and_doubles_the_nodes_each_round() -> None:
    assert publish_s(1.1e9, 1) == 1.0
    assert publish_s(12.5e9, 5) == pytest.approx(12.5 / 1.1 + 3)
    assert publish_s(12.5e9, 5, is_live=True) == 1.0  # to all at the same time, from card to card
    config = run_of(1, 1, 1).model_copy(
        update={"train": make_config(train={"num_steps": 1, "publish_timeout_s": 1}).train}
    )
    (remark,) = make_plan(SMALL, config, H100, None, Nodes(1, 8)).remarks()
    assert "a publish takes about 1 s, and train.publish_timeout_s is 1: raise it" in remark
    assert math.isclose(published_bytes(SMALL, config.precision) / 1.1e9, 1.08, rel_tol=0.01)


# The command


def test_nodes_are_printed_and_need_an_experiment_with_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PUBLISHED["Qwen3-0.6B"]().save_pretrained(tmp_path)
    config = run_of(4, 2, 2).model_copy(update={"policy": make_config(policy={"path": tmp_path}).policy})
    assert show_plan(config, "h100-80gb", nodes=Nodes(1, 8))
    printed = capsys.readouterr().out
    assert "Memory of each of the learner's 4 ranks" in printed and "2 engines, 4 ranks" in printed
    assert "a publish: 1.11 GiB in 1 s" in printed and "GB/s between two nodes" in printed
    with pytest.raises(ConfigError, match="--nodes: the experiment reserves no GPU"):
        show_plan(make_config(policy={"path": tmp_path}), "", Console(quiet=True), Nodes(1, 8))
