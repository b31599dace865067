"""How does the learner update the policy from a step's samples? One optimiser update, in one process, without Ray."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from rl.algorithms.corrections import NonFiniteError
from rl.config.experiment import ExperimentConfig
from rl.config.saved_policy import BaseError, check_base
from rl.data_types import Batch, Sample, Update
from rl.learner.adapter import (
    AdapterError,
    add_adapter,
    load_adapter,
    merge_experts_in_passes,
    save_adapter,
    without_adapter,
)
from rl.learner.batch_loss import Measures, added, batch_loss, mean
from rl.learner.batching import make_batches, to_device
from rl.learner.forward import check_head, policy_logprobs
from rl.learner.optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from rl.learner.policy import load_policy
from rl.learner.recompute import recompute_layers
from rl.learner.router import RouterBalancer
from rl.precision.folded import FoldedWeights

STATE_FORMAT = 1
UPDATE_FIELDS = frozenset(one.name for one in fields(Update))


class LearnerStateError(ValueError):
    """A saved state does not fit this learner."""


class Learner:
    """The policy with float32 master weights, its optimiser, and the version of its weights.

    `.model` holds the master weights, `.folded` what the number format of the experiment makes of them. With an adapter
    only the adapter has master weights: the base is frozen in the number format (`FoldedWeights.freeze`).

    `policy_path` is the checkpoint that training starts from; it is also the frozen reference of algorithms that need
    one. Sets the process's torch threads to `learner.cpus` (at least 1).
    """

    def __init__(self, policy_path: Path, config: ExperimentConfig) -> None:
        torch.set_num_threads(max(1, int(config.learner.cpus)))
        self._config = config
        self._device = torch.device("cuda" if config.learner.gpus > 0 else "cpu")
        self._dtype = getattr(torch, config.precision.arithmetic)
        self.model = _load_model(policy_path, self._device)
        check_head(self.model)
        self._adapter, self._policy_path = config.learner.adapter, policy_path
        self.folded = FoldedWeights(self.model, config.precision)  # first: an adapter adds matrices, and renames some
        if self._adapter is not None:
            add_adapter(self.model, self._adapter, config.seed)
            merge_experts_in_passes(self.model)
            self.folded.freeze()
        if config.learner.activation_checkpointing:
            recompute_layers(self.model)
        self._reference: PreTrainedModel | None = None
        self._needs_reference = any(algorithm.needs_reference for algorithm in config.algorithms)
        if self._needs_reference and self._adapter is None:
            self._reference = _load_model(policy_path, self._device).requires_grad_(False)
            FoldedWeights(self._reference, config.precision).put_in()
        bias_rate = config.learner.expert_bias_rate if self._adapter is None else 0.0  # the base stays what it is
        self._balancer = RouterBalancer(self.model, bias_rate, config.learner.freeze_router)
        self._optimizer = make_optimizer(self.model, config)
        self._policy_version = 0

    @property
    def policy_version(self) -> int:
        """Updates so far; 0 is the policy that training started from."""
        return self._policy_version

    def update(self, samples: Sequence[Sample]) -> Update:
        """Train on all samples at once: one forward and backward pass a micro-batch, then one optimiser step.

        Without any loss token the weights, biases and optimiser stay as they are and nothing is measured, but the
        version still grows: the loop counts on one version a step.

        Raises `NonFiniteError` for logprobs or gradients that are NaN or infinite; weights and version are then
        untouched. Raises `SampleTooLongError` (`rl.learner.batching`).
        """
        start = time.perf_counter()
        pad_id = self.model.config.pad_token_id or 0
        batches = make_batches(samples, self._config.learner.tokens_per_micro_batch, pad_id)
        num_loss_tokens = batches[0].num_loss_tokens if batches else 0
        rate = learning_rate(self._policy_version, self._config)
        measures: Measures = {}
        grad_norm = codes_changed = 0.0
        if num_loss_tokens > 0:
            try:
                with self.folded.in_place():
                    measures = self._accumulate_gradients(batches)
                grad_norm = self._optimizer_step(rate)
                codes_changed = self.folded.refresh()
                self._balancer.update()
            finally:
                self._optimizer.zero_grad(set_to_none=True)
                self._balancer.forget()
                if self._config.rollout.sleep:
                    torch.cuda.empty_cache()  # the engine, which wakes now, needs it back
        self._policy_version += 1
        return Update(
            policy_version=self._policy_version,
            loss=measures["loss"].total.item() if measures else 0.0,  # micro-batches add up to it
            grad_norm=grad_norm,
            learning_rate=rate,
            mismatch=mean(measures, "mismatch"),
            mismatch_stale=mean(measures, "mismatch_stale"),
            mismatch_kl=mean(measures, "mismatch_kl") or 0.0,
            entropy=mean(measures, "entropy") or 0.0,
            codes_changed=codes_changed,
            num_loss_tokens=num_loss_tokens,
            num_tokens=sum(len(sample.tokens) for sample in samples),
            seconds=time.perf_counter() - start,
            measures={name: mean(measures, name) or 0.0 for name in measures if name not in UPDATE_FIELDS},
        )

    def save_state(self, folder: Path) -> None:
        """Write all that `load_state` needs to go on bit by bit.

        `folder/model` is a Hugging Face checkpoint of the float32 master weights, or `folder/adapter` the adapter in
        peft's format, which names its base; `folder/optimizer.safetensors` holds AdamW's moments by parameter name,
        `folder/learner.json` the version. The folder is made; an old state in it is overwritten, so write to a fresh
        folder and rename it to be safe against crashes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._adapter is not None:
            precision = self._config.precision
            save_adapter(self.model, self._adapter, self._policy_path, precision, folder / "adapter")
        else:
            self.model.save_pretrained(folder / "model")
        save_file(optimizer_tensors(self._optimizer, self.model), folder / "optimizer.safetensors")
        (folder / "learner.json").write_text(
            json.dumps({"format": STATE_FORMAT, "policy_version": self._policy_version}) + "\n"
        )

    def load_state(self, folder: Path) -> None:
        """Take over weights, optimiser and version from `save_state`. `.model` stays the same object.

        Raises `LearnerStateError` when the folder holds no state, or one of another format or another policy.
        """
        try:
            saved = json.loads((folder / "learner.json").read_text())
        except FileNotFoundError as error:
            raise LearnerStateError(f"{folder} holds no learner state: {error.filename} is missing") from error
        if saved["format"] != STATE_FORMAT:
            raise LearnerStateError(f"{folder} has learner state format {saved['format']}, expected {STATE_FORMAT}")
        try:
            if self._adapter is not None:
                check_base(folder / "adapter", self._policy_path)
                load_adapter(self.model, folder / "adapter")
            else:
                self.model.load_state_dict(_load_model(folder / "model", self._device).state_dict())
        except (RuntimeError, AdapterError, BaseError, FileNotFoundError) as error:
            raise LearnerStateError(f"{folder} holds the state of another policy: {error}") from error
        tensors = load_file(folder / "optimizer.safetensors", device=str(self._device))
        load_optimizer_tensors(self._optimizer, self.model, tensors)
        self._policy_version = saved["policy_version"]
        self.folded.refresh()

    def _accumulate_gradients(self, batches: Sequence[Batch]) -> Measures:
        total: Measures = {}
        for batch in (to_device(batch, self._device) for batch in batches):
            self._balancer.token_mask_BT = batch.attention_mask_BT
            logprobs_BT, entropy_BT = self._logprobs(self.model, batch)
            self._balancer.token_mask_BT = None  # routers that are called again for the gradient must not count again
            reference_BT = self._reference_logprobs(batch) if self._needs_reference else None
            algorithm_of, version = self._config.algorithm_of, self._policy_version
            loss, measures = batch_loss(logprobs_BT, entropy_BT, batch, algorithm_of, version, reference_BT)
            loss.backward()
            total = added(total, measures)
        return total

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> Tensor:
        """Under the checkpoint that training began from: a second model, or this one without its adapter."""
        if self._reference is not None:
            return self._logprobs(self._reference, batch)[0]
        with without_adapter(self.model):
            return self._logprobs(self.model, batch)[0]

    def _logprobs(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        return policy_logprobs(
            model, batch, self._dtype, self._config.rollout.temperature, self._config.learner.logprob_chunk_tokens
        )

    def _optimizer_step(self, rate: float) -> float:
        """Clip, check, step. Returns the gradient's norm before clipping."""
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.learner.max_grad_norm).item()
        if not math.isfinite(grad_norm):
            raise NonFiniteError(
                f"the gradient's norm is {grad_norm} at policy version {self._policy_version}. Nothing was trained."
                " Go on from the last checkpoint with --resume, and lower learner.learning_rate"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return grad_norm


def _load_model(path: Path, device: torch.device) -> PreTrainedModel:
    return load_policy(path).to(device)  # type: ignore[arg-type]
