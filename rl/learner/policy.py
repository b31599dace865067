"""How is a policy's checkpoint loaded for training, by the supervised stage and by the learner?"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, MergeModulelist, WeightConverter
from transformers.distributed.configuration_utils import DistributedConfig

from envs.errors import InputError
from rl.config.adapted import is_expert
from rl.learner.generation_defaults import make_savable


class IncompleteCheckpointError(InputError):
    """A checkpoint lacks weights of the policy."""


def load_policy(
    path: Path, spread: Callable[[PreTrainedModel], object] | None = None, num_ranks: int = 1
) -> PreTrainedModel:
    """The policy with float32 weights on the CPU, in evaluation mode.

    `spread` turns parameters into `DTensor`s over this many ranks. It is given the model before its weights are read
    (on the meta device), so that each rank reads only its slices; where that cannot be, the whole policy is read first.

    Evaluation mode means no dropout: the engine has none, so it would only be logprob mismatch. Experts run as grouped
    matrix products, which is transformers' default for models that have any. Raises `IncompleteCheckpointError` when
    weights are missing: transformers would fill them with random ones, and saving would hide that. Defaults for
    generation that transformers would refuse to save are mended (`rl.learner.generation_defaults`).
    """
    if not torch.cuda.is_available():  # it advises kernels that only GPUs have
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    model_class: Any = AutoModelForCausalLM
    how: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    if spread is not None and (sliced := _read_in_slices(path, spread, num_ranks)):
        model_class, how["distributed_config"], spread = sliced, DistributedConfig(), None
    model, report = model_class.from_pretrained(str(path), **how)
    if missing := sorted(report["missing_keys"]):
        raise IncompleteCheckpointError(
            f"{path}: {len(missing)} weights are missing, first {missing[0]!r}; transformers would use random values."
            " Set policy.path to a complete checkpoint"
        )
    make_savable(model)
    if spread is not None:
        spread(model)
    return model.eval()


def _read_in_slices(path: Path, spread: Callable[[PreTrainedModel], object], num_ranks: int) -> type[Any] | None:
    """The policy's class, which calls `spread` where transformers spreads a model: between making and loading it.

    None if transformers would read wrong slices, or fail.
    """
    config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    made: type[Any] = type(model)
    if not _has_slices(model, num_ranks):
        return None

    class Spread(made):
        @classmethod
        def prepare_distribute_model(cls, distributed_config: object, device_map: object = None) -> Any:
            return distributed_config, device_map, None  # the ranks have met already

        @classmethod
        def maybe_distribute_model(cls, model: PreTrainedModel, *_: object) -> PreTrainedModel:
            model.__class__ = made
            model.tie_weights()  # tied weights must be one parameter before they are sliced
            spread(model)
            return model

    Spread.__name__, Spread.__module__ = made.__name__, made.__module__  # by which transformers finds its names
    return Spread


def _has_slices(model: PreTrainedModel, num_ranks: int) -> bool:
    """Whether a slice of a parameter's first axis can be made from slices of the checkpoint's tensors.

    transformers slices each tensor before it joins them. That is right for experts that are stacked along the first
    axis, and joined along others. And it needs an expert for each rank.
    """
    conversions = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightConverter)]
    stacks = [stack for name, stack in model.named_parameters() if is_expert(name) and stack.dim() == 3]
    return all(_only_stacks(each.operations) for each in conversions) and all(
        len(stack) % num_ranks == 0 for stack in stacks
    )


def _only_stacks(operations: Sequence[ConversionOps]) -> bool:
    first, *others = operations
    return (
        isinstance(first, MergeModulelist)
        and first.dim == 0
        and all(isinstance(each, Concatenate) and each.dim > 0 for each in others)
    )
