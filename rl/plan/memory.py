"""How much memory does a rank of the learner need, by part, and how large is one published version? In bytes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rl.config.experiment import ExperimentConfig
from rl.config.learner import LearnerConfig
from rl.plan.gathered import all_gathered, gathered_weights, largest_gathered, layer_of
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
PROCESS_BYTES = GIB
"""Of one process on the host with its libraries: the quickstart's 4 processes and 2 caches of 0.5 GiB peak at 5 GiB."""
CONTEXT_BYTES = GIB // 2
"""Of CUDA's context and libraries, for each process on a card. Assumed."""


class Part(NamedTuple):
    name: str
    num_bytes: float
    how: str
    """How it is counted."""


def total(parts: Sequence[Part]) -> float:
    return sum(part.num_bytes for part in parts)


def learner_parts(shapes: PolicyShapes, config: ExperimentConfig) -> list[Part]:
    """What each rank of `rl.learner.learner` holds at its peak; parts of 0 bytes are left out.

    The peak is in an update, unless what saving (in float32) or publishing makes whole between updates is more.
    """
    learner = config.learner
    tokens = min(learner.tokens_per_micro_batch, tokens_per_step(config))
    size = BYTES[config.precision.arithmetic]
    head = shapes.num(*(EMBEDDINGS if shapes.is_tied else HEADS)) if learner.adapter is None else 0
    logits = learner.logprob_chunk_tokens * shapes.vocab_size * LOGIT_BYTES
    activations = activation_bytes(shapes, size, recomputed=learner.activation_checkpointing)
    on_card = learner.gpus > 0
    passes = [
        *_whole_parts(shapes, config, size),
        Part("activations", tokens * activations, f"estimated, {tokens:,} tokens of a micro-batch"),
        Part("logits", logits, f"{learner.logprob_chunk_tokens:,} tokens x vocabulary x {LOGIT_BYTES} bytes"),
        Part("gradient of the head", 2 * size * head, f"{config.precision.arithmetic}, of one chunk and their sum"),
    ]
    largest = 0 if rank_shapes(shapes, learner) is shapes else largest_gathered(shapes)
    sent = config.weights.room(published_bytes(shapes, config.precision)).learner
    outside = max(FLOAT32 * largest, size * largest + sent) - total(passes)
    parts = [
        *_held_parts(shapes, config),
        *passes,
        Part("saving, publishing", max(0, outside), "a whole layer and buffers, what exceeds the parts of passes"),
        Part("process", CONTEXT_BYTES if on_card else PROCESS_BYTES, "CUDA context" if on_card else "libraries"),
    ]
    return [part for part in parts if part.num_bytes]


def _held_parts(shapes: PolicyShapes, config: ExperimentConfig) -> list[Part]:
    """What is there all the time, but for gradients, which are there at the peak."""
    learner, number_format = config.learner, config.precision
    mine, arithmetic = rank_shapes(shapes, learner), number_format.arithmetic
    num, is_frozen = mine.num_weights, learner.adapter is not None  # the base, which passes then use as it is
    quantised = sum(map(math.prod, mine.quantised(number_format)))
    folded = quantised * ((0 if is_frozen else FLOAT32) + number_format.bits / 8) if quantised else 0
    moments = 0 if learner.offload_moments else moment_bytes(shapes, config)
    spread = f", divided over {learner.num_ranks} ranks" if mine is not shapes else ""
    return [
        Part("frozen weights", BYTES[arithmetic] * num if is_frozen else 0, f"{arithmetic}, the adapter's base"),
        Part("master weights", 0 if is_frozen else FLOAT32 * num, f"float32{spread}"),
        Part("adapter", FLOAT32 * mine.num_adapter_weights(learner), "float32, rank x (rows + columns)"),
        Part("folded weights", folded, f"values and {number_format.codes} of quantised weights{spread}"),
        Part(
            "reference policy",
            FLOAT32 * num if _has_second(config) else 0,
            f"float32{spread}; an adapter's base needs no second copy",
        ),
        Part("gradients", FLOAT32 * mine.num_trained(learner), f"float32, of what is trained{spread}"),
        Part("AdamW moments", moments, f"two in {learner.moments}{spread}"),
    ]


def _whole_parts(shapes: PolicyShapes, config: ExperimentConfig, size: int) -> list[Part]:
    """What passes compute with: rounded copies of all weights, or what a rank gathers of them, and their gradients."""
    learner, arithmetic = config.learner, config.precision.arithmetic
    num_policies = 2 if _has_second(config) else 1
    if rank_shapes(shapes, learner) is not shapes:
        root, layers = gathered_weights(shapes, learner.expert_parallel)
        gradients = (size + FLOAT32) * largest_gathered(shapes, learner.expert_parallel)
        when, which = "two at a time", "of the largest of these before they are summed"
        if learner.exchange == "step":
            every = all_gathered(shapes, learner.expert_parallel)
            when, which = "all until the step's last pass", "of all of these until they are summed"
            layers, gradients = every - root, FLOAT32 * every + size * largest_gathered(shapes, learner.expert_parallel)
        dealt = f", and of experts 1 of {learner.expert_parallel} parts" if learner.expert_parallel > 1 else ""
        return [
            Part("whole layers", size * layers, f"{arithmetic}, {when}, gathered from all ranks{dealt}"),
            Part("whole embeddings", size * root * num_policies, f"{arithmetic}, with the head, for a whole pass"),
            Part("whole gradients", gradients, f"{arithmetic} and float32, {which}"),
        ]
    rounded = 0 if learner.adapter is not None or arithmetic == "float32" else size * shapes.num_weights * num_policies
    if learner.adapter is not None and learner.adapter.experts:  # merged in each pass
        rounded = size * shapes.num_expert_weights
    return [Part("rounded weights", rounded, f"{arithmetic}, of each policy during a pass")]


def _has_second(config: ExperimentConfig) -> bool:
    """Whether a frozen reference policy is held beside the one that trains."""
    return config.learner.adapter is None and any(algorithm.needs_reference for algorithm in config.algorithms)


def rank_shapes(shapes: PolicyShapes, learner: LearnerConfig) -> PolicyShapes:
    """What each rank holds of the policy: a part of it, or with an adapter the whole base."""
    return shapes.on_rank(learner.num_ranks) if learner.adapter is None else shapes


def moment_bytes(shapes: PolicyShapes, config: ExperimentConfig) -> int:
    """Of a rank's two moments of AdamW, on the card or, with `learner.offload_moments`, on the host."""
    trained = rank_shapes(shapes, config.learner).num_trained(config.learner)
    return 2 * BYTES[config.learner.moments] * trained


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
        layer = layer_of(name)
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
