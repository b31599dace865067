"""How much memory do the learner and an engine need, by part, and how large is one published version? In bytes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rl.config.experiment import ExperimentConfig
from rl.engine.arguments import engine_arguments
from rl.plan.shapes import ROUTERS, PolicyShapes, Shape, is_expert, is_matrix
from rl.policy_checks import EMBEDDINGS, HEADS
from rl.precision.number_format import NumberFormat

GIB = 2**30
FLOAT32 = 4
BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number, by torch's name of its type."""
LOGIT_BYTES = 16
"""Of one logit in `rl.learner.logprobs`: scaled logits, logprobs and two intermediates of the entropy, all float32."""
NORM_BYTES = 8
"""Kept for the backward pass by each number that a norm of transformers reads: a float32 copy, and around it."""
LAYER = re.compile(r"\blayers\.(\d+)\.")
PAGE_TOKENS = {"cpu": 128, "gpu": 16}
"""vLLM's pages of the cache are a multiple of so many tokens long."""
PROCESS_BYTES = GIB
"""Of one process on the host with its libraries: the quickstart's 4 processes and 2 caches of 0.5 GiB peak at 5 GiB."""
CONTEXT_BYTES = GIB // 2
"""Of CUDA's context and libraries, for each process on a card. Assumed."""
GRAPH_BYTES = GIB
"""Of vLLM's CUDA graphs and workspaces. Assumed."""


class Part(NamedTuple):
    name: str
    num_bytes: float
    how: str
    """How it is counted."""


def total(parts: Sequence[Part]) -> float:
    return sum(part.num_bytes for part in parts)


def learner_parts(shapes: PolicyShapes, config: ExperimentConfig) -> list[Part]:
    """What `rl.learner.learner` holds at the peak of an update; parts of 0 bytes are left out."""
    learner, number_format = config.learner, config.precision
    num, trained = shapes.num_weights, shapes.num_trained(learner)
    needs_reference = any(algorithm.needs_reference for algorithm in config.algorithms)
    second = needs_reference and learner.adapter is None
    size = BYTES[number_format.arithmetic]
    is_frozen = learner.adapter is not None  # the base, which passes then use as it is
    rounded = 0 if is_frozen or number_format.arithmetic == "float32" else size * num * (2 if needs_reference else 1)
    if learner.adapter is not None and learner.adapter.experts:  # merged in each pass
        rounded = size * shapes.num_expert_weights
    quantised = sum(map(math.prod, shapes.quantised(number_format)))
    folded = quantised * ((0 if is_frozen else FLOAT32) + number_format.bits / 8) if quantised else 0
    logits = learner.logprob_chunk_tokens * shapes.vocab_size * LOGIT_BYTES
    head = shapes.num(*(EMBEDDINGS if shapes.is_tied else HEADS)) if learner.adapter is None else 0
    tokens = min(learner.tokens_per_micro_batch, tokens_per_step(config))
    activations = activation_bytes(shapes, size, recomputed=learner.activation_checkpointing)
    on_card = config.learner.gpus > 0
    parts = [
        Part("frozen weights", size * num if is_frozen else 0, f"{number_format.arithmetic}, the adapter's base"),
        Part("master weights", 0 if is_frozen else FLOAT32 * num, "float32"),
        Part("adapter", FLOAT32 * shapes.num_adapter_weights(learner), "float32, rank x (rows + columns)"),
        Part("folded weights", folded, f"values and {number_format.codes} of quantised weights"),
        Part("reference policy", FLOAT32 * num if second else 0, "float32; an adapter's base needs no second copy"),
        Part("rounded weights", rounded, f"{number_format.arithmetic}, of each policy during a pass"),
        Part("gradients", FLOAT32 * trained, "float32, of what is trained"),
        Part(
            "AdamW moments", 0 if learner.offload_moments else moment_bytes(shapes, config), f"two in {learner.moments}"
        ),
        Part("activations", tokens * activations, f"estimated, {tokens:,} tokens of a micro-batch"),
        Part("logits", logits, f"{learner.logprob_chunk_tokens:,} tokens x vocabulary x {LOGIT_BYTES} bytes"),
        Part("gradient of the head", 2 * size * head, f"{number_format.arithmetic}, of one chunk and their sum"),
        Part("process", CONTEXT_BYTES if on_card else PROCESS_BYTES, "CUDA context" if on_card else "libraries"),
    ]
    return [part for part in parts if part.num_bytes]


def moment_bytes(shapes: PolicyShapes, config: ExperimentConfig) -> int:
    """Of AdamW's two moments, on the card or, with `learner.offload_moments`, on the host."""
    return 2 * BYTES[config.learner.moments] * shapes.num_trained(config.learner)


def tokens_per_step(config: ExperimentConfig) -> int:
    """Tokens of a step's rollouts if each is as long as it may be."""
    return config.train.num_prompts * config.train.group_size * config.policy.max_tokens


def activation_bytes(shapes: PolicyShapes, size: int, recomputed: bool = False) -> float:
    """Estimated bytes that the layers keep of one token for the backward pass.

    Each matrix keeps its input and its output, each norm float32 copies, and transformers' Mamba-2 scan in PyTorch
    what `_scan_numbers` counts. Fitted to the tensors that autograd saves for eight kinds of layers: within a quarter
    of them, but 40 % too much for float32 experts of two matrices. Layers that are `recomputed` (activation
    checkpointing) keep only their input, and one of them at a time all else.
    """
    layers: dict[str, float] = {}
    for name, shape in shapes.tensors.items():
        found = LAYER.search(name)
        layer = found[1] if found else ""
        layers[layer] = layers.get(layer, 0.0) + _kept_bytes(shapes, name, shape, size)
    if recomputed:
        return (len(layers) - 1) * shapes.width * size + max(layers.values())
    return sum(layers.values())


def _kept_bytes(shapes: PolicyShapes, name: str, shape: Shape, size: int) -> float:
    """What is kept of one token because of this tensor."""
    if is_expert(name):
        return size * math.prod(shape[:-2]) * sum(shape[-2:]) * shapes.expert_share
    if name.endswith(ROUTERS) or (is_matrix(name, shape) and not name.endswith(HEADS)):
        return size * sum(shape)
    if len(shape) == 1 and "norm" in name:
        # A norm of each head has the width of one head, and reads what the projection beside it gives.
        return NORM_BYTES * shapes.tensors.get(name.replace("_norm.", "_proj."), shape)[0]
    if len(shape) == 1 and name.endswith(".A_log"):
        return FLOAT32 * _scan_numbers(shapes, num_heads=shape[0])
    return 0.0


def _scan_numbers(shapes: PolicyShapes, num_heads: int) -> int:
    """Float32 numbers that one Mamba-2 layer keeps of a token, besides its matrices: states, values, chunks."""
    head_dim, state = shapes.model.get("mamba_head_dim"), shapes.model.get("ssm_state_size")
    if not isinstance(head_dim, int) or not isinstance(state, int):
        return 0
    return num_heads * (7 * state + 11 * head_dim + 2 * shapes.model.get("chunk_size", 256))


def published_bytes(shapes: PolicyShapes, number_format: NumberFormat) -> int:
    """Bytes of the tensors of one version, as `rl.weights.names` publishes them.

    Quantised weights are codes and scales, vectors and `float32_weights` float32, all else has the dtype of passes.
    """
    size = BYTES[number_format.arithmetic]
    quantised = list(shapes.quantised(number_format))
    packed = sum(math.prod(shape) * number_format.bits / 8 + FLOAT32 * _num_matrices(shape) for shape in quantised)
    plain = sum(
        math.prod(shape) * (FLOAT32 if len(shape) < 2 or shapes.is_float32(name) else size)
        for name, shape in shapes.tensors.items()
    )
    return round(plain + packed - size * sum(map(math.prod, quantised)))


def _num_matrices(shape: Shape) -> int:
    """Each has a scale of its own."""
    return math.prod(shape[:-2])


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


def engine_memory(shapes: PolicyShapes, config: ExperimentConfig, card_bytes: float | None) -> EngineMemory:
    """Of an engine on cards with so much memory, or on the host (None). Engines compute with a format's values."""
    arguments = engine_arguments(config, is_cpu=card_bytes is None)
    num_cards, size = arguments.get("tensor_parallel_size", 1), BYTES[config.precision.arithmetic]
    served = sum(
        math.prod(shape) * (FLOAT32 if shapes.is_float32(name) else size) for name, shape in shapes.tensors.items()
    )
    tokens, seats = arguments["max_num_batched_tokens"], config.rollout.max_in_flight
    warm_up = tokens * size * _widest(shapes) / num_cards + seats * shapes.vocab_size * FLOAT32 * 3
    process = PROCESS_BYTES if card_bytes is None else CONTEXT_BYTES + GRAPH_BYTES
    parts = [
        Part("weights", served / num_cards, config.precision.arithmetic),
        Part("one step", warm_up, f"estimated, {tokens:,} tokens and the logits of {seats} sequences"),
        Part("process", process, "libraries" if card_bytes is None else "CUDA context and graphs"),
    ]
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
    heads = shapes.model.get("num_key_value_heads") or num_cards
    token = size * shapes.num_cached / num_attention / min(num_cards, heads)
    page_tokens *= max(1, math.ceil(state / token / page_tokens))
    least, most = sorted((num_attention, num_linear or num_attention))
    group = most if most < 1.5 * least else least
    num_groups = [math.ceil(num / group) for num in (num_attention, num_linear)]
    num_pages = group * (num_groups[0] * math.ceil(config.policy.max_tokens / page_tokens) + num_groups[1])
    return num_pages * page_tokens * token
