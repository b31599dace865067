"""How are rollouts turned into samples, the token rows for training?

Tokens are append-only: prompts and sampled tokens are copied and never tokenised again. All turns of one context form
one row. If a context begins anew (a chat template rewrote the past), a new row begins.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rl.algorithms.algorithm import Advantages, Algorithm
from rl.data_types import Group, Rollout, Sample, Turn
from rl.tokens import ADVANTAGE, COLUMN_TYPES, CONTEXT_COLUMNS, ROUTES, Tokens


@dataclass(frozen=True, slots=True)
class JoinedSamples:
    """The rows of a step on their way to the learner, as one struct of arrays: pickling costs by the array, not by the
    token. A column that some row lacks is 0 there, as in a batch.
    """

    tokens: Tokens
    lengths: tuple[int, ...]
    env_ids: tuple[str, ...]
    advantages: tuple[float, ...]

    @classmethod
    def join(cls, samples: Sequence[Sample]) -> "JoinedSamples":
        return cls(
            Tokens.joined([sample.tokens for sample in samples]) if samples else Tokens.unsampled([]),
            tuple(len(sample.tokens) for sample in samples),
            tuple(sample.env_id for sample in samples),
            tuple(sample.advantage for sample in samples),
        )

    def cut(self) -> list[Sample]:
        return list(map(Sample, self.env_ids, self.tokens.cut(self.lengths), self.advantages))


NEEDED_BY = {ROUTES: "learner.routing_replay"}
"""Keys that ask for a column."""


class TurnError(ValueError):
    """A turn is not what an engine may hand over."""


def make_samples(
    groups: Sequence[Group], algorithm_of: Callable[[str], Algorithm], needs: Iterable[str] = ()
) -> list[Sample]:
    """All training rows of a step, in the order of groups, rollouts and turns. Rollouts that do not count give none.

    `algorithm_of` gives the algorithm of an environment; each sees all of its groups at once. `needs` are columns that
    the learner reads, besides those of the algorithms. Raises `RewardError` (`rl.algorithms.advantages`) and
    `TurnError`.
    """
    advantages = group_advantages(groups, algorithm_of)
    samples: list[Sample] = []
    for group in groups:
        algorithm = algorithm_of(group.task.env_id)
        for rollout, advantage in zip(group.rollouts, advantages[group.group_id], strict=True):
            if advantage is not None:
                by_turn = algorithm.turn_advantages(rollout, advantage)
                samples += rollout_samples(rollout, advantage, (*algorithm.needs, *needs), by_turn)
    return _all_by_token(samples) if any(ADVANTAGE in sample.tokens.columns for sample in samples) else samples


def group_advantages(groups: Sequence[Group], algorithm_of: Callable[[str], Algorithm]) -> dict[str, Advantages]:
    """The advantages of each group, by its id."""
    by_algorithm: list[tuple[Algorithm, list[Group]]] = []
    for group in groups:
        algorithm = algorithm_of(group.task.env_id)
        own = next((members for one, members in by_algorithm if one == algorithm), None)
        own.append(group) if own is not None else by_algorithm.append((algorithm, [group]))
    return {
        group.group_id: advantages
        for algorithm, own in by_algorithm
        for group, advantages in zip(own, algorithm.advantages(own), strict=True)
    }


def rollout_samples(
    rollout: Rollout, advantage: float, needs: Iterable[str] = (), turn_advantages: Sequence[float] = ()
) -> list[Sample]:
    """The training rows of one rollout. Every row gets the rollout's advantage; if some of `turn_advantages` are
    others, also a column of them. Rows without a sampled token are left out. `needs` are the columns that are
    read besides those that every reply has.

    Raises `TurnError` for turns that contradict themselves.
    """
    contexts: list[list[Tokens]] = []
    differs = any(one != advantage for one in turn_advantages)
    for index, turn in enumerate(rollout.turns):
        _check(turn, needs, where=f"environment {rollout.task.env_id!r}, task {rollout.task.ordinal}, turn {index}")
        if turn.is_start or not contexts:
            contexts.append([])
        reply = _only_sampled(turn.reply)
        contexts[-1] += [turn.prompt, _with_advantage(reply, turn_advantages[index]) if differs else reply]
    rows = [Tokens.joined(parts) for parts in contexts]
    return [Sample(rollout.task.env_id, row, advantage) for row in rows if row.sampled.any()]


def _with_advantage(tokens: Tokens, advantage: float) -> Tokens:
    column = np.full(len(tokens), advantage, np.float32)
    return Tokens.make(tokens.ids, tokens.sampled, {**tokens.columns, ADVANTAGE: column})


def _all_by_token(samples: Sequence[Sample]) -> list[Sample]:
    """A column that one row of a step has is 0 in rows that lack it, so all get it."""
    return [
        sample
        if ADVANTAGE in sample.tokens.columns
        else replace(sample, tokens=_with_advantage(sample.tokens, sample.advantage))
        for sample in samples
    ]


def _only_sampled(reply: Tokens) -> Tokens:
    """The reply with 0 where the policy did not sample the token, but in columns of all tokens."""
    if np.count_nonzero(reply.sampled) == len(reply):
        return reply
    columns = {
        name: column if name in CONTEXT_COLUMNS else _zeroed(column, ~reply.sampled)
        for name, column in reply.columns.items()
    }
    return Tokens.make(reply.ids, reply.sampled, columns)


def _zeroed(column: np.ndarray, where_T: np.ndarray) -> np.ndarray:
    zeroed = column.copy()
    zeroed[where_T] = 0
    return zeroed


def _check(turn: Turn, needs: Iterable[str], where: str) -> None:
    if missing := [name for name in (*COLUMN_TYPES, *needs) if name not in turn.reply.columns]:
        needed = (f"{name}, which {NEEDED_BY.get(name, 'its algorithm')} needs" for name in missing)
        raise TurnError(f"{where}: the reply has no column {'; '.join(needed)}")
    if turn.is_start and not len(turn.prompt):
        raise TurnError(f"{where}: the prompt is empty; the first reply token needs at least one token before it")
    broken = turn.reply.sampled & ~np.isfinite(turn.reply.columns["logprob"])
    if broken.any():
        position = int(broken.argmax())
        raise TurnError(
            f"{where}: sampled token {position} has logprob {turn.reply.columns['logprob'][position]}; the engine must"
            " report finite logprobs of the distribution it sampled from (logprobs_mode='processed_logprobs')"
        )
