"""Which token rows does a rollout become for training?

Tokens are append-only: what the engine saw and sampled is copied, never tokenised again. As long as each turn's prompt
begins with the previous turn's prompt and reply, all turns are one row; where the chat template rewrote the past (for
example dropped old reasoning), a new row begins.
"""

import math
from collections.abc import Iterable, Sequence

from rl.algorithms.advantages import group_advantages
from rl.config.experiment import LossConfig
from rl.data_types import Group, Rollout, Sample, Turn


class TurnError(ValueError):
    """A turn is not what an engine may hand over."""


def make_samples(groups: Iterable[Group], loss: LossConfig) -> list[Sample]:
    """All training rows of a step, in the order of groups, rollouts and turns."""
    return [sample for group in groups for sample in group_samples(group, loss)]


def group_samples(group: Group, loss: LossConfig) -> list[Sample]:
    """The training rows of one group; rollouts that do not count give none.

    Raises `RewardError` (`rl.algorithms.advantages`) and `TurnError`.
    """
    advantages = group_advantages(group, loss)
    return [
        sample
        for rollout, advantage in zip(group.rollouts, advantages, strict=True)
        if advantage is not None
        for sample in rollout_samples(rollout, advantage)
    ]


def rollout_samples(rollout: Rollout, advantage: float) -> list[Sample]:
    """The training rows of one rollout; every row gets the rollout's advantage.

    A token is in the loss when the policy sampled it; prompts, tool results and tokens forced by the budget are not.
    Rows without any such token are left out. Raises `TurnError` for turns that contradict themselves.
    """
    rows: list[_Row] = []
    for index, turn in enumerate(rollout.turns):
        _check(turn, where=f"environment {rollout.task.env_id!r}, task {rollout.task.ordinal}, turn {index}")
        if not rows or not rows[-1].goes_on_in(turn):
            rows.append(_Row())
        rows[-1].append(turn)
    return [row.sample(rollout.task.env_id, advantage) for row in rows if any(row.loss_mask)]


class _Row:
    """A training row while turns are joined to it."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.loss_mask: list[bool] = []
        self.sampler_logprobs: list[float] = []
        self.policy_versions: list[int] = []

    def goes_on_in(self, turn: Turn) -> bool:
        return list(turn.prompt_ids[: len(self.token_ids)]) == self.token_ids

    def append(self, turn: Turn) -> None:
        new_prompt_ids = turn.prompt_ids[len(self.token_ids) :]
        self._extend(
            new_prompt_ids, [False] * len(new_prompt_ids), [0.0] * len(new_prompt_ids), [-1] * len(new_prompt_ids)
        )
        sampled = [not forced for forced in turn.forced_mask]
        self._extend(
            turn.reply_ids,
            sampled,
            [logprob if keep else 0.0 for logprob, keep in zip(turn.reply_logprobs, sampled, strict=True)],
            [version if keep else -1 for version, keep in zip(turn.policy_versions, sampled, strict=True)],
        )

    def _extend(
        self, token_ids: Sequence[int], mask: Sequence[bool], logprobs: Sequence[float], versions: Sequence[int]
    ) -> None:
        self.token_ids.extend(token_ids)
        self.loss_mask.extend(mask)
        self.sampler_logprobs.extend(logprobs)
        self.policy_versions.extend(versions)

    def sample(self, env_id: str, advantage: float) -> Sample:
        return Sample(
            env_id=env_id,
            token_ids=tuple(self.token_ids),
            loss_mask=tuple(self.loss_mask),
            sampler_logprobs=tuple(self.sampler_logprobs),
            policy_versions=tuple(self.policy_versions),
            advantage=advantage,
        )


def _check(turn: Turn, where: str) -> None:
    lengths = [len(turn.reply_ids), len(turn.reply_logprobs), len(turn.forced_mask), len(turn.policy_versions)]
    if len(set(lengths)) != 1:
        raise TurnError(
            f"{where}: reply_ids, reply_logprobs, forced_mask and policy_versions have lengths {lengths}; the engine"
            " must report one entry a token"
        )
    if not turn.prompt_ids:
        raise TurnError(f"{where}: the prompt is empty; the first reply token needs at least one token before it")
    for position, (logprob, forced) in enumerate(zip(turn.reply_logprobs, turn.forced_mask, strict=True)):
        if not forced and not math.isfinite(logprob):
            raise TurnError(
                f"{where}: sampled token {position} has logprob {logprob}; the engine must report finite logprobs of"
                " the distribution it sampled from (logprobs_mode='processed_logprobs')"
            )
