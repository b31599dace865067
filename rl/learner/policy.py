"""How is a policy's checkpoint loaded for training, by the supervised stage and by the learner?"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from envs.errors import InputError


class IncompleteCheckpointError(InputError):
    """A checkpoint lacks weights of the policy."""


def load_policy(path: Path) -> PreTrainedModel:
    """The policy with float32 weights on the CPU, in evaluation mode.

    Evaluation mode means no dropout: the engine has none, so it would only be logprob mismatch. Experts run as grouped
    matrix products, which is transformers' default for models that have any. Raises `IncompleteCheckpointError` when
    weights are missing: transformers would fill them with random ones, and saving would hide that.
    """
    if not torch.cuda.is_available():  # it advises kernels that only GPUs have
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(path), dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise IncompleteCheckpointError(
            f"{path}: {len(missing)} weights are missing, first {missing[0]!r}; transformers would use random values."
            " Set policy.path to a complete checkpoint"
        )
    return model.eval()
