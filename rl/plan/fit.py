"""Do learner, engines, teachers and judge fit where they are placed, and which keys help where they do not?

A place is a card, or the host. Ray puts actors that reserve fractions of a GPU together, so the fullest card that can
come about is looked at: the learner's with as many engines as its rest has room for, and one of engines only.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.config.experiment import ExperimentConfig
from rl.config.learner import LearnerAdapterConfig
from rl.plan.beside import Beside, ShapesBeside, engines_beside
from rl.plan.cards import Card
from rl.plan.engine import EngineMemory, engine_memory
from rl.plan.memory import (
    FLOAT32,
    GIB,
    PROCESS_BYTES,
    Part,
    learner_parts,
    moment_bytes,
    published_bytes,
    rank_shapes,
    total,
)
from rl.plan.nodes import ENGINE, JUDGE, LEARNER, Nodes, larger_than_a_node, lay_out, node_problems, others_of
from rl.plan.shapes import PolicyShapes
from rl.plan.speed import publish_s


@dataclass(frozen=True, slots=True)
class Place:
    """A card or the host, and what is on it."""

    name: str
    capacity: float | None
    """Bytes; None for a host that is not this machine."""
    is_gpu: bool
    tenants: Sequence[tuple[str, float]]
    """Names and bytes."""

    @property
    def used(self) -> float:
        return sum(num_bytes for _, num_bytes in self.tenants)

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.used <= self.capacity

    def count(self, tenant: str) -> int:
        return sum(name == tenant for name, _ in self.tenants)


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of a run."""

    shapes: PolicyShapes
    config: ExperimentConfig
    learner: Sequence[Part]
    """Of each rank."""
    engine: EngineMemory
    beside: Sequence[Beside]
    published: int
    """Bytes of one version."""
    places: Sequence[Place]
    nodes: Nodes | None
    layout: Sequence[Counter[str]]
    """The processes of each node that is needed; empty without nodes, or if one of them is larger than a node."""

    @property
    def publish_s(self) -> float:
        """Seconds from the learner to all engines."""
        return publish_s(self.published, max(1, len(self.layout)), is_live=self.config.weights.is_live)

    @property
    def fits(self) -> bool:
        return not list(self.problems())

    def problems(self) -> Iterator[tuple[str, list[str]]]:
        """Each thing that does not fit, and the keys that help."""
        for place in self.places:
            if not place.fits and place.capacity is not None:
                wrong = f"{place.name}: {place.used / GIB:,.1f} GiB needed, {place.capacity / GIB:,.1f} GiB there"
                yield wrong, [*self._smaller_learner(place), *self._smaller_engines(place)]
        yield from self._empty_caches()
        if self.config.learner.num_ranks > 1 and 0 < self.config.learner.gpus <= 0.5:
            yield "two ranks would share a card, and NCCL needs a card for each", ["learner.gpus, to more than 0.5"]
        if self.nodes is not None:
            yield from node_problems(self.config, self.nodes)

    def _empty_caches(self) -> Iterator[tuple[str, list[str]]]:
        own = Beside(ENGINE, 1, self.engine, "policy.max_tokens")
        for one in (own, *self.beside):
            if not one.memory.num_sequences:
                missing = (one.memory.sequence_bytes - one.memory.cache_bytes) / GIB
                wrong = f"the cache of the {one.name} holds no sequence of {one.max_tokens_key}: {missing:,.2f} GiB"
                yield wrong + " are missing", list(self._larger_cache(one))

    def remarks(self) -> Iterator[str]:
        """What fits but is worth knowing."""
        num, seats = self.engine.num_sequences, self.config.rollout.max_in_flight
        if 0 < num < seats:
            yield (
                f"the cache holds {num:,} sequences of full length, fewer than rollout.max_in_flight ({seats}): if more"
                " become that long, vLLM stops some and computes them again"
            )
        if self.beside:
            yield f"the time of a step is without {' and '.join(one.name for one in self.beside)}"
        seconds, deadline = self.publish_s, self.config.train.publish_timeout_s
        if self.nodes is not None and seconds > deadline / 2:
            yield (
                f"a publish takes about {seconds:,.0f} s, and train.publish_timeout_s is {deadline:g}: raise it to"
                " twice that"
            )

    def _smaller_learner(self, place: Place) -> Iterator[str]:
        """Changes of the learner's keys that save at least a hundredth of it, and what is left with all of them."""
        if not place.count(LEARNER) or place.capacity is None:
            return
        before, together = total(self.learner), {}
        for text, changes in _learner_changes(self.config).items():
            saved = before - self._learner_bytes(changes)
            if saved > before / 100:
                together |= changes
                yield f"{text} saves {saved / GIB:,.1f} GiB"
        least = self._learner_bytes(together)
        if together:
            who = "the learner" if self.config.learner.num_ranks == 1 else "each rank"
            yield f"all of these: {who} needs {least / GIB:,.1f} GiB then"
        if least * place.count(LEARNER) > place.capacity:
            yield "the card or the policy: these keys are not enough"

    def _learner_bytes(self, changes: Mapping[str, Any]) -> float:
        learner = self.config.learner.model_copy(update=changes)
        return total(learner_parts(self.shapes, self.config.model_copy(update={"learner": learner})))

    def _smaller_engines(self, place: Place) -> Iterator[str]:
        num, capacity = len(place.tenants) - place.count(LEARNER), place.capacity
        if not num or capacity is None:
            return
        if not place.is_gpu:
            yield "rollout.num_workers and rollout.kv_cache_gib, lower"
            return
        left = (capacity - total(self.learner) * place.count(LEARNER)) / num
        if left >= max(one.least_bytes for one in (self.engine, *(one.memory for one in self.beside))):
            yield f"rollout.gpu_memory_share={int(100 * left / capacity) / 100:g} leaves room for the rest"
        if len(place.tenants) > 1:
            yield "learner.gpus=1 rollout.gpus_per_worker=1 rollout.gpu_memory_share=null: a card for each"

    def _larger_cache(self, one: Beside) -> Iterator[str]:
        config, engine, judge = self.config, one.memory, self.config.judge if one.name == JUDGE else None
        key, section = ("judge", judge) if judge else ("rollout", config.rollout)
        longest = judge.max_tokens if judge else config.policy.max_tokens
        if section.kv_cache_gib is not None or not config.rollout.gpus_per_worker:
            yield f"{key}.kv_cache_gib={engine.sequence_bytes / GIB:.3g} or more"
        else:
            yield "rollout.gpu_memory_share, higher"
            more = max(2, int(2 * config.rollout.gpus_per_worker))
            yield f"rollout.gpus_per_worker={more}: each card holds a part of the weights"
        if (fitting := int(longest * engine.cache_bytes / engine.sequence_bytes)) > 0:
            yield f"{one.max_tokens_key}, to {fitting} or less"


def make_plan(
    shapes: PolicyShapes,
    config: ExperimentConfig,
    card: Card | None,
    host_bytes: float | None,
    nodes: Nodes | None = None,
    shapes_beside: ShapesBeside | None = None,
) -> Plan:
    """The plan on cards of this kind, and on a host with so much memory (None: another machine's), or on nodes.

    `shapes_beside` are those of the experiment's teachers and judge.
    """
    learner = learner_parts(shapes, config)
    on_card = card.memory_bytes if card is not None and config.rollout.gpus_per_worker else None
    engine = engine_memory(shapes, config, on_card)
    published = published_bytes(shapes, config.precision)
    beside = engines_beside(config, shapes_beside or {}, on_card)
    sizes = {LEARNER: total(learner), ENGINE: engine.total_bytes}
    sizes |= {one.name: one.memory.total_bytes for one in beside}
    places = list(_cards(config, card, sizes))
    # An actor with a card is a process on the host too, where a rank loads its slices and may keep its moments.
    loaded = PROCESS_BYTES + FLOAT32 * _read_by_rank(shapes, config).num_weights
    with_card = loaded + (moment_bytes(shapes, config) if config.learner.offload_moments else 0)
    on_host = max(sizes[LEARNER], loaded if config.learner.num_ranks > 1 else 0)
    hosted = {name: PROCESS_BYTES if config.rollout.gpus_per_worker else size for name, size in sizes.items()}
    hosted[LEARNER] = with_card if config.learner.gpus else on_host
    if JUDGE in hosted:
        hosted[JUDGE] += PROCESS_BYTES  # the endpoint, beside its engine
    layout = [] if nodes is None or larger_than_a_node(config, nodes) else lay_out(config, nodes.gpus)
    together = Counter({LEARNER: config.learner.num_ranks, ENGINE: config.rollout.num_workers, **others_of(config)})
    processes = max(layout, key=lambda node: sum(hosted[name] * node[name] for name in hosted), default=together)
    tenants = [("driver", PROCESS_BYTES), ("published versions", config.weights.room(published).host)]
    tenants += [(name, hosted[name]) for name in hosted for _ in range(processes[name])]
    host = Place("the host" if nodes is None else "the fullest node's host", host_bytes, False, tenants)
    return Plan(shapes, config, learner, engine, beside, published, [*places, host], nodes, layout)


def _read_by_rank(shapes: PolicyShapes, config: ExperimentConfig) -> PolicyShapes:
    """What a rank reads of a checkpoint: its slices, or the whole (`rl.learner.policy.load_policy`)."""
    slices = rank_shapes(shapes, config.learner)
    return slices if shapes.divides_experts(config.learner.num_ranks) else shapes


def _cards(config: ExperimentConfig, card: Card | None, sizes: Mapping[str, float]) -> Iterator[Place]:
    """The card of the learner or of one of its ranks, and cards of engines only: one of each kind, or the fullest."""
    if card is None:
        return
    learner, each = config.learner.gpus, config.rollout.gpus_per_worker
    kinds = {ENGINE: config.rollout.num_workers, **others_of(config)}
    engines = sorted((name for name, num in kinds.items() for _ in range(num)), key=lambda name: -sizes[name])
    beside = min(len(engines), int((1 - learner) / each + 1e-9)) if 0 < learner < 1 and 0 < each < 1 else 0
    if learner:
        name = "the learner's card" if config.learner.num_ranks == 1 else "a rank's card"
        yield _place(name, card, [LEARNER, *engines[:beside]], sizes)
    if 0 < each < 1 and len(engines) > beside:
        yield _place("a card of engines", card, engines[: min(len(engines) - beside, int(1 / each + 1e-9))], sizes)
    elif each >= 1:
        for name, num in kinds.items():
            if num:
                yield _place("a card of engines" if name == ENGINE else f"a card of the {name}", card, [name], sizes)


def _place(name: str, card: Card, tenants: Sequence[str], sizes: Mapping[str, float]) -> Place:
    return Place(name, card.memory_bytes, True, [(tenant, sizes[tenant]) for tenant in tenants])


def _learner_changes(config: ExperimentConfig) -> Mapping[str, Mapping[str, Any]]:
    """Values of the learner's keys that may make it smaller, by what to write on the command line."""
    learner, shortest = config.learner, config.policy.max_tokens
    changes: dict[str, Mapping[str, Any]] = {
        "learner.activation_checkpointing=true": {"activation_checkpointing": True},
        f"learner.tokens_per_micro_batch={shortest}": {"tokens_per_micro_batch": shortest},
        "learner.logprob_chunk_tokens=256": {"logprob_chunk_tokens": 256},
    }
    if learner.gpus:
        changes["learner.offload_moments=true"] = {"offload_moments": True}
    else:
        changes["learner.moments=bfloat16"] = {"moments": "bfloat16"}
    if learner.num_ranks > 1:
        more, shared = 2 * learner.num_ranks, math.gcd(8, learner.num_ranks)
        changes[f"learner.num_ranks={more}"] = {"num_ranks": more}
        if shared > learner.expert_parallel:  # saves nothing without experts
            changes[f"learner.expert_parallel={shared}"] = {"expert_parallel": shared}
    if learner.adapter is None:
        changes["learner.adapter={}"] = {"adapter": LearnerAdapterConfig()}
    return changes
