"""How do the weights of a saved policy, whole or an adapter, become a folder of the weights that engines served?"""

import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from rl.config.saved_policy import base_of, is_adapter
from rl.learner.adapter import read_adapter
from rl.learner.policy import load_policy
from rl.learner.state import load_sliced_weights
from rl.precision.folded import FoldedWeights
from rl.precision.formats import AnyFormat
from rl.precision.number_format import NumberFormat
from rl.weights.names import checkpoint_tensors, restored_tensors


def write_served(policy: Path, out: Path, number_format: NumberFormat, slices: Path | None = None) -> None:
    """Write weights and config.json to the existing folder `out`, in the dtype of the engines' forward passes.

    With `slices`, the learner's part of a checkpoint of several ranks, the weights are those in there, and `policy` is
    the one that training started from. Raises `rl.learner.state.LearnerStateError` if they do not fit each other.

    Of a policy in a quantised format these are the values of the codes. An adapter is merged into its base, which is
    held in the format that it was trained beside. Raises `rl.config.saved_policy.BaseError`.
    """
    if is_adapter(policy):
        base = base_of(policy)
        number_format = TypeAdapter(AnyFormat).validate_python(base.precision)
        model = load_adapted(policy, base.path, number_format)
        policy, published = base.path, checkpoint_tensors(model, number_format.arithmetic)
    else:
        model = load_policy(policy)
        if slices is not None:
            load_sliced_weights(model, slices)
        folded = FoldedWeights(model, number_format)
        published = checkpoint_tensors(model, number_format.arithmetic, folded.quantised)
    tensors = dict(restored_tensors(published, number_format, getattr(torch, number_format.arithmetic)))
    # Views of stacked experts become tensors of their own: safetensors stores no part of a storage.
    save_torch_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, out, max_shard_size="5GB")
    described = json.loads((policy / "config.json").read_text(encoding="utf-8"))
    described.pop("torch_dtype", None)
    described["dtype"] = number_format.arithmetic
    (out / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_adapted(adapter: Path, base: Path, number_format: NumberFormat) -> PreTrainedModel:
    """The base with a saved adapter beside it, as the learner holds them."""
    model = load_policy(base)
    folded = FoldedWeights(model, number_format)
    read_adapter(model, adapter)
    folded.freeze()
    return model
