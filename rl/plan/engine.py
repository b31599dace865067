"""How much memory does an engine need, by part, and how many sequences does its cache hold? In bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rl.config.experiment import ExperimentConfig
from rl.engine.arguments import engine_arguments
from rl.plan.memory import BYTES, CONTEXT_BYTES, FLOAT32, GIB, PROCESS_BYTES, Part, published_bytes, total
from rl.plan.shapes import LATENT, PolicyShapes, is_expert, is_matrix
from rl.policy_checks import HEADS

PAGE_TOKENS = {"cpu": 128, "gpu": 16}
"""vLLM's pages of the cache are a multiple of so many tokens long."""
GRAPH_BYTES = GIB
"""Of vLLM's CUDA graphs and workspaces. Assumed."""
INT4 = 0.5 + 2 / 32
"""Bytes of a weight with its share of a scale, at most."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """The memory of one engine: on each of its cards, or on the host."""

    parts: Sequence[Part]
    """What it needs besides its cache."""
    cache_bytes: float
    """Its cache; on a card what the parts leave of the engine's share, unless `rollout.kv_cache_gib` is set."""
    sequence_bytes: float
    """Of the cache, by one sequence of `policy.max_tokens`."""

    @property
    def num_sequences(self) -> int:
        """Sequences of full length that the cache holds at the same time."""
        return max(0, int(self.cache_bytes // self.sequence_bytes))

    @property
    def total_bytes(self) -> float:
        return total(self.parts) + max(0.0, self.cache_bytes)

    @property
    def least_bytes(self) -> float:
        """With a cache of one sequence."""
        return total(self.parts) + self.sequence_bytes


def engine_memory(
    shapes: PolicyShapes,
    config: ExperimentConfig,
    card_bytes: float | None,
    *,
    is_frozen: bool = False,
    scored: int | None = None,
) -> EngineMemory:
    """Of an engine on cards with so much memory, or on the host (None). Engines compute with a format's values.

    To an engine that `is_frozen` no weights arrive. One that scores has the logits of `scored` tokens in a step.
    """
    arguments = engine_arguments(config, is_cpu=card_bytes is None)
    num_cards, size = arguments.get("tensor_parallel_size", 1), BYTES[config.precision.arithmetic]
    # On CPUs without a kernel for them, 4-bit integers are numbers of the passes.
    int4 = shapes.int4 if card_bytes is not None else frozenset[str]()
    served = sum(
        math.prod(shape) * (INT4 if name in int4 else FLOAT32 if shapes.is_float32(name) else size)
        for name, shape in shapes.tensors.items()
    )
    tokens, seats = scored or arguments["max_num_batched_tokens"], config.rollout.max_in_flight
    warm_up = tokens * size * _widest(shapes) / num_cards + (scored or seats) * shapes.vocab_size * FLOAT32 * 3
    logits = "the logits of all" if scored else f"the logits of {seats} sequences"
    room = 0 if is_frozen else config.weights.room(published_bytes(shapes, config.precision)).engine
    process = PROCESS_BYTES if card_bytes is None else CONTEXT_BYTES + GRAPH_BYTES
    parts = [
        Part("weights", served / num_cards, config.precision.arithmetic),
        Part("one step", warm_up, f"estimated, {tokens:,} tokens and {logits}"),
        Part("buffers", room, f"of weights that arrive, {config.weights.name}"),
        Part("process", process, "libraries" if card_bytes is None else "CUDA context and graphs"),
    ]
    parts = [part for part in parts if part.num_bytes]
    cache = arguments.get("kv_cache_memory_bytes")
    if cache is None:
        assert card_bytes is not None, "an engine on the host has a cache of a fixed size"
        cache = arguments["gpu_memory_utilization"] * card_bytes - total(parts)
    page_tokens = PAGE_TOKENS["cpu" if card_bytes is None else "gpu"]
    return EngineMemory(parts, cache, sequence_bytes(shapes, config, page_tokens, num_cards))


def _widest(shapes: PolicyShapes) -> float:
    """Numbers of one token in the widest layer of an engine's step."""
    rows = [
        shape[-2] * (shapes.num_active_experts if is_expert(name) else 1)
        for name, shape in shapes.tensors.items()
        if is_matrix(name, shape) and not name.endswith(HEADS)
    ]
    return 3 * max(rows, default=0)


def sequence_bytes(shapes: PolicyShapes, config: ExperimentConfig, page_tokens: int, num_cards: int = 1) -> float:
    """Of an engine's cache on each of its cards, by one sequence of `policy.max_tokens`, in whole pages.

    In a hybrid vLLM gives all layers pages of one size, which hold the state of a linear layer, and puts layers of one
    kind into groups of one size (`vllm.v1.core.kv_cache_utils`).
    """
    size = BYTES[config.precision.arithmetic]
    num_attention, num_linear = shapes.num_attention_layers, shapes.num_linear_layers
    state = shapes.state_bytes(size) / num_linear / num_cards if num_linear else 0.0
    if not num_attention:
        return num_linear * state
    # What latent attention (MLA) caches belongs to all heads, so each card has the whole.
    heads = 1 if shapes.num(LATENT) else shapes.model.get("num_key_value_heads") or num_cards
    token = size * shapes.num_cached / num_attention / min(num_cards, heads)
    page_tokens *= max(1, math.ceil(state / token / page_tokens))
    least, most = sorted((num_attention, num_linear or num_attention))
    group = most if most < 1.5 * least else least
    num_groups = [math.ceil(num / group) for num in (num_attention, num_linear)]
    num_pages = group * (num_groups[0] * math.ceil(config.policy.max_tokens / page_tokens) + num_groups[1])
    return num_pages * page_tokens * token
