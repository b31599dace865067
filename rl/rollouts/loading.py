"""How do workers load a policy version, and how is it known that they loaded what the learner published?"""

from collections.abc import Sequence
from dataclasses import replace

from rl.cluster.actors import Actor, ActorDied, Deadline, Pending, wait_together
from rl.cluster.address import ClusterError
from rl.engine.protocol import EngineError
from rl.rollouts.worker import RolloutWorker
from rl.weights.source import Listener, Publication, WeightSource


class WeightHashError(RuntimeError):
    """An engine loaded different bytes than the learner published."""


def begin_loading(
    published: Publication, workers: Sequence[tuple[Listener, Actor[RolloutWorker]]], deadline: Deadline
) -> tuple[WeightSource, list[Pending[str]]]:
    """What these workers load, with its hash, and their calls, which load it at the same time.

    If the learner sends meanwhile, all calls have ended. Then raises `ClusterError` if one failed: the others wait for
    it inside the transfer for ever.
    """
    offer = published.offer([listener for listener, _ in workers])
    answers = [
        worker.call(RolloutWorker.load_weights, source)
        for (_, worker), source in zip(workers, offer.sources, strict=True)
    ]
    if not offer.sending:
        return offer.sources[0], answers
    try:
        wait_together([*offer.sending, *answers], deadline)
    except (ActorDied, EngineError) as error:
        raise ClusterError(
            f"the learner or an engine failed while weights were sent, so the others cannot go on: {error}; --resume"
            " continues from the newest checkpoint"
        ) from error
    offer.done()
    return replace(offer.sources[0], hash=offer.sending[0].wait(deadline)), answers


def check_hash(worker: int, source: WeightSource, answer: Pending[str], deadline: Deadline) -> None:
    """Wait for a worker's answer. Raises `WeightHashError`."""
    loaded = answer.wait(deadline)
    if loaded != source.hash:
        raise WeightHashError(
            f"engine {worker} loaded weights with hash {loaded}, but the learner published {source.hash} as version"
            f" {source.version}; the transport is broken, so the run stops before it trains on it"
        )
