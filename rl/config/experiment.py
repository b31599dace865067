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
from rl.config.rules import RULES
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
    def _sections_fit_together(self) -> "ExperimentConfig":
        for rule in RULES:
            rule(self)
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
