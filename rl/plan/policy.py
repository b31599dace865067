"""Which tensors would an experiment's policy have? Read in the headers of its files, or off a model without memory."""

from pathlib import Path
from typing import Any

from rl.config.checkpoint_files import CheckpointFileError, read_config, tensor_shapes
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.plan.shapes import PolicyShapes, Shape
from rl.policies import hybrid_config


def policy_shapes(config: ExperimentConfig) -> PolicyShapes:
    """The tensors of the policy that the experiment trains; no weights are loaded or made.

    Raises `CheckpointFileError` for files that are missing or damaged.
    """
    if config.policy.path is not None:
        return checkpoint_shapes(config.policy.path)
    return _built_shapes(config.policy.build or TinyHybrid())


def checkpoint_shapes(folder: Path) -> PolicyShapes:
    """The tensors of a checkpoint. A folder with config.json alone is enough: transformers tells the tensors then.

    Raises `CheckpointFileError`.
    """
    model = read_config(folder)
    return PolicyShapes.of(tensor_shapes(folder) or _shapes_by_config(folder), model)


def _built_shapes(sizes: TinyHybrid) -> PolicyShapes:
    config = hybrid_config(sizes)
    return PolicyShapes.of(_live_shapes(config), config.to_dict())


def _shapes_by_config(folder: Path) -> dict[str, Shape]:
    from transformers import AutoConfig

    try:
        return _live_shapes(AutoConfig.from_pretrained(str(folder), local_files_only=True))
    except Exception as error:  # configurations of models raise what they like
        reason = str(error).strip().split("\n")[0]
        raise CheckpointFileError(f"{folder} holds no weights, and transformers has no such model: {reason}") from error


def _live_shapes(config: Any) -> dict[str, Shape]:
    """The tensors of the model that transformers builds, on the device `meta`, which has no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
