"""Can a policy compute the prefixes that rows share once? It is tried: both ways must give the same logprobs."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.data_types import Batch, Sample
from rl.learner.batching import make_batches, to_device
from rl.learner.sharding import after_an_error, into_slices
from rl.learner.tree_attention import NAME
from rl.learner.tree_mamba import mix_trees, other_state
from rl.tokens import Tokens

LARGEST_DIFFERENCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Mean of |difference| by the standard deviation of the logprobs. That of a new policy is small: whatever it sees, its
logprobs hardly differ. Rounding stays below the bound (1e-6 and 0.015 in tiny policies of several families); a token
that sees another row does not in float32. In bfloat16 it may, if its layer does little in a new policy: such layers are
refused untried (`rl.learner.tree_mamba.other_state`)."""

log = logging.getLogger(__name__)


def let_take_trees(
    model: PreTrainedModel, score: Callable[[Batch], tuple[Tensor, Tensor]], dtype: torch.dtype, device: torch.device
) -> bool:
    """Make `model` take batches with trees too, if `score` then gives them the logprobs of padded rows.

    If not, the model computes padded rows as before, and the log says why.
    """
    if state := other_state(model):
        return _refused(model, f"{state} carries a state from token to token, in the order of a row")
    try:
        return _takes_trees(model, score, dtype, device)
    finally:
        into_slices(score)


def take_trees(model: PreTrainedModel) -> None:
    """Make `model` take batches with trees, untried."""
    mix_trees(model)
    model.set_attn_implementation(NAME)


def _takes_trees(
    model: PreTrainedModel, score: Callable[[Batch], tuple[Tensor, Tensor]], dtype: torch.dtype, device: torch.device
) -> bool:
    usual = model.config._attn_implementation or "eager"
    batch = to_device(_probe(model), device)
    with torch.no_grad():
        logprobs_BT, _ = score(replace(batch, tree=None))
    try:
        take_trees(model)
        with torch.no_grad():
            difference = (score(batch)[0] - logprobs_BT)[batch.loss_mask_BT].abs().mean().item()
        spread = logprobs_BT[batch.loss_mask_BT].std().item()
        if difference <= LARGEST_DIFFERENCE[dtype] * spread:
            return True
        reason = f"logprobs differ by {difference:.2g} nats, their spread is {spread:.2g}"
    except Exception as error:  # of code that is not ours, which may not know trees
        reason = f"{type(error).__name__}: {error}"
        after_an_error(score)  # else it cannot be made to hold slices again
    model.set_attn_implementation(usual)
    return _refused(model, reason)


def _refused(model: PreTrainedModel, reason: str) -> bool:
    log.info("%s computes what several rows begin with for each of them: %s", type(model).__name__, reason)
    return False


def _probe(model: PreTrainedModel) -> Batch:
    """Rows of two groups, and one alone: prompts of 7 and 4 tokens, replies of 2 to 9."""
    vocabulary = np.random.default_rng(0)
    num_ids = model.config.get_text_config().vocab_size
    prompts = [vocabulary.integers(num_ids, size=size).tolist() for size in (7, 4, 1)]
    replies = [(0, 9), (0, 2), (0, 5), (1, 3), (1, 6), (2, 8)]
    samples = []
    for prompt, length in replies:
        reply = vocabulary.integers(num_ids, size=length).tolist()
        tokens = Tokens.make(reply, [True] * length, {})
        samples.append(Sample("", Tokens.joined([Tokens.unsampled(prompts[prompt]), tokens]), 0.0))
    (batch,) = make_batches(samples, 1000, 0, shares_prefixes=True)
    return batch
