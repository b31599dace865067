"""How does the learner update the policy? One optimiser update, by one process or several ranks, without Ray."""

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
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
from rl.learner.batch_loss import Measures, mean
from rl.learner.batching import make_batches
from rl.learner.compiled import compile_layers
from rl.learner.forward import check_head, policy_logprobs
from rl.learner.memory import memory_mib
from rl.learner.optimizer import clip_gradients, learning_rate, make_optimizer
from rl.learner.passes import Passes, Score
from rl.learner.policy import load_policy
from rl.learner.recompute import recompute_layers
from rl.learner.replay import RouteReplay
from rl.learner.router import RouterBalancer, freeze_routers
from rl.learner.rows import sort_rows
from rl.learner.sharding import hash_of_replicas, load_sharded_policy
from rl.learner.state import (
    LearnerStateError,
    load_weights_and_moments,
    read_version,
    save_moments,
    save_weights,
    write_version,
)
from rl.learner.trees import let_take_trees
from rl.precision.folded import FoldedWeights
from rl.ranks import ALONE, Ranks

UPDATE_FIELDS = frozenset(one.name for one in fields(Update))


class Learner:
    """The policy with float32 master weights, its optimiser, and the version of its weights.

    `.model` holds the master weights, `.folded` what the number format of the experiment makes of them. With an adapter
    only the adapter has master weights: the base is frozen in the number format (`FoldedWeights.freeze`).

    `policy_path` is the checkpoint that training starts from; it is also the frozen reference of algorithms that need
    one. Sets the process's torch threads to `learner.cpus` (at least 1).

    With several ranks each holds a slice of the policy (`rl.learner.sharding`) and computes its share of the
    micro-batches; with an adapter each holds the whole frozen base. All ranks must call the same methods with the same
    arguments, and get the same results; if one raises, all raise.
    """

    def __init__(self, policy_path: Path, config: ExperimentConfig, ranks: Ranks = ALONE) -> None:
        torch.set_num_threads(max(1, int(config.learner.cpus)))
        self._config, self._ranks = config, ranks
        self._device = torch.device("cuda" if config.learner.gpus > 0 else "cpu")
        self._adapter, self._policy_path = config.learner.adapter, policy_path
        self._exchanges_once = config.learner.exchange == "step"
        self.model, self._score = self._placed(policy_path, stays_whole=self._exchanges_once)
        self._takes_trees = config.learner.share_prefixes and self._let_take_trees(self.model, self._score)
        # Before the adapter, which adds matrices and renames some.
        self.folded = FoldedWeights(self.model, config.precision, ranks)
        if self._adapter is not None:
            add_adapter(self.model, self._adapter, config.seed)
            merge_experts_in_passes(self.model)
            self.folded.freeze()
        reference = self._reference() if any(algorithm.needs_reference for algorithm in config.algorithms) else None
        self._replay = RouteReplay(self.model) if config.learner.routing_replay else None
        if config.learner.freeze_router and self._adapter is None:
            freeze_routers(self.model)
        bias_rate = config.learner.expert_bias_rate if self._adapter is None else 0.0  # the base stays what it is
        self._balancer = RouterBalancer(self.model, bias_rate)
        cut = partial(
            make_batches,
            tokens_per_micro_batch=config.learner.tokens_per_micro_batch,
            pad_id=0,  # masked everywhere; config.json may have none, or -1, which is no token
            ranks=ranks,
            shares_prefixes=self._takes_trees,
        )
        self._passes = Passes(config, self._score, reference, self._balancer, self._replay, ranks, self._device, cut)
        self._optimizer = make_optimizer(self.model, config)
        self._policy_version = 0

    @property
    def policy_version(self) -> int:
        """Updates so far; 0 is the policy that training started from."""
        return self._policy_version

    def update(self, samples: Sequence[Sample]) -> Update:
        """Train on all samples at once: one forward and backward pass a micro-batch, then one optimiser step. Rows
        without a gradient are left out, or only measured (`rl.learner.rows`).

        Without any loss token the weights, biases and optimiser stay as they are and nothing is measured, but the
        version still grows: the loop counts on one version a step.

        Raises `NonFiniteError` for logprobs or gradients that are NaN or infinite; weights and version are then
        untouched. Raises `SampleTooLongError` (`rl.learner.batching`) and `RoutesError` (`rl.learner.replay`).
        """
        start = time.perf_counter()
        rows = sort_rows(samples, self._config.algorithm_of, self._config.learner.measured_share)
        rate = learning_rate(self._policy_version, self._config)
        measures: Measures = {}
        routing: dict[str, float] = {}
        grad_norm = codes_changed = 0.0
        if self._replay is not None:
            self._replay.check(samples)
        if rows.num_loss_tokens > 0:
            try:
                with self.folded.in_place():
                    measures = self._passes.run(rows, self._policy_version)
                grad_norm = self._optimizer_step(rate)
                codes_changed = self.folded.refresh()
                for load in self._balancer.loads():
                    self._ranks.sum(load)
                self._balancer.update(rows.measured_weight)
                if self._replay is not None:
                    routing = self._replay.measures(rows.measured_weight, self._ranks)
            finally:
                self._optimizer.zero_grad(set_to_none=True)
                self._balancer.forget()
                if self._replay is not None:
                    self._replay.forget()
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
            num_loss_tokens=rows.num_loss_tokens,
            num_row_tokens=sum(len(sample.tokens) for sample in samples),
            num_tokens=int(measures["num_tokens"].total) if measures else 0,
            seconds=time.perf_counter() - start,
            measures={name: mean(measures, name) or 0.0 for name in measures if name not in UPDATE_FIELDS} | routing,
        )

    def memory_mib(self) -> dict[str, float]:
        """What this rank's process holds, by part (`rl.learner.memory`)."""
        return memory_mib(self.model, self._optimizer)

    def replicas(self) -> str:
        """A hash of what each rank holds whole and trains, which must be the same on all; "" with one rank."""
        return hash_of_replicas(self.model) if self._ranks.num > 1 else ""

    def save_state(self, folder: Path, *, with_policy: bool = True) -> None:
        """Write all that `load_state` needs to go on bit by bit.

        `folder/model` is a Hugging Face checkpoint of the float32 master weights, or `folder/adapter` the adapter in
        peft's format, which names its base; `folder/learner.json` holds the version. AdamW's moments are in
        `folder/optimizer.safetensors`, or, with the weights' slices, in `folder/state` (`rl.learner.state`). The folder
        is made; an old state in it is overwritten, so write to a fresh folder and rename it to be safe against crashes.
        Without `with_policy` the slices are the only weights: `folder/model` is left out.
        """
        assert with_policy or (self._ranks.num > 1 and self._adapter is None)  # else it is the state
        folder.mkdir(parents=True, exist_ok=True)
        if self._adapter is None:
            if with_policy:
                save_weights(self.model, folder / "model", self._ranks)
        elif self._ranks.is_first:
            precision = self._config.precision
            save_adapter(self.model, self._adapter, self._policy_path, precision, folder / "adapter")
        save_moments(self.model, self._optimizer, folder, self._ranks, with_weights=self._adapter is None)
        write_version(folder, self._policy_version, self._ranks)

    def load_state(self, folder: Path) -> None:
        """Take over weights, optimiser and version from `save_state`, written by any number of ranks. `.model` stays
        the same object.

        Raises `LearnerStateError` when the folder holds no state, or one of another format or another policy.
        """
        version = read_version(folder)
        if self._adapter is not None:
            try:
                check_base(folder / "adapter", self._policy_path)
                load_adapter(self.model, folder / "adapter")
            except (AdapterError, BaseError, FileNotFoundError) as error:
                raise LearnerStateError(f"{folder} holds the state of another policy: {error}") from error
        with_weights = self._adapter is None
        load_weights_and_moments(self.model, self._optimizer, folder, self._loaded, with_weights=with_weights)
        self._policy_version = version
        self.folded.refresh()

    def _placed(self, policy_path: Path, *, stays_whole: bool) -> tuple[PreTrainedModel, Score]:
        """The policy on this rank's device, whole or in slices, and how its logprobs are computed."""
        config, ranks, device = self._config, self._ranks, self._device
        dtype = getattr(torch, config.precision.arithmetic)
        temperature, chunk_tokens = config.rollout.temperature, config.learner.logprob_chunk_tokens
        score: Score
        if ranks.num > 1 and self._adapter is None:
            score = load_sharded_policy(
                policy_path, ranks, device, dtype, temperature, chunk_tokens, stays_whole=stays_whole
            )
            model = score.model
        else:
            model = load_policy(policy_path)
            check_head(model)
            model.to(device)  # type: ignore[arg-type]
            score = partial(policy_logprobs, model, dtype=dtype, temperature=temperature, chunk_tokens=chunk_tokens)
        if config.learner.compile:  # first, so that it is the compiled layer which is computed again
            compile_layers(model)
        if config.learner.activation_checkpointing:
            recompute_layers(model)
        return model, score

    def _let_take_trees(self, model: PreTrainedModel, score: Score) -> bool:
        return let_take_trees(model, score, getattr(torch, self._config.precision.arithmetic), self._device)

    def _loaded(self, policy_path: Path) -> PreTrainedModel:
        """Another policy, held as this learner's is."""
        return self._placed(policy_path, stays_whole=False)[0]

    def _reference(self) -> Score:
        """Under the checkpoint that training begins from: a second model, or this one without its adapter. It sends
        tokens to the recorded experts too: a policy that is still equal to it has no divergence from it.
        """
        if self._adapter is None:
            model, score = self._placed(self._policy_path, stays_whole=False)
            if self._takes_trees:
                self._let_take_trees(model, score)
            FoldedWeights(model.requires_grad_(False), self._config.precision, self._ranks).put_in()
            return score if not self._config.learner.routing_replay else RouteReplay(model).replayed(score)

        def base_score(batch: Batch) -> tuple[Tensor, Tensor]:
            with without_adapter(self.model):
                return self._score(batch)

        return base_score

    def _optimizer_step(self, rate: float) -> float:
        """Clip, check, step. Returns the gradient's norm before clipping."""
        grad_norm = clip_gradients(self.model, self._config.learner.max_grad_norm, self._ranks)
        if not math.isfinite(grad_norm):
            raise NonFiniteError(
                f"the gradient's norm is {grad_norm} at policy version {self._policy_version}. Nothing was trained."
                " Go on from the last checkpoint with --resume, and lower learner.learning_rate"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return grad_norm
