"""Batches for losses, what a loss and its gradient are, and the same by TRL."""

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from rl.algorithms.algorithm import Algorithm
from rl.algorithms.grpo import Grpo
from rl.data_types import Batch
from rl.learner.batch_loss import batch_loss

DEFAULTS = Grpo()
MATH, STORE = "math/Arithmetic-v0", "tools/Store-v0"


def make_batch(
    engine, advantages, mask=None, num_loss_tokens=None, versions: Any = 0, env_ids=None, num_loss_rows=None
):
    """Rows without padding; column 0 is the prompt unless a mask is given. Advantages are one a row."""
    engine = torch.as_tensor(engine, dtype=torch.float32)
    if mask is None:
        mask = torch.ones(engine.shape, dtype=torch.bool)
        mask[:, 0] = False
    mask = torch.as_tensor(mask)
    return Batch(
        token_ids_BT=torch.zeros(engine.shape, dtype=torch.int64),
        attention_mask_BT=torch.ones(engine.shape, dtype=torch.bool),
        loss_mask_BT=mask,
        columns={"logprob": engine, "version": torch.as_tensor(versions).expand(engine.shape)},
        advantages_BT=torch.tensor(advantages, dtype=torch.float32)[:, None].expand(engine.shape),
        env_ids=env_ids or (MATH,) * len(engine),
        num_loss_tokens=num_loss_tokens or int(mask.sum()),
        num_loss_rows=num_loss_rows or len(engine),
    )


def run(logprobs, batch, algorithm: Algorithm | Mapping[str, Algorithm] = DEFAULTS, reference=None, trained_version=0):
    """The loss, its gradient by the logprobs, and the measures."""
    logprobs = torch.tensor(logprobs, dtype=torch.float32, requires_grad=True)
    reference = None if reference is None else torch.tensor(reference)
    by_env = algorithm if isinstance(algorithm, Mapping) else {MATH: algorithm}
    entropy = torch.zeros_like(logprobs)
    loss, measures = batch_loss(logprobs, entropy, batch, by_env.__getitem__, trained_version, reference)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad, measures


def total(measures, name):
    return measures[name].total.item()


def random_case(seed, num_loss_tokens=None):
    """Logprobs about 0.3 nats off the engine's, tools in the middle of rows, and a reference."""
    generator = torch.Generator().manual_seed(seed)
    engine = -torch.rand(6, 12, generator=generator) * 3 - 0.1
    logprobs = engine + 0.3 * torch.randn(6, 12, generator=generator)
    reference = engine + 0.3 * torch.randn(6, 12, generator=generator)
    mask = torch.rand(6, 12, generator=generator) < 0.7
    mask[:, 0] = False
    batch = make_batch(engine, torch.randn(6, generator=generator).tolist(), mask, num_loss_tokens)
    return logprobs.requires_grad_(), torch.rand(6, 12, generator=generator), batch, reference


def trl_loss(
    logprobs, entropy, batch, *, loss_type="dapo", beta=0.0, clip=None, delta=None, weight_max=None, ref=None, **more
):
    """GRPOTrainer._compute_loss on a stand-in for the trainer that hands it our logprobs: the loss, its gradient and
    TRL's metrics. `more` are attributes of the trainer.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, entropy, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=loss_type,
        epsilon_low=clip[0] if clip else 0.2,
        epsilon_high=clip[1] if clip else 0.2,
        use_vllm=weight_max is not None,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
    )
    vars(trainer).update(more)
    mask = batch.loss_mask_BT.long()
    inputs = {
        "prompt_ids": torch.zeros(mask.shape[0], 1, dtype=torch.int64),
        "prompt_mask": torch.ones(mask.shape[0], 1, dtype=torch.int64),
        "completion_ids": batch.token_ids_BT,
        "completion_mask": batch.attention_mask_BT.long(),
        "tool_mask": mask,
        "advantages": batch.advantages_BT[:, 0],
        "num_items_in_batch": torch.tensor(batch.num_loss_tokens),
        "old_per_token_logps": batch.columns["logprob"] if clip else None,
    }
    if ref is not None:
        inputs["ref_per_token_logps"] = ref
    if weight_max is not None:
        # token_truncate, trl 1.16 grpo_trainer.py lines 2660-2685; it is part of the generation step there
        difference = (logprobs.detach() - batch.columns["logprob"]) * mask
        inputs["importance_sampling_ratio"] = torch.exp(difference).clamp(min=None, max=weight_max)
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient, trainer._metrics["train"]
