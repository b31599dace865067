"""Which configuration keys does an experiment have, and what are their defaults?

`rl/config/read.py` reads YAML and overrides and reports errors. `python -m rl explain KEY` prints the docstrings below.
Sections of a seam, such as an algorithm, are in the seam's own folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from rl.algorithms import AnyAlgorithm
from rl.algorithms.algorithm import Algorithm
from rl.algorithms.grpo import Grpo
from rl.algorithms.shaping.shaping import Shaping
from rl.config.canaries import CanaryConfig
from rl.config.cluster import RayConfig
from rl.config.environments import BudgetConfig, EnvironmentConfig
from rl.config.judge import JudgeConfig
from rl.config.learner import LearnerConfig
from rl.config.policy import PolicyConfig
from rl.config.preferences import DpoConfig, RewardModelConfig
from rl.config.rollout import RolloutConfig
from rl.config.section import Aside, NonNegative, Positive, Section
from rl.config.supervised import SftConfig
from rl.config.teachers import TeacherConfig
from rl.config.train import TrainConfig
from rl.precision.formats import AnyFormat
from rl.precision.formats.float32 import Float32
from rl.runs.sinks import Tracking
from rl.runs.sinks.jsonl import Jsonl
from rl.runs.sinks.tensorboard import TensorBoard
from rl.tokens import ROUTES
from rl.weights.transports import AnyTransport
from rl.weights.transports.object_store import ObjectStore


class EvaluationConfig(Section):
    """Held-out evaluation, before and after training."""

    num_tasks: Positive = 64
    """Held-out tasks per environment."""
    num_samples: Positive = 1
    """Rollouts per task."""
    every: NonNegative = 0
    """Steps between evaluations during training; 0 evaluates only before and after."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Sampling temperature in evaluations; null uses `rollout.temperature`, so that they measure the policy that is
    trained."""

    def due(self, step: int) -> bool:
        return self.every > 0 and step > 0 and step % self.every == 0


class ExperimentConfig(Section):
    """One experiment. `policy`, `environments`, `seed`, `run_dir` and `train.num_steps` have no default."""

    run_dir: Path
    """Folder that receives all output of the run."""
    seed: NonNegative
    """Seed from which all randomness derives."""
    policy: PolicyConfig
    precision: AnyFormat = Float32()
    """The number format of the policy's weights. `precision: nvfp4` is short for `precision: {format: nvfp4}`."""
    weights: AnyTransport = ObjectStore()
    """The transport of published weights from the learner to the engines. `weights: shared_memory` is short for
    `weights: {transport: shared_memory}`."""
    environments: dict[str, EnvironmentConfig] = Field(min_length=1)
    """The environments of the training mixture, by id."""
    sft: SftConfig | None = None
    """A supervised stage before reinforcement learning; null starts from the policy as it is."""
    budget: BudgetConfig = BudgetConfig()
    train: TrainConfig
    loss: AnyAlgorithm = Grpo()
    """The RL algorithm: how it computes advantages and the token loss. `environments.*.loss` overrides it."""
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    """Policies that the trained one learns from (`loss: mopd`), by names of your own."""
    judge: JudgeConfig | None = None
    """A judge that the run serves for its environments; null serves none."""
    learner: LearnerConfig = LearnerConfig()
    rollout: RolloutConfig = RolloutConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    canaries: CanaryConfig = CanaryConfig()
    tracking: Tracking = (Jsonl(), TensorBoard())
    """Sinks that receive the metrics during a run. `metrics.jsonl`, the record of the run, is always written."""
    ray: RayConfig = RayConfig()
    dpo: DpoConfig | None = None
    """Training on preference pairs by `python -m sft dpo`, apart from any run."""
    reward_model: RewardModelConfig | None = None
    """Training of a reward model by `python -m sft reward-model`, apart from any run."""
    _places: Aside[tuple[str, ...], str] = PrivateAttr(default_factory=Aside)
    """File and line of each key."""
    _chosen: Aside[str, Any] = PrivateAttr(default_factory=Aside)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """Values, by key, that the kind of policy chose because nothing set the key."""
        return dict(self._chosen)

    def place(self, *path: str) -> str:
        """File and line of the key at this path, or of the nearest key above it; empty if unknown."""
        found = (self._places.get(path[:end], "") for end in range(len(path), 0, -1))
        return next(filter(None, found), "")

    @property
    def shapings(self) -> dict[str, tuple[Shaping, ...]]:
        """The reward shapings of the environments that have some."""
        return {env_id: one.shaping for env_id, one in self.environments.items() if one.shaping}

    def algorithm_of(self, env_id: str) -> Algorithm:
        """The algorithm that trains an environment's rollouts: its own `loss`, otherwise the experiment's."""
        return self.environments[env_id].loss or self.loss

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The distinct algorithms of the experiment."""
        found: list[Algorithm] = []
        for env_id in self.environments:
            if self.algorithm_of(env_id) not in found:
                found.append(self.algorithm_of(env_id))
        return tuple(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """Token columns that the engine must return besides `version`; names of `rl.engine.columns.COLUMNS`."""
        return tuple(sorted({"logprob"}.union(*(algorithm.needs for algorithm in self.algorithms))))

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that the learner reads besides those of the algorithms."""
        return (ROUTES,) if self.learner.routing_replay else ()

    @model_validator(mode="after")
    def _evaluations_sample_as_training(self) -> "ExperimentConfig":
        if self.evaluation.temperature is None:
            resolved = self.evaluation.model_copy(update={"temperature": self.rollout.temperature})
            object.__setattr__(self, "evaluation", resolved)  # it is frozen, but nothing has read it yet
        return self

    @model_validator(mode="after")
    def _built_policies_are_taught(self) -> "ExperimentConfig":
        if self.policy.build is not None and self.sft is None:
            raise ValueError("policy.build makes a random policy: add an sft section, or set policy.path")
        return self

    @model_validator(mode="after")
    def _replayed_routes_exist(self) -> "ExperimentConfig":
        built = self.policy.build
        if not self.learner.routing_replay or built is None:
            return self
        if "E" not in built.pattern:
            raise ValueError(
                f"learner.routing_replay is for mixtures of experts, but policy.build.pattern ({built.pattern}) has no"
                " layer E: remove it, or add one"
            )
        if built.num_experts_per_token == 1:
            raise ValueError(
                "learner.routing_replay needs at least two experts a token, but policy.build.num_experts_per_token is"
                " 1: raise it, or remove the key"
            )
        return self

    @property
    def reserved(self) -> tuple[float, float]:
        """CPUs and GPUs that the learner, the workers, the teachers' engines and the judge reserve."""
        learner, rollout = self.learner, self.rollout
        num_engines = rollout.num_workers + self.num_teacher_engines + self.num_judges
        return (
            learner.num_ranks * learner.cpus + num_engines * rollout.cpus_per_worker,
            learner.num_ranks * learner.gpus + num_engines * rollout.gpus_per_worker,
        )

    @property
    def num_teacher_engines(self) -> int:
        return sum(teacher.num_engines for teacher in self.teachers.values())

    @property
    def num_judges(self) -> int:
        return 0 if self.judge is None else 1

    @model_validator(mode="after")
    def _teachers_are_known_and_used(self) -> "ExperimentConfig":
        asked = {algorithm.teacher_name for algorithm in self.algorithms if algorithm.teacher_name}
        if unknown := sorted(asked - self.teachers.keys()):
            known = ", ".join(self.teachers) or "none"
            raise ValueError(f"loss.teacher names {unknown[0]!r}, but `teachers` has {known}: add it there")
        if unused := sorted(self.teachers.keys() - asked):
            raise ValueError(
                f"teachers.{unused[0]} is used by no environment: set environments.ID.loss to {{algorithm: mopd,"
                f" teacher: {unused[0]}}}, or remove it"
            )
        if self.teachers and self.rollout.temperature != 1.0:
            raise ValueError(
                f"teachers give logprobs at temperature 1, but rollout.temperature is {self.rollout.temperature:g}:"
                " set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _nothing_changes_rewards_that_are_not_read(self) -> "ExperimentConfig":
        if self.teachers and self.train.max_sampling_rounds > 1:
            raise ValueError(
                "train.max_sampling_rounds leaves out groups whose rewards are equal, but distillation reads no"
                " rewards: remove it"
            )
        for env_id, environment in self.environments.items():
            if environment.shaping and self.algorithm_of(env_id).teacher_name:
                raise ValueError(
                    f"environments.{env_id}.shaping changes rewards, which distillation from a teacher does not read:"
                    " remove it"
                )
        return self

    @model_validator(mode="after")
    def _adapters_are_merged_exactly(self) -> "ExperimentConfig":
        adapter = self.learner.adapter
        if adapter is not None and adapter.publish == "merged" and self.precision.is_quantised:
            raise ValueError(
                f"learner.adapter.publish: merged does not go with precision {self.precision.name}: merged weights"
                " would be quantised anew at each step; choose publish: adapter"
            )
        for name, stage in (("sft", self.sft), ("dpo", self.dpo)):
            if stage is not None and stage.adapter is not None and self.precision.is_quantised:
                raise ValueError(
                    f"{name}.adapter does not go with precision {self.precision.name}: the stage's merged weights would"
                    f" be quantised anew for reinforcement learning; remove {name}.adapter, or choose bf16"
                )
        if self.reward_model is not None and self.precision.is_quantised:
            raise ValueError(
                f"reward_model does not go with precision {self.precision.name}: no engine serves reward models;"
                " choose bf16 or float32"
            )
        return self

    @model_validator(mode="after")
    def _policies_that_are_left_out_are_copies(self) -> "ExperimentConfig":
        if self.train.save_policy_every is not None and (
            self.learner.num_ranks == 1 or self.learner.adapter is not None
        ):
            why = "learner.num_ranks is 1" if self.learner.num_ranks == 1 else "learner.adapter is set"
            raise ValueError(
                f"train.save_policy_every leaves out a copy of what several ranks save in slices, but {why}: then"
                " the policy's folder is the only place of the weights, and each checkpoint has it; remove it"
            )
        return self

    @model_validator(mode="after")
    def _engines_that_sleep_are_idle(self) -> "ExperimentConfig":
        if self.rollout.sleep and self.train.max_staleness:
            raise ValueError(
                f"rollout.sleep needs engines that play nothing during an update, but train.max_staleness is"
                f" {self.train.max_staleness}: set it to 0, or share the card by rollout.gpu_memory_share"
            )
        return self

    @model_validator(mode="after")
    def _cluster_holds_the_run(self) -> "ExperimentConfig":
        needed, _ = self.reserved
        if self.ray.local_cpus is not None and self.ray.local_cpus < needed:
            raise ValueError(
                f"ray.local_cpus ({self.ray.local_cpus}) is less than the sum of the ranks' learner.cpus and the"
                f" workers' cpus_per_worker ({needed:g})"
            )
        return self

    @model_validator(mode="after")
    def _pairs_can_share(self) -> "ExperimentConfig":
        learner, rollout = self.learner, self.rollout
        if self.ray.placement != "colocated":
            return self
        if self.teachers or self.judge:
            beside = "the engines of `teachers`" if self.teachers else "the judge"
            raise ValueError(f"ray.placement: colocated has no places for {beside}: choose separate")
        if learner.num_ranks != rollout.num_workers:
            raise ValueError(
                f"ray.placement: colocated puts one rank and one engine together, but learner.num_ranks is"
                f" {learner.num_ranks} and rollout.num_workers {rollout.num_workers}: make them equal, or choose"
                " separate"
            )
        gpus = (learner.gpus, rollout.gpus_per_worker)
        if any(gpus) and (not all(gpus) or sum(gpus) > 1):
            raise ValueError(
                f"ray.placement: colocated lets a rank and an engine share a card, but learner.gpus is {gpus[0]:g} and"
                f" rollout.gpus_per_worker {gpus[1]:g}: give each a part of it, together at most 1, or choose separate"
            )
        return self

    @model_validator(mode="after")
    def _budgets_fit(self) -> "ExperimentConfig":
        for env_id, environment in self.environments.items():
            widened = environment.budget_curriculum
            budgets = [widened.at(budget, 0) if widened else budget for budget in environment.budget]
            most = max((budget for budget in budgets if isinstance(budget, int)), default=0)
            if widened and not most:
                raise ValueError(
                    f"environments.{env_id}.budget_curriculum needs a budget that is a number of tokens: add one to"
                    " budget, or remove it"
                )
            needed = most + self.budget.grace_tokens + self.budget.answer_tokens
            if most and needed > self.rollout.max_reply_tokens:
                widest = " (the widest of budget_curriculum)" if widened else ""
                raise ValueError(
                    f"environments.{env_id}.budget: {most} tokens of reasoning{widest},"
                    f" {self.budget.grace_tokens} of grace and {self.budget.answer_tokens} for the answer"
                    " (section budget) do not fit"
                    f" rollout.max_reply_tokens ({self.rollout.max_reply_tokens})"
                )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ExperimentConfig":
        if self.rollout.max_reply_tokens >= self.policy.max_tokens:
            raise ValueError(
                f"rollout.max_reply_tokens ({self.rollout.max_reply_tokens}) must be smaller than policy.max_tokens"
                f" ({self.policy.max_tokens}), which also counts the prompt"
            )
        if self.learner.tokens_per_micro_batch < self.policy.max_tokens:
            raise ValueError(
                f"learner.tokens_per_micro_batch ({self.learner.tokens_per_micro_batch}) must hold one sequence of"
                f" policy.max_tokens ({self.policy.max_tokens})"
            )
        return self
