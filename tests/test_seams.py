"""Adding an algorithm or a per-token column takes one class and one line of a dict. This module adds one of each.

The other seams are shown in the same way: a chat format in test_chat_formats.py, a number format in
test_number_formats.py, a sink in test_sinks.py, a transport in test_transports.py.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from rl.algorithms import ALGORITHMS
from rl.algorithms.algorithm import Advantages, Algorithm, Measure, TokenLoss, TokenView
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import dump_config, load_config
from rl.data_types import Group
from rl.engine.columns import COLUMNS
from rl.learner.batch_loss import batch_loss, mean
from rl.learner.batching import make_batches
from rl.learner.samples import make_samples
from rl.preflight import preflight
from rl.tokens import Tokens
from tests.makers import group_of, make_config, make_rollout, make_task, make_turn

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

STORE, MATH = "tools/Store-v0", "math/Arithmetic-v0"


class Rank:
    """How many tokens were likelier than the sampled one, and itself."""

    engine_arguments: Mapping[str, Any] = {}

    def read(self, output: "CompletionOutput") -> Sequence[int]:
        entries = zip(output.token_ids, output.logprobs or (), strict=True)
        return [entry[token].rank or 0 for token, entry in entries if entry]


class Surprise(Algorithm):
    """Trains on tokens of a low rank only: nobody asked for it."""

    algorithm: Literal["surprise"] = "surprise"
    rank_min: int = 2
    """Tokens of a smaller rank leave the loss."""
    needs: ClassVar[frozenset[str]] = frozenset({"rank"})

    def advantages(self, groups: Sequence[Group]) -> list[Advantages]:
        return [tuple(rollout.reward for rollout in group.rollouts) for group in groups]

    def token_loss(self, view: TokenView) -> TokenLoss:
        kept_BT = view.loss_mask_BT & (view.columns["rank"] >= self.rank_min)
        loss_BT = torch.where(kept_BT, -view.logprobs_BT * view.advantages_BT, 0.0)
        share = Measure(kept_BT.sum().double(), view.loss_mask_BT.sum().double())
        return TokenLoss(loss_BT, {"surprising": share})


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "surprise", Surprise)
    monkeypatch.setitem(COLUMNS, "rank", Rank())


def make_experiment(loss: object = "grpo", **changes: Any) -> ExperimentConfig:
    return make_config(environments={MATH: {}, STORE: {"loss": loss}}, **changes)


def two_tokens_each(rewards: Sequence[float], ordinal: int, env_id: str) -> Group:
    task, turns = make_task(ordinal, env_id), (make_turn(reply_ids=(3, 4)),)
    return group_of(*(make_rollout(reward, task=task, member=n, turns=turns) for n, reward in enumerate(rewards)))


def with_ranks(group: Group, ranks: Sequence[int]) -> Group:
    def ranked(tokens: Tokens) -> Tokens:
        return Tokens.make(tokens.ids, tokens.sampled, {**tokens.columns, "rank": np.array(ranks, np.int32)})

    rollouts = [
        replace(rollout, turns=tuple(replace(turn, reply=ranked(turn.reply)) for turn in rollout.turns))
        for rollout in group.rollouts
    ]
    return replace(group, rollouts=tuple(rollouts))


def test_an_environment_names_its_own_algorithm_in_yaml_and_its_mistakes_are_told(tmp_path: Path) -> None:
    yaml = tmp_path / "experiment.yaml"
    config = make_experiment({"algorithm": "surprise", "rank_min": 3})
    yaml.write_text(dump_config(config))
    assert load_config(yaml) == config
    assert config.algorithm_of(STORE) == Surprise(rank_min=3)
    assert config.algorithm_of(MATH) == config.loss
    with pytest.raises(ConfigError, match=r"environments\.tools/Store-v0\.loss\.rank_max"):
        load_config(yaml, [f"environments.{STORE}.loss.rank_max=3"])
    with pytest.raises(ConfigError, match="mopd or surprise"):
        load_config(yaml, [f"environments.{STORE}.loss=ppo"])


def test_the_column_that_an_algorithm_needs_reaches_its_loss_and_no_other() -> None:
    config = make_experiment("surprise")
    assert config.columns == ("logprob", "rank")
    groups = [two_tokens_each([1.0, 0.0], 0, MATH), with_ranks(two_tokens_each([1.0, 0.5], 1, STORE), [1, 4])]
    samples = make_samples(groups, config.algorithm_of)
    (batch,) = make_batches(samples, 100, 0)
    assert batch.columns["rank"].dtype == torch.int32
    assert batch.columns["rank"][2:].tolist() == [[0, 0, 1, 4]] * 2
    logprobs_BT = batch.columns["logprob"].clone().requires_grad_()
    loss, measures = batch_loss(logprobs_BT, torch.zeros_like(logprobs_BT), batch, config.algorithm_of, 0)
    # on policy GRPO gives -A a token, with advantages 1 and -1: nothing; of Store's 4 tokens 2 are left, at -0.75 each
    assert loss.item() == pytest.approx((1.0 * 0.75 + 0.5 * 0.75) / 8)
    assert mean(measures, "surprising") == 0.5
    assert mean(measures, "clip_fraction") == 0.0


def test_a_column_that_nobody_gives_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(COLUMNS, "rank")
    (tmp_path / "config.json").write_text("{}")
    config = make_experiment("surprise", policy={"path": tmp_path})
    with pytest.raises(ConfigError, match="needs the token columns rank, which the engine does not give"):
        preflight(config)


@pytest.mark.slow
def test_the_engine_gives_the_column(tmp_path: Path) -> None:
    from rl.engine.vllm_core import VllmEngine
    from tests.test_engine import MAX_TOKENS, prompt, random_policy, sampling

    random_policy(tmp_path, seed=0)
    policy = {"path": tmp_path, "max_tokens": MAX_TOKENS}
    config = make_experiment("surprise", policy=policy, rollout={"max_in_flight": 12, "kv_cache_gib": 0.25})
    engine = VllmEngine(tmp_path, config, lockstep_steps=0)
    try:
        (lane,) = engine.open_lanes(1)
        reply = asyncio.run(lane.sample(prompt(0), sampling(0, stop_ids=()))).tokens
        ranks, logprobs = reply.columns["rank"], reply.columns["logprob"]
        assert len(ranks) == len(reply) == 64
        assert ranks.min() >= 1 and ranks.max() > 1
        assert logprobs[ranks == 1].mean() > logprobs[ranks > 1].mean()
    finally:
        engine.shutdown()
