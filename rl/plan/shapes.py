"""How many weights of which kind does a policy have, and how large are its caches? Told by names and shapes of tensors.

Names may be a checkpoint's (one tensor per expert) or a live model's (experts stacked in one tensor): both count alike.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from rl.config.checkpoint_files import of_text
from rl.config.learner import LearnerConfig
from rl.policy_checks import EMBEDDINGS, HEADS
from rl.precision.float32_weights import ROUTER_BIAS
from rl.precision.number_format import NumberFormat

Shape = tuple[int, ...]
NOT_WEIGHTS = re.compile(r"(^|\.)mtp\.|rotary_emb\.inv_freq$")
"""Tensors of checkpoints that transformers does not load: heads for multi-token prediction, rotary tables."""
PACKED, PER_INT32 = "_packed", 8
"""Suffix of a weight of 4-bit integers (`rl.int4`), and how many of a row are in a number of its tensor."""
PACKED_EXTRAS = (".weight_scale", ".weight_shape")
EXPERT = re.compile(r"\.experts\.(\d+)\.")
"""In the names of experts that are not stacked."""
ROUTERS = (".gate.weight", ".router.weight", ".router.layer.weight")
ROUTER_BIASES = (".gate.bias", ".router.bias")
"""Of a router's scores, which train as its weight does; expert biases are others."""
LATENT = ".kv_a_proj_with_mqa.weight"
CACHED = (".k_proj.weight", ".v_proj.weight", LATENT)
"""Matrices whose outputs attention caches for each token."""
FUSED = (".qkv_proj.weight", ".query_key_value.weight", ".c_attn.weight", ".Wqkv.weight")
"""Matrices that also give queries, so that config.json must tell how much is cached."""
EXPERT_GATES = ("gate_proj.weight", ".w1.weight")
"""Matrices of experts that transformers stacks with another one, which has the same columns."""
NUM_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
NUM_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
NUM_LAYERS = ("num_hidden_layers", "n_layer")
NUM_HEADS, WIDTH = ("num_attention_heads", "n_head"), ("hidden_size", "n_embd")
STATES = (
    ("mamba_head_dim", "ssm_state_size"),
    ("mamba_d_head", "mamba_d_state"),
    ("linear_key_head_dim", "linear_value_head_dim"),
)
"""Keys of config.json that give the state of one head of a linear-attention layer, by family: the two sides of it."""


class UnknownShapesError(ValueError):
    """The tensors and config.json of a policy do not tell what a plan needs."""


@dataclass(frozen=True)
class PolicyShapes:
    """A policy's tensors, tied weights once, and its config.json."""

    tensors: Mapping[str, Shape]
    model: Mapping[str, Any]
    int4: frozenset[str] = frozenset()
    """Names of weights that are 4-bit integers, as a judge may have them (`rl.int4`)."""

    @classmethod
    def of(cls, tensors: Mapping[str, Shape], model: Mapping[str, Any]) -> "PolicyShapes":
        """Without what is no weight, and without the second of tied weights, which some checkpoints hold.

        4-bit integers have the shapes of what they stand for.
        """
        packed = {name.removesuffix(PACKED): shape for name, shape in tensors.items() if name.endswith(PACKED)}
        if packed:
            numbers = {name: (*shape[:-1], shape[-1] * PER_INT32) for name, shape in packed.items()}
            tensors = numbers | {
                name: shape for name, shape in tensors.items() if not name.endswith((PACKED, *PACKED_EXTRAS))
            }
        model = of_text(model)
        kept = {name: shape for name, shape in tensors.items() if not NOT_WEIGHTS.search(name)}
        if model.get("tie_word_embeddings") and any(name.endswith(EMBEDDINGS) for name in kept):
            kept = {name: shape for name, shape in kept.items() if not name.endswith(HEADS)}
        return cls(kept, model, frozenset(packed))

    def num(self, *endings: str) -> int:
        """Number of weights in the tensors whose names end so."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if name.endswith(endings))

    @cached_property
    def num_weights(self) -> int:
        """All weights; biases of routers are no weights, because no gradient trains them."""
        return sum(map(math.prod, self.tensors.values())) - self.num(ROUTER_BIAS)

    @cached_property
    def num_expert_weights(self) -> int:
        """Weights of routed experts; those of shared experts are not among them."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if is_expert(name))

    @property
    def num_embedding_weights(self) -> int:
        return self.num(*EMBEDDINGS)

    @property
    def is_tied(self) -> bool:
        return not self.num(*HEADS)

    @property
    def vocab_size(self) -> int:
        return next((shape[0] for name, shape in self.tensors.items() if name.endswith(EMBEDDINGS)), 0)

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return next((shape[1] for name, shape in self.tensors.items() if name.endswith(EMBEDDINGS)), 0)

    @property
    def num_active_experts(self) -> int:
        """Routed experts that each layer sends a token to.

        Raises `UnknownShapesError` for experts of which config.json does not tell it.
        """
        return self._first(NUM_ACTIVE_EXPERTS) or self._unknown(NUM_ACTIVE_EXPERTS)

    @property
    def route_bytes(self) -> int:
        """Of the experts of one token in all layers (`learner.routing_replay`). Raises `UnknownShapesError`."""
        layers = {name.partition(".experts.")[0] for name in self.tensors if is_expert(name)}
        return len(layers) * self.num_active_experts * (1 if self._num_experts <= 256 else 2) if layers else 0

    @property
    def expert_share(self) -> float:
        """Share of the routed experts that one token is sent to; 1 without experts. Raises `UnknownShapesError`."""
        if not self.num_expert_weights:
            return 1.0
        return self.num_active_experts / self._num_experts

    @property
    def _num_experts(self) -> int:
        """Routed experts of each layer. Raises `UnknownShapesError`."""
        return self._first(NUM_EXPERTS) or self._unknown(NUM_EXPERTS)

    @property
    def num_active_weights(self) -> float:
        """Weights that compute with each token: the experts that it is sent to, and of the embeddings only a head."""
        idle = self.num_expert_weights * (1 - self.expert_share)
        return self.num_weights - idle - (0 if self.is_tied else self.num_embedding_weights)

    @cached_property
    def num_attention_layers(self) -> int:
        """Layers that cache keys and values. Where no name is known, all that config.json tells."""
        known = sum(name.endswith((CACHED[0], CACHED[2], *FUSED)) for name in self.tensors)
        return known or (0 if self.num_linear_layers else self._first(NUM_LAYERS) or self._unknown(NUM_LAYERS))

    @cached_property
    def num_cached(self) -> int:
        """Numbers that attention caches for each token, over all layers. A sliding window counts as full attention.

        Raises `UnknownShapesError` for other names than `CACHED` of which config.json does not tell the heads.
        """
        rows = sum(shape[0] for name, shape in self.tensors.items() if name.endswith(CACHED))
        num_others = self.num_attention_layers - sum(name.endswith((CACHED[0], CACHED[2])) for name in self.tensors)
        if not num_others:
            return rows
        heads = self._first(NUM_HEADS) or self._unknown(NUM_HEADS)
        head_size = self._first(("head_dim",)) or (self._first(WIDTH) or self._unknown(WIDTH)) // heads
        return rows + num_others * 2 * head_size * (self._first(("num_key_value_heads",)) or heads)

    @cached_property
    def num_linear_layers(self) -> int:
        """Layers that keep a state of fixed size: Mamba and linear attention."""
        return sum(name.endswith(".A_log") for name in self.tensors)

    def state_bytes(self, bytes_per_number: int) -> int:
        """Bytes of the states of one sequence: float32 states, and the last inputs of the convolutions.

        vLLM's layout (`MambaStateShapeCalculator`). Raises `UnknownShapesError` for a family that is not known.
        """
        total = 0
        for name, shape in self.tensors.items():
            if name.endswith(".A_log"):  # Mamba-1 keeps a state for each of its numbers
                total += 4 * (math.prod(shape) if len(shape) == 2 else self._state_of_a_head * shape[0])
            elif len(shape) == 3 and name.endswith("conv1d.weight"):
                total += bytes_per_number * shape[0] * (shape[-1] - 1)
        return total

    @property
    def _state_of_a_head(self) -> int:
        for keys in STATES:
            if all(isinstance(self.model.get(key), int) for key in keys):
                return math.prod(self.model[key] for key in keys)
        known = ", or ".join(" and ".join(keys) for keys in STATES)
        raise UnknownShapesError(f"config.json does not tell the state of its linear-attention layers: {known}")

    def num_trained(self, learner: LearnerConfig) -> int:
        """Weights that the learner trains: an adapter's, or all but frozen routers."""
        if learner.adapter is not None:
            return self.num_adapter_weights(learner)
        return self.num_weights - (self.num(*ROUTERS, *ROUTER_BIASES) if learner.freeze_router else 0)

    def num_adapter_weights(self, learner: LearnerConfig) -> int:
        """Weights of the adapter's matrices; each adds rank x (rows + columns), for each expert of a stack."""
        if learner.adapter is None:
            return 0
        pattern = re.compile(learner.adapter.pattern)
        layers = [
            shape
            for name, shape in self.tensors.items()
            if len(shape) == 2 and not is_expert(name) and pattern.fullmatch(name.removesuffix(".weight"))
        ]
        experts = self._expert_sides() if learner.adapter.experts else 0
        return learner.adapter.rank * (sum(map(sum, layers)) + experts)

    def _expert_sides(self) -> int:
        """Sum over the experts' matrices of rows + columns; gate and up projection are one matrix in memory."""
        sides = 0
        for name, shape in self.tensors.items():
            if is_expert(name) and is_matrix(name, shape):
                *num, rows, columns = shape
                sides += math.prod(num) * (rows + (0 if name.endswith(EXPERT_GATES) else columns))
        return sides

    def divides_experts(self, num_ranks: int) -> bool:
        """Whether each of so many ranks holds the same number of a layer's experts."""
        return not self.num_expert_weights or self._num_experts % num_ranks == 0

    def on_rank(self, num_ranks: int) -> "PolicyShapes":
        """What one of so many ranks holds if `rl.learner.sharding` spreads the policy, where it holds most.

        A tensor's rows are divided, so stacked experts are divided by expert; Mamba's A stays whole.
        """
        if num_ranks == 1:
            return self
        held: dict[str, Shape] = {}
        for name, shape in self.tensors.items():
            if expert := EXPERT.search(name):
                if int(expert[1]) < math.ceil(self._num_experts / num_ranks):
                    held[name] = shape
            elif name.endswith((".A_log", ROUTER_BIAS)):
                held[name] = shape
            else:
                held[name] = (*(math.ceil(rows / num_ranks) for rows in shape[:1]), *shape[1:])
        return PolicyShapes(held, self.model)

    def quantised(self, number_format: NumberFormat) -> Iterator[Shape]:
        """Shapes of the weights that the format quantises, as `rl.precision.folded` chooses them."""
        if not number_format.is_quantised:
            return
        for name, shape in self.tensors.items():
            if is_matrix(name, shape) and not number_format.keeps(name):
                yield shape

    def is_float32(self, name: str) -> bool:
        """Whether engines hold this tensor in float32, as `rl.precision.float32_weights` chooses them."""
        return name.endswith(".A_log") or f"{name.removesuffix('weight')}{ROUTER_BIAS}" in self.tensors

    def _first(self, keys: tuple[str, ...]) -> int:
        return next((value for key in keys if isinstance(value := self.model.get(key), int)), 0)

    def _unknown(self, keys: tuple[str, ...]) -> NoReturn:
        raise UnknownShapesError(f"config.json has none of {', '.join(keys)}")


def is_expert(name: str) -> bool:
    """Whether this is a tensor of routed experts."""
    return ".experts." in name


def is_matrix(name: str, shape: Shape) -> bool:
    """Whether this is the weight of a linear layer, or of stacked experts: no embedding, convolution or router."""
    if len(shape) == 3:
        return is_expert(name)
    return len(shape) == 2 and name.endswith(".weight") and not name.endswith((*EMBEDDINGS, *ROUTERS))
