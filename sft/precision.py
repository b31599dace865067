"""How does the supervised stage train a quantised policy? As the learner does: weights are folded once per step."""

from typing import Any

from transformers import TrainerCallback

from rl.precision.folded import FoldedWeights


class FoldedSteps(TrainerCallback):
    """Forward and backward passes of a step see the folded weights, the optimiser the float32 master weights."""

    def __init__(self, folded: FoldedWeights) -> None:
        self._folded = folded

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._folded.put_in()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._folded.take_out()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._folded.refresh()
