"""How are a step's rows computed? Forward and backward passes over this rank's micro-batches, without the optimiser."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl.algorithms.algorithm import Measure
from rl.config.experiment import ExperimentConfig
from rl.data_types import Batch, Sample
from rl.learner.batch_loss import Measures, added, batch_loss, scaled, summed_over
from rl.learner.batching import to_device
from rl.learner.replay import RouteReplay
from rl.learner.router import RouterBalancer
from rl.learner.rows import Rows
from rl.learner.sharding import after_an_error, exchange_with, into_slices
from rl.ranks import Ranks

Score = Callable[[Batch], tuple[Tensor, Tensor]]
"""Logprobs and entropies of a batch under a policy, as `rl.learner.forward.policy_logprobs` returns them."""


class Passes:
    """Computes the gradient of a step and its measures.

    `reference` scores under the policy that training started from; None if no algorithm reads that. `replay` is None
    if routers choose for themselves. `cut` is `rl.learner.batching.make_batches` for this policy.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        score: Score,
        reference: Score | None,
        balancer: RouterBalancer,
        replay: RouteReplay | None,
        ranks: Ranks,
        device: torch.device,
        cut: Callable[..., list[Batch]],
    ) -> None:
        self._config, self._score, self._reference = config, score, reference
        self._replay, self._ranks, self._device = replay, ranks, device
        self._counters: list[RouterBalancer | RouteReplay] = [balancer] if replay is None else [balancer, replay]
        self._cut = cut

    def run(self, rows: Rows, version: int) -> Measures:
        """Add up the gradients of the rows to be trained in the parameters; returns the measures of all rows.

        The total of `num_tokens` are the tokens that went through the model, on all ranks, without padding.
        `version` is that of the weights. Raises as `batch_loss`, and `SampleTooLongError`.
        """
        measured, trained = self._batches(rows.measured, rows), self._batches(rows.trained, rows)
        try:
            # First: a backward pass comes last, after which sharded weights are in slices, as the optimiser needs them.
            measures = scaled(self._measure(measured, version), rows.measured_weight)
            into_slices(self._score)  # else layers that are computed again find weights as the first pass did not
            for number, batch in enumerate(trained):
                is_last = self._config.learner.exchange != "step" or number == len(trained) - 1
                measures = added(measures, self._train(batch, version, is_last=is_last))
        except Exception:
            after_an_error(self._score)
            raise
        num_tokens = torch.tensor(sum(map(_num_tokens, (*measured, *trained))), dtype=torch.float64)
        return summed_over(self._ranks, added(measures, {"num_tokens": Measure(num_tokens, torch.ones(()))}))

    def _batches(self, samples: Sequence[Sample], rows: Rows) -> list[Batch]:
        batches = self._cut(samples, totals=(rows.num_loss_tokens, rows.num_loss_rows))
        return [to_device(batch, self._device) for batch in batches]

    @torch.no_grad()
    def _measure(self, batches: Sequence[Batch], version: int) -> Measures:
        for counter in self._counters:
            counter.is_measuring = True
        measures: Measures = {}
        for batch in batches:
            measures = added(measures, self._loss(batch, version)[1])
        for counter in self._counters:
            counter.is_measuring = False
        return measures

    def _train(self, batch: Batch, version: int, *, is_last: bool) -> Measures:
        """Add this micro-batch's gradients; `is_last` is that of `rl.learner.sharding.exchange_with`."""
        loss, measures = self._loss(batch, version)
        exchange_with(self._score, is_last=is_last)
        loss.backward()
        return measures

    def _loss(self, batch: Batch, version: int) -> tuple[Tensor, Measures]:
        is_filler = not batch.env_ids
        counts = batch.attention_mask_BT if batch.tree is None else batch.tree.num_rows_N
        if self._replay is not None:
            self._replay.use(batch)
        self._count(None if is_filler else counts)
        logprobs_BT, entropy_BT = self._score(batch)
        self._count(None)  # routers that are called again for the gradient must not count again
        reference_BT = self._reference_logprobs(batch)
        with self._ranks.together():
            return batch_loss(logprobs_BT, entropy_BT, batch, self._config.algorithm_of, version, reference_BT)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> Tensor | None:
        return None if self._reference is None else self._reference(batch)[0]

    def _count(self, counts: Tensor | None) -> None:
        for counter in self._counters:
            counter.counts = counts


def _num_tokens(batch: Batch) -> int:
    if not batch.env_ids:
        return 0
    return int(batch.attention_mask_BT.sum()) if batch.tree is None else batch.tree.ids_1N.numel()
