"""A policy in slices computes what the whole one does, and is loaded from the same files."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard
from transformers import GptOssConfig, GptOssForCausalLM

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.data_types import Batch
from rl.learner.batching import make_batches
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.optimizer import spread_as
from rl.learner.policy import load_policy
from rl.learner.sharding import load_sharded_policy
from rl.policies import build_policy
from rl.ranks import PeerFailed, Ranks, local, whole
from tests.families import SIZES, write_policy
from tests.ranks import on_ranks
from tests.test_ranks import config_of, hashed, samples_of

pytestmark = pytest.mark.slow
Score = Callable[[Batch], tuple[Tensor, Tensor]]


@pytest.fixture(params=["hybrid", "llama"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "hybrid":
        build_policy(TinyHybrid(), ["1+1=?"] * 200, tmp_path, 0, NemotronFormat())
        return tmp_path
    return write_policy(request.param, tmp_path)


def computed(model: nn.Module, score: Score, batches: list[Batch]) -> dict[str, Any]:
    scores = []
    for batch in batches:
        logprobs, entropy = score(batch)
        (logprobs.sum() + entropy.sum()).backward()
        scores += [hashed(logprobs.detach()), hashed(entropy.detach())]
    gradients = {name: hashed(whole(p.grad)) for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {"scores": scores}


def test_ranks_whose_slices_differ_in_length_agree_on_what_each_holds_whole(policy: Path) -> None:
    """Mamba's A and the experts' biases; moments that are rounded at random must be rounded alike."""
    config, samples = config_of(policy, "bf16", moments="bfloat16"), samples_of(policy)

    def work(ranks: Ranks) -> Any:
        learner = Learner(policy, config, ranks)
        before = learner.replicas()
        return before, [learner.update(samples).policy_version and learner.replicas() for _ in range(3)]

    results = on_ranks(3, work)
    assert results[0] == results[1] == results[2], results
    before, after = results[0]
    assert before and (len({before, *after}) == 4) == ("nemotron" in load_policy(policy).config.model_type)


def test_all_weights_are_trained_though_the_trial_of_trees_fails(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-OSS, whose attention trees have not, breaks off its forward pass; so does attention that is broken here."""
    paths = [policy] if "nemotron" in load_policy(policy).config.model_type else [policy, gpt_oss(tmp_path / "oss")]

    def work(ranks: Ranks, path: Path) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr("rl.learner.tree_attention._products", full_disk)
            learner = Learner(path, config_of(path, "bf16"), ranks)
        samples = samples_of(path)
        before = {name: hashed(whole(p.detach())) for name, p in learner.model.named_parameters()}
        learner.update(samples)
        moved = {name for name, p in learner.model.named_parameters() if hashed(whole(p.detach())) != before[name]}
        ours = {id(parameter) for parameter in learner.model.parameters()}
        held = {id(parameter) for group in learner._optimizer.param_groups for parameter in group["params"]}
        return learner._takes_trees, held <= ours, sorted(before.keys() - moved)

    for path in paths:
        results = on_ranks(2, lambda ranks, path=path: work(ranks, path))
        assert all(isinstance(result, tuple) for result in results), results
        for takes, are_ours, still in results:
            assert not takes and are_ours
            assert not [name for name in still if "experts" not in name], still  # some get no token


def gpt_oss(folder: Path) -> Path:
    sizes: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "pad_token_id": 0}
    torch.manual_seed(0)
    GptOssForCausalLM(GptOssConfig(**{**SIZES, **sizes})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("broken", ["rl.learner.state.save_file", "rl.learner.state.json.dumps"])
def test_a_full_disk_of_the_first_rank_is_told_by_all_and_ranks_go_on(
    policy: Path, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(policy, "float32")

    def work(ranks: Ranks) -> Any:
        learner = Learner(policy, config, ranks)
        with monkeypatch.context() as patched:
            patched.setattr(broken, full_disk)
            with pytest.raises((OSError, PeerFailed)) as raised:
                learner.save_state(tmp_path / "full")
        learner.save_state(tmp_path / "state")
        return raised.typename

    assert on_ranks(2, work) == ["OSError", "PeerFailed"]
    assert load_policy(tmp_path / "state" / "model")


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_moments_on_the_host_are_saved_from_there_though_weights_are_on_a_card(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        card = DeviceMesh("cuda", torch.arange(2), mesh_dim_names=("ranks",), _init_backend=False)
        parameter: Any = SimpleNamespace(device_mesh=card, placements=(Shard(0),), shape=torch.Size((5, 2)))
        parameter.stride = lambda: (2, 1)
        values = torch.arange(10.0).view(5, 2)[3 * ranks.rank : 3 + 3 * ranks.rank]
        save({"moment": spread_as(values, parameter)}, checkpoint_id=tmp_path)
        held = spread_as(torch.zeros_like(values), parameter)
        load({"moment": held}, checkpoint_id=tmp_path)
        return local(held).tolist()

    assert on_ranks(2, work) == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_rank_of_one_computes_the_very_bits_of_the_whole_policy(policy: Path, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    batches = make_batches(samples_of(policy), 40, pad_id=0)

    def work(_: Ranks) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
            ranks = Ranks(0, 1, init_device_mesh("cpu", (1,)))
            device = torch.device("cpu")
            sliced = load_sharded_policy(policy, ranks, device, dtype, 1.0, 64, stays_whole=False)
            return computed(sliced.model, sliced, batches)

    plain = load_policy(policy)
    expected = computed(plain, lambda batch: policy_logprobs(plain, batch, dtype, 1.0, 64), batches)
    (result,) = on_ranks(1, work)
    assert isinstance(result, dict), result
    if plain.config.tie_word_embeddings and dtype == torch.bfloat16:  # there the gradients of its two uses are rounded
        name = "model.embed_tokens.weight"
        assert result.pop(name) != expected.pop(name)
    assert result == expected
