"""How is the loss of one micro-batch computed, and which measures come with it?"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from rl.algorithms.algorithm import Algorithm, Measure, TokenView
from rl.algorithms.corrections import check_finite, total
from rl.algorithms.kl import k3
from rl.data_types import Batch
from rl.ranks import Ranks

Measures = Mapping[str, Measure]


def batch_loss(
    logprobs_BT: Tensor,
    entropy_BT: Tensor,
    batch: Batch,
    algorithm_of: Callable[[str], Algorithm],
    trained_version: int,
    reference_logprobs_BT: Tensor | None = None,
) -> tuple[Tensor, Measures]:
    """The loss of one micro-batch (a scalar with gradient) and its measures.

    Each row is trained by the algorithm of its environment. The terms of all tokens are added up and divided by
    `batch.num_loss_tokens`, the whole step's count. Besides what the algorithms measure: `mismatch` and
    `mismatch_stale`, exp|delta logp| between learner and engine over loss tokens that `trained_version` sampled and
    over those that an older one did; `mismatch_kl`, k3 of KL(engine || learner); `entropy`, nats.

    A batch of padding (`rl.learner.batching`) has loss 0, with gradients of 0, and no measures.

    Raises `NonFiniteError` when a logprob under the loss mask is NaN or infinite.
    """
    if not batch.env_ids:
        return 0.0 * logprobs_BT.sum(), {}
    mask_BT, engine_BT = batch.loss_mask_BT, batch.columns["logprob"]
    check_finite(logprobs_BT, mask_BT, "learner")
    check_finite(engine_BT, mask_BT, "engine")
    loss = torch.zeros((), device=logprobs_BT.device)
    measures: dict[str, Measure] = {}
    for algorithm, rows in _rows_by_algorithm(batch, algorithm_of):
        reference_BT = reference_logprobs_BT if algorithm.needs_reference else None
        part = algorithm.token_loss(_view(batch, rows, logprobs_BT, entropy_BT, reference_BT))
        loss = loss + part.loss_BT.sum() / batch.num_loss_tokens
        measures = added(measures, part.measures)
    delta_BT = torch.where(mask_BT, logprobs_BT.detach() - engine_BT, 0.0)
    fresh_BT = mask_BT & (batch.columns["version"] == trained_version)
    ratio_BT = delta_BT.double().abs().exp()  # float32 overflows at 89 nats, which a single token may have
    own = {
        "mismatch": _measure(ratio_BT, fresh_BT),
        "mismatch_stale": _measure(ratio_BT, mask_BT & ~fresh_BT),
        "mismatch_kl": _measure(k3(delta_BT), mask_BT),
        "entropy": _measure(entropy_BT, mask_BT),
        "loss": Measure(total(loss), torch.ones((), dtype=torch.float64)),
    }
    return loss, added(measures, own)


def _view(
    batch: Batch, rows: slice | list[int], logprobs_BT: Tensor, entropy_BT: Tensor, reference_BT: Tensor | None
) -> TokenView:
    return TokenView(
        logprobs_BT=logprobs_BT[rows],
        loss_mask_BT=batch.loss_mask_BT[rows],
        advantages_BT=batch.advantages_BT[rows],
        columns={name: column[rows] for name, column in batch.columns.items()},
        reference_logprobs_BT=None if reference_BT is None else reference_BT[rows],
        entropy_BT=entropy_BT[rows],
        num_loss_tokens=batch.num_loss_tokens,
        num_loss_rows=batch.num_loss_rows,
    )


def added(measures: Measures, more: Measures) -> dict[str, Measure]:
    """The measures of both together."""
    names = dict.fromkeys((*measures, *more))
    nothing = Measure(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    pairs = {name: (measures.get(name, nothing), more.get(name, nothing)) for name in names}
    return {name: Measure(a.total + b.total, a.weight + b.weight) for name, (a, b) in pairs.items()}


def scaled(measures: Measures, weight: float) -> dict[str, Measure]:
    """The measures of rows each of which stands for so many."""
    return {name: Measure(one.total * weight, one.weight * weight) for name, one in measures.items()}


def summed_over(ranks: Ranks, measures: Measures) -> Measures:
    """The measures of all ranks together, added up in the ranks' order, so that all have the same sums."""
    if ranks.num == 1:
        return measures
    told = {name: (measure.total.item(), measure.weight.item()) for name, measure in measures.items()}
    together: Measures = {}
    for own in ranks.gather(told):
        together = added(together, {name: Measure(_double(a), _double(b)) for name, (a, b) in own.items()})
    return together


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def mean(measures: Measures, name: str) -> float | None:
    """The mean of a measure; None where nothing was measured."""
    measure = measures.get(name)
    if measure is None or not measure.weight.item():
        return None
    return measure.total.item() * (1.0 / measure.weight.item())


def _rows_by_algorithm(
    batch: Batch, algorithm_of: Callable[[str], Algorithm]
) -> Iterator[tuple[Algorithm, slice | list[int]]]:
    algorithms = [algorithm_of(env_id) for env_id in batch.env_ids]
    if all(algorithm == algorithms[0] for algorithm in algorithms):
        yield algorithms[0], slice(None)  # views of the whole batch, without copies
        return
    left = list(range(len(algorithms)))
    while left:
        algorithm = algorithms[left[0]]
        rows = [row for row in left if algorithms[row] == algorithm]
        left = [row for row in left if row not in rows]
        yield algorithm, rows


def _measure(values_BT: Tensor, mask_BT: Tensor) -> Measure:
    return Measure(total(values_BT[mask_BT]), total(mask_BT))
