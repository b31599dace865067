"""DPO through trl: its losses and updates are those of the formula, and a stage that was stopped goes on bit by bit."""

import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from rl.chat.chat import load_chat
from rl.config.experiment import ExperimentConfig
from rl.config.preferences import DpoConfig
from rl.learner.policy import load_policy
from rl.policy_checks import check_policy
from sft.data import IGNORED_LABEL, Row
from sft.heldout import split_rows
from sft.pairs import PairRow, flat, read_pairs, token_pairs
from tests.families import write_policy
from tests.makers import make_config
from tests.test_sft_stage import steps_of

pytestmark = pytest.mark.slow  # imports TRL

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
BETA, SFT_COEFFICIENT, RATE = 0.3, 0.2, 1e-3


def pair(n: int) -> dict[str, Any]:
    """Every third pair has a call of a tool, whose result must not be trained."""
    wrong = [{"role": "assistant", "content": f"{n} or so, I guess"}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": n}}]}
    right = {"role": "assistant", "content": str(n + 1)}
    chosen = [right] if n % 3 else [call, {"role": "tool", "name": "add", "content": str(n + 1)}, right]
    tools = {} if n % 3 else {"tools": [TOOL]}
    return {"prompt": f"{n} + 1?", "chosen": chosen, "rejected": wrong, **tools}


def write_pairs(folder: Path, num: int = 6) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair(n)) + "\n" for n in range(num)))
    return path


def config_of(run_dir: Path, policy: Path, dpo: dict[str, Any], **sections: Any) -> ExperimentConfig:
    data = write_pairs(run_dir.parent, 6)
    keys = {"data": data, "heldout_share": 0, "batch_size": 6, "warmup_steps": 0, "learning_rate": RATE}
    keys |= {"beta": BETA, "sft_coefficient": SFT_COEFFICIENT, **dpo}
    return make_config(run_dir, policy={"path": policy, "max_tokens": 1000}, dpo=keys, **sections)


def rows_of(config: ExperimentConfig) -> list[PairRow]:
    assert config.policy.path is not None and config.dpo is not None
    chat = load_chat(config.policy.path, config.policy.chat)
    pairs = read_pairs(config.dpo, "dpo", has_thinking=chat.has_thinking)
    rows, _ = token_pairs(pairs, chat, config)
    return rows


def logprobs_of(model: Any, row: Row) -> torch.Tensor:
    """Of each token that is trained, by transformers alone: no padding, and no other row in the batch."""
    ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
    logprobs = functional.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
    trained = labels != IGNORED_LABEL
    return logprobs[trained, labels[trained]]


def expected(model: Any, reference: Any, rows: Sequence[PairRow]) -> dict[str, torch.Tensor]:
    """The measures of one step by the formula, equation 7 of https://arxiv.org/abs/2305.18290."""
    tokens = [logprobs_of(model, row) for row in flat(rows)]
    with torch.no_grad():
        before = torch.stack([logprobs_of(reference, row).sum() for row in flat(rows)]).view(-1, 2)
    sums = torch.stack([one.sum() for one in tokens]).view(-1, 2)
    margins = BETA * ((sums[:, 0] - before[:, 0]) - (sums[:, 1] - before[:, 1]))
    loss = -functional.logsigmoid(margins).mean() - SFT_COEFFICIENT * torch.cat(tokens[::2]).mean()
    chosen, rejected = sums.mean(dim=0)
    return {"loss": loss, "margin": margins.mean(), "chosen_logprob": chosen, "rejected_logprob": rejected}


def check(line: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    assert {name: line[name] for name in values} == pytest.approx(
        {name: value.item() for name, value in values.items()}, rel=1e-4, abs=2e-5
    )


@pytest.mark.parametrize(
    ("kind", "dpo", "learner"),
    [
        ("nemotron", {}, {}),
        ("llama", {}, {"share_prefixes": False}),
        ("llama", {"adapter": {"rank": 4}, "learning_rate": 1e-2}, {}),
        ("qwen3_moe", {}, {}),
    ],
    ids=["hybrid", "llama, padded", "llama, adapter", "experts with a loss of their routers"],
)
def test_the_measures_are_those_of_the_formula_before_and_after_a_step(
    kind: str, dpo: dict[str, Any], learner: dict[str, Any], tmp_path: Path
) -> None:
    from sft.dpo import run

    policy = write_policy(kind, tmp_path / "policy")
    configs = [config_of(tmp_path / str(num), policy, {"num_steps": num, **dpo}, learner=learner) for num in (1, 2)]
    after, twice = map(run, configs)  # a cosine schedule has its full rate at the first step
    rows, reference = rows_of(configs[0]), load_policy(policy)
    first, second = steps_of(twice)
    for line, model in ((first, reference), (second, load_policy(after))):
        values = expected(model, reference, rows)
        if kind == "qwen3_moe":
            del values["loss"]  # trl adds the loss of the routers
        check(line, values)
    assert second["margin"] > first["margin"] == pytest.approx(0, abs=1e-5)
    assert second["accuracy"] == 1.0
    assert first["tokens"] == sum(map(len, flat(rows)))


def test_a_step_is_that_of_adamw_on_the_formula(tmp_path: Path) -> None:
    from sft.dpo import run

    policy = write_policy("llama", tmp_path / "policy")
    config = config_of(tmp_path / "run", policy, {"num_steps": 1})
    model, reference = load_policy(policy), load_policy(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    expected(model, reference, rows_of(config))["loss"].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.step()
    found = load_policy(run(config)).state_dict()
    for name, tensor in model.state_dict().items():
        step, mine = tensor - before[name], found[name] - before[name]
        assert functional.cosine_similarity(step.flatten(), mine.flatten(), dim=0) > 0.999, name
        assert mine.norm() == pytest.approx(step.norm().item(), rel=1e-2), name


def test_micro_batches_change_nothing_but_rounding_and_held_out_pairs_are_measured(tmp_path: Path) -> None:
    from sft.dpo import run

    policy = write_policy("llama", tmp_path / "policy")
    dpo = {"num_steps": 2, "batch_size": 4, "heldout_share": 0.34, "heldout_every": 1, "sft_coefficient": 3}
    lines = []
    for tokens in (20_000, 1000):
        learner = {"tokens_per_micro_batch": tokens}
        lines.append(steps_of(run(config_of(tmp_path / str(tokens), policy, dpo, learner=learner))))
    whole, cut = lines
    assert [(line["step"], "loss" in line) for line in whole] == [
        (0, False),
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    exact = ("step", "tokens", "learning_rate")
    for one, other in zip(whole, cut, strict=True):
        values = {key: value for key, value in one.items() if "time" not in key and not key.endswith(("_s", "seconds"))}
        assert {key: other[key] for key in values} == pytest.approx(values, rel=1e-3, abs=1e-4)
        assert all(one.get(key) == other.get(key) for key in exact)
    assert whole[0]["heldout_margin"] == 0 != whole[-1]["heldout_margin"]
    config = config_of(tmp_path / "run", policy, dpo)
    _, heldout = split_rows(rows_of(config), 0.34, config.seed)
    model = load_policy(policy)
    tokens = torch.cat([logprobs_of(model, row.chosen) for row in heldout])
    assert whole[0]["heldout_loss"] == pytest.approx(math.log(2) - 3 * tokens.mean().item(), rel=1e-5)


def run_stage(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> Path:
    """Run the stage of the configuration; a signal comes in step `stop_at`."""
    import sft.dpo
    import sft.preferences
    import sft.reward_model
    from sft.progress import StepMetrics

    class Stopping(StepMetrics):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            super().on_log(args, state, control, logs, **more)
            if state.global_step == stop_at and logs and "loss" in logs:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sft.preferences, "StepMetrics", Stopping)
    return (sft.dpo if config.dpo else sft.reward_model).run(config)


def check_resume(run_dir: Path, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that is stopped after a step ends with the bytes and measures of one that was not."""
    from rl.stop import StopRequested

    configs = [config.model_copy(update={"run_dir": run_dir / name}) for name in ("whole", "stopped")]
    whole = run_stage(configs[0], monkeypatch)
    with pytest.raises(StopRequested):
        run_stage(configs[1], monkeypatch, stop_at=2)
    assert list(configs[1].run_dir.glob("*.partial/checkpoint-*"))
    resumed = run_stage(configs[1], monkeypatch)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    first, second = (
        [
            {key: value for key, value in line.items() if "time" not in key and key[-1] != "s"}
            for line in steps_of(folder)
        ]
        for folder in (whole, resumed)
    )
    assert first == second
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize(
    ("adapter", "precision"), [(None, "nvfp4"), ({"rank": 4}, "float32")], ids=["nvfp4", "adapter"]
)
def test_a_stage_that_was_stopped_goes_on_to_the_very_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, int] | None, precision: str
) -> None:
    policy = write_policy("nemotron", tmp_path / "policy")
    dpo = {"num_steps": 5, "batch_size": 2, "adapter": adapter, "heldout_share": 0.2, "heldout_every": 3}
    check_resume(tmp_path, config_of(tmp_path / "run", policy, dpo, precision=precision), monkeypatch)


def test_the_result_is_a_policy_that_reinforcement_learning_takes(tmp_path: Path) -> None:
    from sft.dpo import run

    policy = write_policy("nemotron", tmp_path / "policy")
    folder = run(config_of(tmp_path / "run", policy, {"num_steps": 1}, precision="bf16"))
    check_policy(folder, make_config(policy={"path": folder, "max_tokens": 1000}))
    before, after = (load_chat(path, "auto") for path in (policy, folder))
    assert (before.stop_ids, before.template) == (after.stop_ids, after.template)
    assert not list((tmp_path / "run").glob("*.partial"))


def test_only_replies_are_in_the_loss(tmp_path: Path) -> None:
    from sft.dpo import collate
    from sft.preferences import pair_dataset

    rows = rows_of(config_of(tmp_path / "run", write_policy("nemotron", tmp_path / "policy"), {}))
    inputs = collate(pair_dataset(rows[:2]).to_list(), pad_id=0)
    sides = [rows[0].chosen, rows[1].chosen, rows[0].rejected, rows[1].rejected]
    width = max(map(len, sides))
    for at, row in enumerate(sides):
        fill = [0] * (width - len(row))
        assert inputs["input_ids"][at].tolist() == [*row.input_ids, *fill]
        assert inputs["attention_mask"][at].tolist() == [1] * len(row) + fill
        assert inputs["completion_mask"][at].tolist() == [int(label >= 0) for label in row.labels] + fill
    assert DpoConfig(data=tmp_path).beta == 0.05
