"""How are several sources of conversations read, and mixed: how many rows does each give, and in which order?

Each source is gone through in shuffled epochs of its own, and its rows are spread evenly over the stage.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from rl.config.mixture import SourceConfig
from rl.config.supervised import SftConfig
from sft.from_rollouts import chosen_rows, played_tasks
from sft.messages import BadRow
from sft.rows import Conversation, SftDataError, read_row
from sft.sources import Keys, read_conversations


def read_source(source: SourceConfig, keys: Keys, *, has_thinking: bool) -> list[Conversation]:
    """The conversations of a source that is a path or holds rollouts; `keys` are its in the configuration.

    `has_thinking` says whether the chat format has a think block. Raises `SftDataError`, and for rollouts what
    `sft.from_rollouts.played_tasks` raises.
    """
    if source.rollouts is not None:
        return list(_of_rollouts(source, has_thinking=has_thinking))
    return read_conversations(source, keys, has_thinking=has_thinking)


def _of_rollouts(source: SourceConfig, *, has_thinking: bool) -> Iterator[Conversation]:
    assert source.rollouts is not None
    num = 0
    for row in chosen_rows(played_tasks(source.rollouts), source.reward_min, source.per_task, source.choose):
        place = f"{source.rollouts}, {row['env_id']} seed {row['seed']}"
        try:
            yield read_row(row, place, has_thinking=has_thinking)
        except BadRow as error:
            raise SftDataError(f"{place}: {error}") from None
        num += 1
    if not num:
        raise SftDataError(
            f"{source.rollouts}: no rollout of a training task is sound and has a reward of at least"
            f" {source.reward_min:g}: lower reward_min, or remove the source"
        )


def rows_by_source(sizes: Sequence[int], sft: SftConfig) -> list[int]:
    """How many rows each source gives to the whole stage, if it has `sizes` rows; together a multiple of the batch.

    Sources with `epochs` alone give their rows that often. The others share the rest in proportion to their weights,
    none more than its `epochs` allow. Raises `SftDataError` for a length that the sources cannot fill so.
    """
    sources = sft.sources
    for source, size in zip(sources, sizes, strict=True):
        if not size:
            raise SftDataError(f"{source.name}: no conversation is left to train; see what was skipped or held out")
    whole = [max(1, round(s.epochs * size)) if s.epochs else 0 for s, size in zip(sources, sizes, strict=True)]
    counts = [0 if source.weight else most for source, most in zip(sources, whole, strict=True)]
    total = _num_rows(sizes, counts, sft)
    if sum(counts) > total:
        raise SftDataError(
            f"sft.data: sources with epochs alone have {sum(counts):,} rows, and sft.num_steps of {sft.batch_size} rows"
            f" only {total:,}: set num_steps to at least {-(-sum(counts) // sft.batch_size)}, or lower the epochs"
        )
    if sum(whole) < total and _is_rounded(sft):
        counts, total = _within(whole, counts, total, sft.batch_size)
    weights = [source.weight or 0.0 for source in sources]
    while total > sum(counts):
        if not any(weights):
            raise SftDataError(_too_few(sum(whole), total, sft))
        shares = _shares(total - sum(counts), weights)
        over = [i for i, limit in enumerate(whole) if weights[i] and limit and shares[i] > limit]
        for i in over:
            counts[i], weights[i] = whole[i], 0.0
        if not over:
            counts = [mine + more for mine, more in zip(counts, shares, strict=True)]
    if 0 in counts:
        raise SftDataError(
            f"{sources[counts.index(0)].name}: the stage trains {total:,} rows, in which its weight has room for none:"
            " raise the weight or num_steps, or remove the source"
        )
    return counts


def _within(whole: Sequence[int], counts: list[int], total: int, batch_size: int) -> tuple[list[int], int]:
    """Counts and length, where whole steps would ask for more rows than there are, `whole`.

    Sources with `epochs` alone fill up the last step; without one, there is a step less.
    """
    if any(counts):
        return [mine + more for mine, more in zip(counts, _shares(total - sum(whole), counts), strict=True)], total
    return counts, max(1, sum(whole) // batch_size) * batch_size


def _too_few(most: int, total: int, sft: SftConfig) -> str:
    shorter = "lower num_epochs" if sft.num_steps is None else f"set num_steps to at most {most // sft.batch_size}"
    if most < sft.batch_size:
        shorter = f"set batch_size to at most {most}"
    return (
        f"sft.data: with their epochs the sources have {most:,} rows, and the stage trains {total:,}: raise epochs, or"
        f" {shorter}"
    )


def _is_rounded(sft: SftConfig) -> bool:
    """Whether the sources are to give all that their epochs allow, so that only whole steps may ask for more."""
    weighted = [source for source in sft.sources if source.weight]
    return sft.num_steps is None and all((source.epochs or 0.0) >= (sft.num_epochs or 0.0) for source in weighted)


def _num_rows(sizes: Sequence[int], counts: Sequence[int], sft: SftConfig) -> int:
    """Rows of the whole stage; `counts` are those of the sources with `epochs` alone."""
    if sft.num_steps is not None:
        return sft.num_steps * sft.batch_size
    weighted = sum(size for source, size in zip(sft.sources, sizes, strict=True) if source.weight)
    num = sum(counts) + (sft.num_epochs or 0.0) * weighted
    return max(1, math.ceil(num / sft.batch_size)) * sft.batch_size


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` cut in proportion to the weights, the largest remainders rounded up."""
    exact = total * np.array(weights, float) / sum(weights)
    shares = np.floor(exact).astype(int)
    for i in np.argsort(shares - exact, kind="stable")[: total - shares.sum()]:
        shares[i] += 1
    return shares.tolist()


def drawn(parts: Sequence[int], counts: Sequence[int], seed: int) -> np.ndarray:
    """Indices of rows in the order in which they are drawn: of source `part`, `counts[part]` of them.

    `parts` tells the source of each row. Row k of n of a source stands at the place (k + 1/2) / n of the stage.
    """
    rows: list[np.ndarray] = []
    places: list[np.ndarray] = []
    of_source = np.array(parts)
    for part, count in enumerate(counts):
        own = np.flatnonzero(of_source == part)
        rng = np.random.default_rng([seed, 0x0DE, part])
        epochs = [rng.permutation(own) for _ in range(math.ceil(count / len(own)))]
        rows.append(np.concatenate(epochs)[:count])
        places.append((np.arange(count) + 0.5) / count)
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]
