"""A policy in slices computes what the whole one does, and is loaded from the same files."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.data_types import Batch
from rl.learner.batching import make_batches
from rl.learner.forward import policy_logprobs
from rl.learner.policy import load_policy
from rl.learner.sharding import load_sharded_policy
from rl.policies import build_policy
from rl.ranks import Ranks, whole
from tests.families import write_policy
from tests.ranks import on_ranks
from tests.test_ranks import hashed, samples_of

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
