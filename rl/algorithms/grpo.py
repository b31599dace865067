"""GRPO: group-relative advantages and a token-level policy-gradient loss with off-policy corrections.

Sources: GRPO, https://arxiv.org/abs/2402.03300; token-level mean over the whole step and asymmetric clipping: DAPO,
https://arxiv.org/abs/2503.14476; no normalisation by length: Dr. GRPO, https://arxiv.org/abs/2503.20783; two-sided
clipping: INTELLECT-2, https://arxiv.org/abs/2505.07291.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from rl.algorithms.advantages import Baseline, Scale, group_advantages
from rl.algorithms.algorithm import Advantages, TokenView
from rl.algorithms.policy_gradient import PolicyGradient
from rl.data_types import Group

if TYPE_CHECKING:
    from torch import Tensor

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "nano": {
        "scale_by_std": "leave_one_out",
        "overlong_filtering": True,
        "importance_weight_max": None,
    },
    "super": {
        "scale_by_std": "leave_one_out",
        "importance_weight_max": 5.0,
        "advantage_max": 50.0,
        "malformed_advantage": -5.0,
    },
    "ultra": {
        "scale_by_std": "leave_one_out",
        "importance_weight_min": 0.2,
        "importance_weight_max": 5.0,
        "advantage_max": 20.0,
    },
}
"""The loss of the Nemotron 3 recipes (NVIDIA-NeMo/RL, examples/nemo_gym: grpo_nanov3, nemotron-3-super/stage1_rlvr,
nemotron-3-ultra/student_rlvr1). Their clip ranges are left out: with one update a step they do nothing."""


class Grpo(PolicyGradient):
    """GRPO: group-relative advantages and a token-level policy-gradient loss with off-policy corrections."""

    algorithm: Literal["grpo"] = "grpo"
    """Name of the algorithm."""
    preset: Literal["nano", "super", "ultra"] | None = None
    """Defaults of the keys of this section: those of the RLVR stage of a Nemotron 3 recipe."""
    baseline: Baseline = "leave_one_out"
    """Baseline of a reward: the mean of the group's other valid rewards, or of all its valid rewards."""
    scale_by_std: Scale = False
    """Divide advantages by the standard deviation of the group's rewards; `leave_one_out`: of the other rewards."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Lower clip of PPO's ratio, 1 - clip_low; null does not clip."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """Upper clip of PPO's ratio, 1 + clip_high; set it together with clip_low. Then importance_weight_max is the bound
    of dual clipping."""
    average: Literal["tokens", "sequences"] = "tokens"
    """The loss is the mean over all tokens of the step, or over its sequences of the mean over their tokens."""

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, tree: Any) -> Any:
        preset = PRESETS.get(str(tree.get("preset")), {}) if isinstance(tree, Mapping) else {}
        return {**preset, **tree} if preset else tree

    @model_validator(mode="after")
    def _clips_fit(self) -> "Grpo":
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("set clip_low and clip_high together, or neither")
        return self

    @property
    def clips(self) -> tuple[float, float] | None:
        return None if self.clip_low is None or self.clip_high is None else (self.clip_low, self.clip_high)

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, self.baseline, self.scale_by_std) for group in groups]

    def row_weights(self, view: TokenView) -> "Tensor | float":
        from rl.algorithms.objectives import per_sequence

        if self.average == "tokens":
            return 1.0
        return per_sequence(view.loss_mask_BT, view.num_loss_tokens, view.num_loss_rows)
