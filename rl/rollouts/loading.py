"""How do workers load a policy version, and how is it known that they loaded what the learner published?"""

from collections.abc import Sequence
from dataclasses import replace

from rl.cluster.actors import Actor, ActorDied, Deadline, DeadlinePassed, Pending, wait_together
from rl.engine.protocol import EngineError
from rl.rollouts.worker import RolloutWorker
from rl.weights.source import Listener, Publication, WeightsLost, WeightSource


class WeightHashError(RuntimeError):
    """An engine loaded different bytes than the learner published."""


def begin_loading(
    published: Publication, workers: Sequence[tuple[Listener, Actor[RolloutWorker]]], deadline: Deadline
) -> tuple[WeightSource, list[Pending[str]]]:
    """What these workers load, with its hash, and their calls, which load it at the same time.

    If the learner sends meanwhile, all calls have ended. Raises `WeightsLost` if the learner is dead, or if one end of
    such a sending failed or hangs: the others wait for it inside the transfer for ever, so the learner must start
    again.
    """
    try:
        offer = published.offer([listener for listener, _ in workers])
    except ActorDied as error:  # not that of a worker, for which callers would take it
        raise WeightsLost(f"the learner died before it could send weights: {error}") from error
    answers = [
        worker.call(RolloutWorker.load_weights, source)
        for (_, worker), source in zip(workers, offer.sources, strict=True)
    ]
    if not offer.sending:
        return offer.sources[0], answers
    try:
        wait_together([*offer.sending, *answers], deadline)
        offer.done()
        return replace(offer.sources[0], hash=offer.sending[0].wait(deadline)), answers
    except (ActorDied, EngineError, DeadlinePassed) as error:
        raise WeightsLost(
            f"the learner or an engine failed while weights were sent, so the others cannot go on: {error}"
        ) from error


def check_hash(worker: int, source: WeightSource, answer: Pending[str], deadline: Deadline) -> None:
    """Wait for a worker's answer. Raises `WeightHashError`."""
    loaded = answer.wait(deadline)
    if loaded != source.hash:
        raise WeightHashError(
            f"engine {worker} loaded weights with hash {loaded}, but the learner published {source.hash} as version"
            f" {source.version}; the transport is broken, so the run stops before it trains on it"
        )
