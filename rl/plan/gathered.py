"""What does a rank of the learner hold whole while layers compute, as `rl.learner.sharding` gathers it?"""

import math
import re
from itertools import pairwise

from rl.plan.shapes import PolicyShapes, is_expert
from rl.precision.float32_weights import ROUTER_BIAS

LAYER = re.compile(r"\blayers\.(\d+)\.")


def layer_of(name: str) -> str:
    """The number of the layer that this tensor belongs to; empty for embeddings, last norm and head."""
    found = LAYER.search(name)
    return found[1] if found else ""


def gathered_weights(shapes: PolicyShapes, expert_parallel: int = 1) -> tuple[int, int]:
    """Weights that are whole at the same time: embeddings, last norm and head during a whole pass, and two layers.

    The second layer is the one that computes next, which FSDP2 already gathers. Of experts that are dealt, a rank
    gathers its share only.
    """
    root, layers = _num_by_layer(shapes, expert_parallel)
    return root, max((sum(pair) for pair in pairwise(layers)), default=sum(layers))


def largest_gathered(shapes: PolicyShapes, expert_parallel: int = 1) -> int:
    """Weights of the largest layer, or of embeddings, last norm and head if these are more: whole gradients of one."""
    root, layers = _num_by_layer(shapes, expert_parallel)
    return max(root, *layers)


def all_gathered(shapes: PolicyShapes, expert_parallel: int = 1) -> int:
    """Weights that are whole when all layers are; of experts that are dealt, a rank's share."""
    root, layers = _num_by_layer(shapes, expert_parallel)
    return root + sum(layers)


def _num_by_layer(shapes: PolicyShapes, expert_parallel: int) -> tuple[int, list[int]]:
    """Numbers that belong to no layer, and those of each layer, in the layers' order."""
    layers: dict[str, int] = {"": 0}
    for name, shape in shapes.tensors.items():
        num = 0 if name.endswith(ROUTER_BIAS) else math.prod(shape)  # a buffer, which each rank holds whole
        num //= expert_parallel if is_expert(name) else 1
        layers[layer_of(name)] = layers.get(layer_of(name), 0) + num
    root = layers.pop("")
    return root, [layers[number] for number in sorted(layers, key=int)]
