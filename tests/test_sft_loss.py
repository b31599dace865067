"""The supervised loss without padding and with prefixes computed once has the gradient of transformers' own loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rl.learner.policy import load_policy
from rl.ranks import ALONE
from sft.loss import RowLoss
from sft.precision import load_trained
from tests.families import write_policy
from tests.test_sft_adapter import ADAPTER
from tests.test_sft_stage import stage

pytestmark = pytest.mark.slow  # imports TRL
CPU = torch.device("cpu")


def micro_batch() -> dict[str, torch.Tensor]:
    """Rows that share a prompt, or a reply's beginning too; one trains nothing, one begins with what it trains."""
    trained, said = [5, 6, 7, 8], [20, 21, 22, 23, 24, 25, 26]
    rows = [
        ([*said, *trained], 7),
        ([*said, 5, 6, 9], 7),
        ([*said, 30, 31, *trained, 32], 9),
        ([40, 41, 42], 3),
        ([50, 51], 0),
        ([*said, *trained], 7),
    ]
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    return collate([{"input_ids": ids, "labels": [-100] * first + ids[first:]} for ids, first in rows])


def rows_of(inputs: dict[str, torch.Tensor], begin: int, end: int) -> dict[str, torch.Tensor]:
    """Some rows as a micro-batch of their own."""
    longest = int(inputs["attention_mask"][begin:end].sum(dim=1).max())
    return {name: value[begin:end, :longest] for name, value in inputs.items()}


def loaded(policy: Path, tmp_path: Path, **sections: Any) -> tuple[Any, RowLoss | None]:
    adapter = sections.pop("adapter", None)
    config = stage(tmp_path / "run", {"path": str(policy), "max_tokens": 200}, adapter=adapter)
    config = config.model_validate({**config.model_dump(mode="json"), **sections})
    assert config.sft is not None
    model, _, loss = load_trained(config, policy, None, ALONE, CPU, config.sft.adapter)
    return model, loss


def without_router_loss(policy: Path) -> Path:
    config = json.loads((policy / "config.json").read_text()) | {"router_aux_loss_coef": 0.0}
    (policy / "config.json").write_text(json.dumps(config))
    return policy


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shares_prefixes", [True, False])
@pytest.mark.parametrize("kind", ["nemotron", "llama", "qwen3_moe"])
def test_the_gradient_is_that_of_transformers(kind: str, shares_prefixes: bool, tmp_path: Path) -> None:
    policy = without_router_loss(write_policy(kind, tmp_path / "policy"))
    model, loss = loaded(policy, tmp_path, learner={"share_prefixes": shares_prefixes})
    assert loss is not None and loss.takes_trees == shares_prefixes
    inputs = micro_batch()
    mine = loss(inputs)
    plain = load_policy(policy)
    num_tokens = int((inputs["labels"][:, 1:] >= 0).sum())
    theirs = plain(**inputs, num_items_in_batch=torch.tensor(num_tokens)).loss * num_tokens
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected, found = gradients(plain, theirs), gradients(model, mine)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 2e-5 * gradient.norm().clamp(min=1e-3), name


@pytest.mark.parametrize("kind", ["nemotron", "llama"])
def test_by_conversation_it_is_the_sum_of_the_means_of_rows_in_whatever_micro_batches(
    kind: str, tmp_path: Path
) -> None:
    model, loss = loaded(write_policy(kind, tmp_path / "policy"), tmp_path)
    assert loss is not None
    inputs = micro_batch()
    plain, means = load_policy(tmp_path / "policy"), []
    for row in range(len(inputs["input_ids"])):
        num = int(inputs["attention_mask"][row].sum())
        ids, labels = inputs["input_ids"][row, :num], inputs["labels"][row, 1:num]
        logprobs_TV = plain(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        said = [-logprobs_TV[place, token] for place, token in enumerate(labels.tolist()) if token >= 0]
        means += [torch.stack(said).mean()] if said else []
    assert len(means) == 5  # of six rows, one of which trains nothing
    mine, theirs = loss(inputs, by_conversation=True), torch.stack(means).sum()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected, found = gradients(plain, theirs), gradients(model, mine)
    cut = [loss(rows_of(inputs, *rows), by_conversation=True) for rows in ((0, 1), (1, 4), (4, 6))]
    in_parts = gradients(model, torch.stack(cut).sum())
    for name, gradient in expected.items():
        for other in (found, in_parts):
            assert (other[name] - gradient).norm() < 2e-5 * gradient.norm().clamp(min=1e-3), name


def test_an_adapter_is_trained_through_it(tmp_path: Path) -> None:
    policy = without_router_loss(write_policy("qwen3_moe", tmp_path / "policy"))
    model, loss = loaded(policy, tmp_path, adapter={**ADAPTER, "experts": True})
    assert loss is not None
    found = gradients(model, loss(micro_batch()))
    assert found and all("lora" in name for name in found)
    assert any(gradient.any() for gradient in found.values())


def test_what_needs_another_loss_or_padded_rows_gets_it(tmp_path: Path) -> None:
    policy = write_policy("qwen3", tmp_path / "policy")
    config = Qwen3Config.from_pretrained(policy)
    config.attention_dropout = 0.5
    Qwen3ForCausalLM(config).save_pretrained(policy)
    _, loss = loaded(policy, tmp_path)
    assert loss is not None and not loss.takes_trees  # trees have no dropout
    config.logits_scaling = 2.0
    config.save_pretrained(policy)
    assert loaded(policy, tmp_path)[1] is None
    assert loaded(write_policy("qwen3_moe", tmp_path / "routed"), tmp_path)[1] is None  # its routers have a loss


def test_a_micro_batch_that_trains_nothing_has_no_gradient(tmp_path: Path) -> None:
    model, loss = loaded(write_policy("llama", tmp_path / "policy"), tmp_path)
    inputs = micro_batch()
    inputs["labels"][:] = -100
    assert loss is not None
    assert not any(gradient.any() for gradient in gradients(model, loss(inputs)).values())


def test_another_start_takes_trees_if_the_first_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is another one by then, and what is tried on it may turn out otherwise."""
    policy = write_policy("nemotron", tmp_path / "policy")
    config = stage(tmp_path / "run", {"path": str(policy), "max_tokens": 200})
    monkeypatch.setattr("sft.precision.let_take_trees", lambda *_: pytest.fail("it was tried"))
    first, second = (load_trained(config, policy, None, ALONE, CPU, takes_trees=takes) for takes in (True, False))
    for (_, _, loss), takes in ((first, True), (second, False)):
        assert loss is not None and loss.takes_trees == takes
    assert first[2] is not None and second[2] is not None
    assert first[2](micro_batch()).item() == pytest.approx(second[2](micro_batch()).item(), rel=1e-5)
