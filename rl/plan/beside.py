"""Which engines stand beside those that sample rollouts, teachers' and the judge's, and what does each hold?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.config.checkpoint_files import CheckpointFileError
from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.engine.arguments import SCORED_TOKENS
from rl.plan.engine import EngineMemory, engine_memory
from rl.plan.nodes import JUDGE, others_of
from rl.plan.policy import checkpoint_shapes
from rl.plan.shapes import PolicyShapes, UnknownShapesError
from rl.precision.formats.bf16 import Bf16
from rl.precision.formats.float32 import Float32
from rl.runs.newest import checkpoint_served

ShapesBeside = Mapping[str, tuple[PolicyShapes, str]]
"""By the process's name in `rl.plan.nodes`: the tensors of its checkpoint, and the dtype of its forward passes."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Engines of one frozen policy."""

    name: str
    num: int
    memory: EngineMemory
    """Of each."""
    max_tokens_key: str
    """The key that says how long its sequences are."""


def shapes_beside(config: ExperimentConfig) -> ShapesBeside:
    """Read in the headers of the checkpoints. Raises `ConfigError`."""
    own = config.precision.arithmetic
    found = {
        f"teacher {name}": (_shapes(config, teacher.path, "teachers", name, "path"), own)
        for name, teacher in config.teachers.items()
    }
    if config.judge is not None:
        checkpoint, dtype = checkpoint_served(config.judge.path)
        shapes = _shapes(config, checkpoint, "judge", "path")
        found[JUDGE] = (shapes, dtype or str(shapes.model.get("dtype") or shapes.model.get("torch_dtype")))
    return found


def _shapes(config: ExperimentConfig, folder: Path, *keys: str) -> PolicyShapes:
    try:
        return checkpoint_shapes(folder)
    except (CheckpointFileError, UnknownShapesError) as error:
        fix = "give the folder of a checkpoint, or copy it again"
        raise ConfigError([Problem(config.place(*keys), ".".join(keys), str(error), fix)]) from None


def engines_beside(config: ExperimentConfig, shapes: ShapesBeside, card_bytes: float | None) -> Sequence[Beside]:
    """On cards with so much memory, or on the host (None). Their weights stay, so none arrive."""
    found = []
    for name, num in others_of(config).items():
        own, dtype = shapes[name]
        served = _as_judge(config, dtype) if name == JUDGE else _as_teacher(config)
        scored = None if name == JUDGE else SCORED_TOKENS
        key = "judge.max_tokens" if name == JUDGE else "policy.max_tokens"
        found.append(Beside(name, num, engine_memory(own, served, card_bytes, is_frozen=True, scored=scored), key))
    return found


def _as_teacher(config: ExperimentConfig) -> ExperimentConfig:
    """With the token that vLLM must sample (`rl.engine.scorer`)."""
    policy = config.policy.model_copy(update={"max_tokens": config.policy.max_tokens + 1})
    return config.model_copy(update={"policy": policy})


def _as_judge(config: ExperimentConfig, dtype: str) -> ExperimentConfig:
    """The experiment whose engines are as the judge's."""
    judge = config.judge
    assert judge is not None
    policy = config.policy.model_copy(update={"max_tokens": judge.max_tokens})
    keys = {"max_in_flight": judge.max_in_flight, "kv_cache_gib": judge.kv_cache_gib, "sleep": False}
    precision = Float32() if dtype == "float32" else Bf16()
    return config.model_copy(
        update={"policy": policy, "rollout": config.rollout.model_copy(update=keys), "precision": precision}
    )
