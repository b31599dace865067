"""How long does a step sample and train, and which of the two takes longer? Estimated with few assumptions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rl.config.experiment import ExperimentConfig
from rl.plan.cards import Card
from rl.plan.engine import EngineMemory
from rl.plan.memory import BYTES, tokens_per_step
from rl.plan.shapes import PolicyShapes

BANDWIDTH_SHARE = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
FLOPS_SHARE = 0.35
"""Share of the peak that prompts and training reach; on two CPU cores 0.37 was measured (SmolLM2-135M, BF16)."""
LEAST_STEP_S: Mapping[bool, float] = {True: 0.005, False: 0.03}
"""Shortest step of an engine on a GPU (assumed) and on a CPU (measured with a policy of 1 M weights)."""

COPY_BYTES_S = 1.1e9
"""Bytes a second of a version from the learner's memory into the engines of a node. Measured through a file in /dev/shm
with two engines on two CPU cores: 270 MB in 0.25 s."""
NETWORK_BYTES_S = 12.5e9
"""Bytes a second between two nodes: 100 Gbit/s. Assumed."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of a step whose rollouts are all as long as they may be."""

    sample_s: float
    train_s: float
    engine_step_s: float
    """Of one step of an engine, which samples one token of each sequence in flight."""
    num_in_flight: int
    """Sequences that an engine samples at the same time."""

    @property
    def longer(self) -> str:
        return "sampling" if self.sample_s >= self.train_s else "training"


def step_speed(
    shapes: PolicyShapes, config: ExperimentConfig, engine: EngineMemory, card: Card, learner_card: Card
) -> Speed:
    """Each rollout is taken as one prompt and one reply of `rollout.max_reply_tokens`, together `policy.max_tokens`."""
    train, rollout = config.train, config.rollout
    num_rollouts = math.ceil(train.num_prompts * train.group_size / rollout.num_workers)
    num_in_flight = min(num_rollouts, rollout.max_in_flight, max(1, engine.num_sequences))
    power = max(1.0, rollout.gpus_per_worker) if card.is_gpu else 1.0
    if card.is_gpu and 0 < rollout.gpus_per_worker < 1:  # engines on one card take turns
        power = 1 / min(rollout.num_workers, int(1 / rollout.gpus_per_worker))
    flops = card.flops[config.precision.arithmetic] * power * FLOPS_SHARE
    read_s = step_bytes(shapes, config, num_in_flight) / (card.bandwidth * power * BANDWIDTH_SHARE)
    compute_s = 2 * shapes.num_active_weights * num_in_flight / flops
    engine_step_s = max(read_s, compute_s, LEAST_STEP_S[card.is_gpu])
    prompt_tokens = num_rollouts * (config.policy.max_tokens - rollout.max_reply_tokens)
    prompts_s = 2 * shapes.num_active_weights * prompt_tokens / flops
    sample_s = math.ceil(num_rollouts / num_in_flight) * rollout.max_reply_tokens * engine_step_s + prompts_s
    learner_flops = learner_card.flops[config.precision.arithmetic] * FLOPS_SHARE * config.learner.num_ranks
    train_s = train_flops(shapes, config) * tokens_per_step(config) / learner_flops
    return Speed(sample_s, train_s, engine_step_s, num_in_flight)


def step_bytes(shapes: PolicyShapes, config: ExperimentConfig, num_in_flight: int) -> float:
    """Bytes that an engine's step reads: weights once, and of each sequence its keys and values and its states.

    A mixture of experts reads the experts that some token of the step is sent to, if each is as likely as the others.
    """
    size = BYTES[config.precision.arithmetic]
    untouched = (1 - shapes.expert_share) ** num_in_flight
    num = shapes.num_weights - shapes.num_expert_weights * untouched
    num -= 0 if shapes.is_tied else shapes.num_embedding_weights
    mean_tokens = config.policy.max_tokens - config.rollout.max_reply_tokens / 2
    sequence = size * shapes.num_cached * mean_tokens + 2 * shapes.state_bytes(size)  # states are written too
    return size * num + num_in_flight * sequence


def train_flops(shapes: PolicyShapes, config: ExperimentConfig) -> float:
    """Of one token: 2 a weight forward, 2 backward to the inputs, 2 to the weights that train; 2 to compute layers
    again; 2 of a reference."""
    passes = 4 if config.learner.adapter is not None else 6
    passes += 2 if config.learner.activation_checkpointing else 0
    passes += 2 if any(algorithm.needs_reference for algorithm in config.algorithms) else 0
    return passes * shapes.num_active_weights


def publish_s(num_bytes: float, num_nodes: int, *, is_live: bool = False) -> float:
    """Seconds to publish so many bytes to engines on so many nodes.

    The nodes that have a version pass it on to as many others at the same time, so their number doubles each round. A
    transport that sends while engines receive (`is_live`) goes from card to card, and all receive at the same time.
    """
    if is_live:
        return num_bytes / NETWORK_BYTES_S
    rounds = math.ceil(math.log2(num_nodes))
    return num_bytes / COPY_BYTES_S + rounds * num_bytes / NETWORK_BYTES_S
